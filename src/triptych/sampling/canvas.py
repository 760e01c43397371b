"""Pictures ↔ pixels ↔ latents.

Legend: B batch, C channels, H and W latent rows and columns of the whole canvas; of pixels, their rows and
columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.pictures.panels import PanelLayout
from triptych.sampling import token_sets
from triptych.sampling.opened import Models
from triptych.sampling.options import Sampling


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size → (B, 3, H, W) float32 in [−1, 1]."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [−1, 1] → RGB pictures."""
    array = (
        ((pixels_BCHW.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return [Image.fromarray(one) for one in array]


def decoded_panel(models: Models, latents_BCHW: Tensor, layout: PanelLayout, role: str) -> list[Image.Image]:
    """One panel of each canvas, decoded alone: a third of the work, and no colour of a known panel runs in at
    its edge.

    Raises:
        ModelError: latents or pixels that are not finite.
    """
    left, top, right, bottom = layout.box(role, models.autoencoder.stride)
    latents = models.finite(latents_BCHW[:, :, top:bottom, left:right])
    return to_images(models.finite(models.autoencoder.decode(latents)))


def left_out(
    canvases: Sequence[Image.Image], layout: PanelLayout, models: Models, sampling: Sampling
) -> Tensor | None:
    """The tokens of given panels that show background on every canvas, if they are to be left out."""
    if not sampling.drop_background:
        return None
    stride = models.backbone.settings.stride
    sets = [token_sets.background_of(canvas, layout, layout.given, stride) for canvas in canvases]
    return torch.from_numpy(np.logical_and.reduce(sets))
