"""Shared fixtures: a tiny checkpoint of each family with random weights, saved as a real diffusers folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve their neighbours
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny; threads only get in each other's way

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.caption_server import Desk, Server

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background; tests send it to processes of theirs
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names of tests that can be typed: without what a shell, a pattern or a terminal takes for its own."""
    return (
        re.sub(r"[^\w .,:=-]+", "_", val)[:60]
        if isinstance(val, str) and re.search(r"[\\\[\]\x00-\x1f]", val)
        else None
    )


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def as_many_threads() -> None:
    """As many threads in every test: sums depend on them, and `pocket build` sets its own."""
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real photos beside the checkout (or $TRIPTYCH_PHOTOS)."""
    folder = Path(os.environ.get("TRIPTYCH_PHOTOS", Path(__file__).parents[2] / "shared" / "photos"))
    if not (folder / "catalogue").is_dir():
        pytest.skip("the real photos are not here; set TRIPTYCH_PHOTOS to their folder")
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A captioner on the loopback device."""
    from tests.caption_server import serve

    yield from serve(monkeypatch)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as far as captions need one."""
    from tests.caption_server import write_model

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def desk(tmp_path: Path, server: Server, model_folder: Path) -> Desk:
    """A work folder with grey triptychs for that captioner to describe."""
    from tests.caption_server import Desk

    return Desk(tmp_path, server, model_folder)


WIDTH = 32
SETTINGS = '{"panel_width": 32, "panel_height": 48, "max_sequence_length": 24, "num_inference_steps": 4}'


@pytest.fixture(scope="session", params=["flux", "sd3"])
def tiny(request: pytest.FixtureRequest) -> Path:
    """The tiny checkpoint of each family in turn: what uses it is a contract that every family keeps."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FluxPipeline in small: f8 and 16 latent channels as FLUX has, the pocket's tokenizers, random float32
    weights.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    clip_tokenizer, t5_tokenizer = tokenizers()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = autoencoder()
    clip = CLIPTextModel(clip_config(clip_tokenizer, WIDTH, num_hidden_layers=1))
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    pipeline = FluxPipeline(
        scheduler, vae, clip, clip_tokenizer, t5_encoder(t5_tokenizer, WIDTH), t5_tokenizer, transformer
    )
    return save(pipeline, tmp_path_factory.mktemp("tiny-flux"))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """StableDiffusion3Pipeline in small: one block with SD3.5 medium's second attention, one plain, one that
    drops its text; two CLIPs of different width, narrower together than T5 as the real ones are.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(1)
    clip_tokenizer, t5_tokenizer = tokenizers()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=12 + 20,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    clips = [
        CLIPTextModelWithProjection(
            clip_config(clip_tokenizer, width, num_hidden_layers=2, projection_dim=projected)
        )
        for width, projected in ((8, 12), (16, 20))
    ]
    pipeline = StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder(),
        clips[0],
        clip_tokenizer,
        clips[1],
        clip_tokenizer,
        t5_encoder(t5_tokenizer, WIDTH),
        t5_tokenizer,
    )
    return save(pipeline, tmp_path_factory.mktemp("tiny-sd3"))


def tokenizers():
    """The pocket's CLIP and T5 tokenizers."""
    from transformers import AutoTokenizer

    from triptych.pocket import checkpoint_path

    return [
        AutoTokenizer.from_pretrained(checkpoint_path(), subfolder=name)
        for name in ("tokenizer", "tokenizer_2")
    ]


def autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def clip_config(tokenizer, width: int, **changes):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def t5_encoder(tokenizer, width: int):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer) + 8, d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    )


def save(pipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    (folder / "triptych.json").write_text(SETTINGS)
    return folder
