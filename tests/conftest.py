"""Shared fixtures: a tiny FLUX checkpoint with random weights, saved as a real diffusers folder."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: spinning threads starve their neighbours
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny; threads only get in each other's way

import pytest
import torch


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real photos beside the checkout (or $TRIPTYCH_PHOTOS)."""
    folder = Path(os.environ.get("TRIPTYCH_PHOTOS", Path(__file__).parents[2] / "shared" / "photos"))
    if not (folder / "catalogue").is_dir():
        pytest.skip("the real photos are not here; set TRIPTYCH_PHOTOS to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FluxPipeline in small: f8 and 16 latent channels as FLUX has, the pocket's tokenizers, random float32 weights."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from triptych.pocket import checkpoint_path

    torch.manual_seed(0)
    clip_tokenizer = AutoTokenizer.from_pretrained(checkpoint_path(), subfolder="tokenizer")
    t5_tokenizer = AutoTokenizer.from_pretrained(checkpoint_path(), subfolder="tokenizer_2")
    width = 32
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
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
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer) + 8, d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    pipeline = FluxPipeline(scheduler, vae, clip, clip_tokenizer, t5, t5_tokenizer, transformer)
    folder = tmp_path_factory.mktemp("tiny-flux")
    pipeline.save_pretrained(folder)
    settings = '{"panel_width": 32, "panel_height": 48, "max_sequence_length": 24, "num_inference_steps": 4}'
    (folder / "triptych.json").write_text(settings)
    return folder
