"""The autoencoder in FLUX.2's class, with the first pocket's trained weights.

One token is a patch of 2 x 2 latents (8 pixels): 32 channels, normalised by the batch norm's running
statistics, as Flux2KleinPipeline does it.

Shapes: pictures uint8 (B, H, W, 3); latents_BCHW (B, 32, H/8, W/8). The numbers are the shipped model's;
`recipes.pocket.card` has another autoencoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2

from recipes.pocket.autoencoder import to_images_BCHW, to_pictures
from recipes.pocket.state import autocast
from triptych.backbones.flux2.autoencoder import patchify, unpatchify
from triptych.pocket import checkpoint_path

CHANNELS, CELL = 32, 8
"""Channels of a token, and its side in pixels."""


def converted_autoencoder(folder: Path | None = None) -> AutoencoderKLFlux2:
    """Return the shipped autoencoder in FLUX.2's class; its statistics are still 0 and 1."""
    first = AutoencoderKL.from_pretrained(folder or checkpoint_path() / "vae", dtype=torch.float32)
    model = AutoencoderKLFlux2(
        down_block_types=first.config.down_block_types,
        up_block_types=first.config.up_block_types,
        block_out_channels=first.config.block_out_channels,
        layers_per_block=first.config.layers_per_block,
        latent_channels=first.config.latent_channels,
        norm_num_groups=first.config.norm_num_groups,
        sample_size=first.config.sample_size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    missing, unexpected = model.load_state_dict(first.state_dict(), strict=False)
    assert all(name.startswith("bn.") for name in missing) and not unexpected
    return model.eval()


class KleinCodec:
    """The autoencoder between uint8 pictures and tokens' latents."""

    def __init__(self, model: AutoencoderKLFlux2) -> None:
        """Use a model with its statistics."""
        self.model = model.eval().to(memory_format=torch.channels_last)

    @classmethod
    def trained(cls, folder: Path) -> KleinCodec:
        """Load the autoencoder of a build folder or of a pipeline."""
        return cls(AutoencoderKLFlux2.from_pretrained(folder / "vae", dtype=torch.float32))

    @property
    def mean(self) -> torch.Tensor:
        """Mean of each channel of a token, (1, C, 1, 1)."""
        return self.model.bn.running_mean.float().view(1, -1, 1, 1)

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation of each channel of a token, (1, C, 1, 1)."""
        return (self.model.bn.running_var.float().view(1, -1, 1, 1) + self.model.config.batch_norm_eps).sqrt()

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """Return normalised latents_BCHW."""
        images = to_images_BCHW(pictures, self.model.device).to(memory_format=torch.channels_last)
        with autocast(images.device):
            latents = self.model.encode(images).latent_dist.mode()
        return (patchify(latents.float().contiguous()) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents_BCHW: torch.Tensor) -> np.ndarray:
        """Return the pictures of normalised latents."""
        latents = unpatchify(latents_BCHW * self.std + self.mean)
        with autocast(latents.device):
            return to_pictures(self.model.decode(latents).sample)
