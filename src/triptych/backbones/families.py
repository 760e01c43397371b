"""Facts about the model families that need no torch, one row per family. Each family's code has its own
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def kl_stride(config: Mapping[str, Any]) -> int:
    """Side of a latent cell in pixels, for an AutoencoderKL with this config: each level but one halves."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Family:
    """Facts about a family, for its `Backbone` and for code that loads no torch."""

    name: str
    """Short lower-case name, in LoRA files and as the folder name of embeddings."""
    title: str
    """Its name for people."""
    pipeline: str
    """diffusers' pipeline class, as model_index.json names it."""
    prompt_tokenizer: str
    """Subfolder of the tokenizer whose tokens `max_sequence_length` counts."""
    latents_per_token: int = 2
    """Side of a token in latent cells."""
    latent_stride: Callable[[Mapping[str, Any]], int] = kl_stride
    """Side of a latent cell in pixels, from the autoencoder's config."""
    recommended: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelSettings` that differ from the defaults, which are those of FLUX.1-dev."""


FLUX = Family("flux", "FLUX.1", pipeline="FluxPipeline", prompt_tokenizer="tokenizer_2")
SD3 = Family(
    "sd3",
    "Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    prompt_tokenizer="tokenizer_3",
    # Three panels of 480 × 640 have 0.92 megapixels together; SD3.5 was trained at one megapixel.
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
