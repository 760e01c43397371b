"""Find the pixels of a product photo that show the garment."""

from __future__ import annotations

import numpy as np
from PIL import Image

from triptych.errors import InputError

_NEAR = 24  # largest channel difference (of 255) that still counts as the background's colour


def garment_mask(product: Image.Image, near: int = _NEAR) -> np.ndarray:
    """Which pixels of a product photo are garment: (H, W) bool.

    A pixel is background if it has the median colour of the picture's border and is connected with the
    border. A white print on a shirt in front of white therefore stays garment, but a white shirt in front of
    white cannot be told from it. near: largest channel difference (of 255) from the border's colour.

    Raises:
        InputError: less than 1 % of the pixels would be garment.
    """
    pixels = np.asarray(product.convert("RGB")).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    plain = np.abs(pixels - np.median(border, axis=0)).max(axis=2) <= near
    # Add a ring of background around the picture, so that one connected area reaches every part of the
    # border.
    from scipy import ndimage  # takes half a second, which `--help` should not wait for

    areas, _ = ndimage.label(np.pad(plain, 1, constant_values=True))
    garment = areas[1:-1, 1:-1] != areas[0, 0]
    if garment.mean() < 0.01:
        raise InputError(
            "The garment cannot be told from the background of its front photo.",
            "Use --rough none, or paint on the person photo yourself and give it as --person.",
        )
    return garment
