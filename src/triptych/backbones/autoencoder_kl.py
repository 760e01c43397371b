"""AutoencoderKL, shared by several families; only the numbers in its config differ.

Legend: B batch, C latent channels, H and W latent rows and columns.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from triptych.backbones.contract import Autoencoder
from triptych.backbones.families import kl_stride
from triptych.compute.convolutions import exact_convolutions


class KLAutoencoder(Autoencoder):
    """AutoencoderKL that applies the shift and scale of its config."""

    model_class = AutoencoderKL

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        vae.enable_slicing()  # one picture after another: a batch takes more memory and no less time
        self.stride = kl_stride(vae.config)
        self.scale, self.shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with exact_convolutions():
            posterior = self.vae.encode(pixels_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist
        return (posterior.mean.float() - self.shift) * self.scale, posterior.std.float() * self.scale

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        latents = latents_BCHW.to(self.vae.device, torch.float32) / self.scale + self.shift
        with exact_convolutions():
            return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)
