"""The fast forms of the quality measures give what the plain ones give."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from triptych.pictures.quality import WINDOW, around, levels


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (60, 47)])
def test_around_is_the_filter_of_scipy(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    assert np.array_equal(around(np.maximum, values), ndimage.maximum_filter(values, WINDOW))
    assert np.array_equal(around(np.minimum, values), ndimage.minimum_filter(values, WINDOW))


@pytest.mark.parametrize("spread", [0.0, 0.4, 2.0, 40.0])
@pytest.mark.parametrize("side", [1, 9, 120])
def test_levels_are_percentiles(side: int, spread: float) -> None:
    noise = np.random.default_rng(side).normal(128, spread, (side, side + 1, 3))
    pixels = noise.clip(0, 255).astype(np.uint8)
    low, high = np.percentile(pixels.reshape(-1, 3), (0.5, 99.5), axis=0)
    varies = int(np.ptp(pixels, axis=(0, 1)).max() > 0)
    assert levels(Image.fromarray(pixels)) == max(int((high - low).max()), varies)
