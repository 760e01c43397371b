"""What is known of a model family without torch: each family's folder says it in `about.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def kl_stride(config: Mapping[str, Any]) -> int:
    """Pixels to the side of a latent cell of an AutoencoderKL with this config: each level but one halves."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Family:
    """A row for each family. A `Backbone` has the same row as `family`."""

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
