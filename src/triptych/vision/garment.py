"""Garment or background: the pixels of a product photo that show the garment."""

from __future__ import annotations

import numpy as np
from PIL import Image

from triptych.errors import InputError

_NEAR = 24  # largest difference of a channel (of 255) that still is the background's colour


def garment_mask(product: Image.Image, near: int = _NEAR) -> np.ndarray:
    """Which pixels of a product photo are garment: (H, W) bool.

    Background is what has the colour of the picture's border (its median) and is connected with the border;
    so a white print on a shirt in front of white stays garment, and a white shirt in front of white cannot be
    told apart. near: largest difference of a channel (of 255) that still is the border's colour.

    Raises:
        InputError: less than 1 % would be garment.
    """
    pixels = np.asarray(product.convert("RGB")).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    plain = np.abs(pixels - np.median(border, axis=0)).max(axis=2) <= near
    # One ring of background around everything, so that one area reaches every part of the border.
    from scipy import ndimage  # half a second that `--help` can do without

    areas, _ = ndimage.label(np.pad(plain, 1, constant_values=True))
    garment = areas[1:-1, 1:-1] != areas[0, 0]
    if garment.mean() < 0.01:
        raise InputError(
            "The garment cannot be told from the background of its front photo.",
            "Use --rough none, or paint on the person photo yourself and give it as --person.",
        )
    return garment
