"""A random model with the proportions of FLUX.2-klein-4B."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

from flux_like import PROMPT, Size
from triptych.backbones.registry import load_backbone
from triptych.compute.cpu import install
from triptych.sampling.opened import OpenedModel

FULL = Size(heads=3, double=2, single=8, width=192, height=288, words=64)
"""Single blocks to double ones, image and text tokens to width, as in klein-4B with panels of 576 × 768."""
QUICK = Size(heads=1, double=1, single=2, width=64, height=96, words=16)


def flux2_like(size: Size, dtype: torch.dtype, folder: Path) -> OpenedModel:
    """A FLUX.2-shaped model with random weights, and a small autoencoder of its kind whose batch norm does
    something. It is a base model: the caller chooses steps and guidance.
    """
    torch.manual_seed(0)
    dim = 128 * size.heads
    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=size.double,
        num_single_layers=size.single,
        num_attention_heads=size.heads,
        joint_attention_dim=5 * dim // 2,
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    vae.save_pretrained(folder / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": false}')
    backbone = load_backbone(str(folder), "cpu", "bf16" if dtype == torch.bfloat16 else "fp32")
    texts = {name: {"prompt_embeds": torch.randn(size.words, 5 * dim // 2)} for name in (PROMPT, "")}
    install(transformer.to(dtype).eval().requires_grad_(False))  # as Backbone.load_transformer leaves it
    return OpenedModel(backbone, transformer, backbone.load_autoencoder(), texts)
