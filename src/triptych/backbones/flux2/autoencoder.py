"""AutoencoderKLFlux2, with its 2×2 patches and the normalisation by its batch norm's statistics.

Legend: B batch, C latent channels (four per channel of the autoencoder), H and W rows and columns of patches.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from triptych.backbones.contract import Autoencoder
from triptych.backbones.families import flux2_stride
from triptych.compute.convolutions import exact_convolutions


def patchify(cells_BCHW: Tensor) -> Tensor:
    """(B, C/4, 2H, 2W) → (B, C, H, W): the cells of a 2×2 patch become channels."""
    b, c, h, w = cells_BCHW.shape
    return (
        cells_BCHW.view(b, c, h // 2, 2, w // 2, 2)
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(b, 4 * c, h // 2, w // 2)
    )


def unpatchify(latents_BCHW: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    b, c, h, w = latents_BCHW.shape
    return (
        latents_BCHW.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
    )


class Flux2Autoencoder(Autoencoder):
    """AutoencoderKLFlux2 as Flux2KleinPipeline uses it: (x − mean) / √(variance + ε) by channel."""

    model_class = AutoencoderKLFlux2

    def __init__(self, vae: AutoencoderKLFlux2) -> None:
        self.vae = vae
        vae.enable_slicing()  # one picture after another: a batch takes more memory and no less time
        self.stride = flux2_stride(vae.config)
        self.mean = vae.bn.running_mean.float().view(1, -1, 1, 1)
        self.std = (vae.bn.running_var.float().view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with exact_convolutions():
            posterior = self.vae.encode(pixels_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist
        mean, std = patchify(posterior.mean.float()), patchify(posterior.std.float())
        return (mean - self.mean) / self.std, std / self.std

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        cells = unpatchify(latents_BCHW.to(self.vae.device, torch.float32) * self.std + self.mean)
        with exact_convolutions():
            return self.vae.decode(cells.to(self.vae.dtype)).sample.float().clamp(-1, 1)
