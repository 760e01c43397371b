"""Find the pixels of a product photo that show the garment."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from triptych.errors import InputError

LOOKED_AT = 512
"""Longest side in pixels at which a photo is looked at to trim it."""
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


def trimmed(product: Image.Image, margin: float) -> Image.Image:
    """The photo cut to the garment and a margin around it, as a share of the garment's longer side. The whole
    photo if the garment cannot be told from the background.
    """
    small = product.convert("RGB")
    small.thumbnail((LOOKED_AT, LOOKED_AT))
    try:
        garment = garment_mask(small)
    except InputError:
        return product
    rows, columns = (np.flatnonzero(garment.any(axis=axis)) for axis in (1, 0))
    scale = product.width / small.width
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    around = margin * max(right - left, bottom - top)
    box = (left - around, top - around, right + around, bottom + around)
    low = [max(0, math.floor(side * scale)) for side in box[:2]]
    high = [min(full, math.ceil(side * scale)) for full, side in zip(product.size, box[2:], strict=True)]
    return product.crop((*low, *high))
