"""Shared fixtures: a tiny checkpoint of each family with random weights, saved as a real diffusers folder."""

from __future__ import annotations

import json
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
    from triptych.backbones.contract import Backbone

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


WIDTH, JOINT = 32, 48
"""Width of CLIP and of the pooled vector; width of the text states that reach the transformer."""
SETTINGS = '{"panel_width": 32, "panel_height": 48, "max_sequence_length": 24, "num_inference_steps": 4}'


@pytest.fixture(scope="session", params=["flux", "sd3", "flux2"])
def tiny(request: pytest.FixtureRequest) -> Path:
    """The tiny checkpoint of each family in turn: what uses it is a contract that every family keeps."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FluxPipeline in small: f8 and 16 latent channels as FLUX has, the pocket's tokenizers, random float32
    weights.
    """
    from diffusers import FluxPipeline, FluxTransformer2DModel
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
        joint_attention_dim=JOINT,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = autoencoder()
    clip = CLIPTextModel(clip_config(clip_tokenizer, WIDTH, num_hidden_layers=1))
    scheduler = dynamic_scheduler()
    pipeline = FluxPipeline(
        scheduler, vae, clip, clip_tokenizer, t5_encoder(t5_tokenizer, JOINT), t5_tokenizer, transformer
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
        joint_attention_dim=JOINT,
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
        t5_encoder(t5_tokenizer, JOINT),
        t5_tokenizer,
    )
    return save(pipeline, tmp_path_factory.mktemp("tiny-sd3"))


@pytest.fixture(scope="session")
def tiny_flux2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flux2KleinPipeline in small, as a base model: 16 channels at twice the stride of the others, and an
    autoencoder whose batch norm does something.
    """
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
    from diffusers import Flux2Transformer2DModel as Transformer
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    transformer = Transformer(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    with torch.no_grad():  # random modulation is so small that blocks would hardly do anything
        for name, parameter in transformer.named_parameters():
            if "stream_modulation" in name:
                parameter *= 8
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    tokenizer = qwen_tokenizer()
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=JOINT // 3,
            intermediate_size=16,
            num_hidden_layers=29,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = dynamic_scheduler()
    pipeline = Flux2KleinPipeline(
        scheduler, vae.eval(), text.eval(), tokenizer, transformer.eval(), is_distilled=False
    )
    return save(pipeline, tmp_path_factory.mktemp("tiny-flux2"))


def dynamic_scheduler():
    """The scheduler of FLUX.1 and FLUX.2, whose time shift grows with the picture."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def qwen_tokenizer():
    """A byte-level tokenizer that knows a few words, with Qwen's special tokens and the form of its chat."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    known = "three pictures of one <Brand> item <IMAGE 1> the front of a red dress"
    trained.train_from_iterator(
        [f"{known} <IMAGE 2> the back of the dress <IMAGE 3> a person wearing it\n"] * 3, trainer
    )
    vocabulary = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=vocabulary["vocab"],
        merges=[tuple(pair) for pair in vocabulary["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    special = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return tokenizer


def latent_shape(backbone: Backbone) -> tuple[int, int, int]:
    """(C, H, W) of three panels of 32 × 48 px in a tiny checkpoint; each has 2 × 3 tokens."""
    return 16, 3 * backbone.family.latents_per_token, 6 * backbone.family.latents_per_token


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
