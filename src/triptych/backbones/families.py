"""What is known of the model families without torch, a row for each. Their code is in a folder each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def kl_stride(config: Mapping[str, Any]) -> int:
    """Pixels to the side of a latent cell of an AutoencoderKL with this config: each level but one halves."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Family:
    """What a `Backbone` and whoever loads no torch know of a family."""

    name: str
    """Short and lower-case: what LoRA files say, and the folder of its embeddings."""
    title: str
    """Its name for people."""
    pipeline: str
    """diffusers' pipeline class, which model_index.json names."""
    prompt_tokenizer: str
    """Folder of the tokenizer that `max_sequence_length` counts by."""
    latents_per_token: int = 2
    """Latent cells along the side of a token."""
    latent_stride: Callable[[Mapping[str, Any]], int] = kl_stride
    """Pixels to the side of a latent cell, from the autoencoder's config."""
    recommended: Mapping[str, Any] = field(default_factory=dict)
    """Its `ModelSettings` where they differ from the defaults, which are FLUX.1-dev's."""


FLUX = Family("flux", "FLUX.1", pipeline="FluxPipeline", prompt_tokenizer="tokenizer_2")
SD3 = Family(
    "sd3",
    "Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    prompt_tokenizer="tokenizer_3",
    # 480 × 640 makes three panels of 0.92 megapixels together: SD3.5 was trained on one.
    recommended={
        "panel_width": 480,
        "panel_height": 640,
        "max_sequence_length": 256,
        "guidance_scale": None,
        "true_cfg_scale": 3.5,
    },
)

FAMILIES = {family.pipeline: family for family in (FLUX, SD3)}
"""The families by the pipeline class that model_index.json names."""
