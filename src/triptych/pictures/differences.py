"""The part of a picture that a model changed: where it differs from another picture by more than noise."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

LOW, HIGH = 5.0, 8.0
"""Differences in standard deviations of the noise. A changed region consists of differences above the first,
connected with one above the second (hysteresis thresholding; Canny 1986, section VI).
"""
NOISE = (1.5, 8.0)
"""Bounds of the noise's standard deviation, of 255 levels: two equal pictures have none, and a picture that
was drawn anew everywhere would hide a change.
"""
LEAST_SHARE = 0.1
"""Regions smaller than this share of the largest one are noise too."""


def noise_of(difference: np.ndarray) -> float:
    """Standard deviation of the noise in a difference (H, W) of which less than half is a change: the median
    absolute deviation of normal noise is 0.6745 of it.
    """
    return float(np.clip(np.median(difference) / 0.6745, *NOISE))


def changed_region(made: Image.Image, kept: Image.Image, cell: int) -> np.ndarray:
    """The changed region of two pictures of one size, (H, W) bool.

    made: the model's picture. kept: what it was made from, after the same autoencoder, so that the
    autoencoder's own error is no change. cell: side of the model's token in pixels; the region's gaps of up
    to three quarters of a token are closed, its holes filled, its edge an eighth further out.
    """
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in (made, kept)]
    smooth = ndimage.gaussian_filter(pixels[0] - pixels[1], (cell / 12, cell / 12, 0))
    difference = np.abs(smooth).max(axis=2)
    noise = noise_of(difference)
    parts, _ = ndimage.label(difference > LOW * noise)
    strong = np.unique(parts[difference > HIGH * noise])
    region = np.isin(parts, strong[strong > 0])
    reach = max(1, round(cell * 3 / 8))
    region = ndimage.binary_closing(np.pad(region, 2 * reach), iterations=reach)
    region = ndimage.binary_fill_holes(region[2 * reach : -2 * reach, 2 * reach : -2 * reach])
    parts, count = ndimage.label(region)
    if not count:
        return region
    sizes = np.bincount(parts.ravel())[1:]
    region = np.isin(parts, 1 + np.flatnonzero(sizes >= LEAST_SHARE * sizes.max()))
    return ndimage.binary_dilation(region, iterations=max(1, cell // 8))
