"""The part of a picture that a model changed, told from noise."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from triptych.evaluation.rendered import held_out_items
from triptych.pictures.differences import changed_region, noise_of


def noisy(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def test_noise_is_measured_beside_a_change() -> None:
    difference = np.abs(np.random.default_rng(0).normal(0, 5, (90, 60)))
    difference[20:50, 20:50] = 120
    assert noise_of(difference) == pytest.approx(5, rel=0.3)
    assert noise_of(np.zeros((4, 4))) > 0


@pytest.mark.parametrize("deviation", [0, 2, 6])
def test_another_garment_is_found_and_nothing_else(deviation: float) -> None:
    for number, item in enumerate(held_out_items(8, seed=4)):
        before, after = item.view(2, item.other()), item.view(2)
        region = changed_region(
            noisy(after.image, deviation, number), noisy(before.image, deviation, 99 + number), 32
        )
        garment = (np.asarray(before.mask) > 127) | (np.asarray(after.mask) > 127)
        assert region[garment].mean() > 0.99, "all of both garments"
        assert region[~garment].mean() < 0.12


def test_noise_alone_is_no_change_and_a_speck_is_none_beside_a_garment() -> None:
    grey = Image.new("RGB", (96, 144), (127, 127, 127))
    assert not changed_region(grey, grey, 16).any()
    assert changed_region(noisy(grey, 6, 1), noisy(grey, 6, 2), 16).mean() < 0.01
    other = grey.copy()
    other.paste((220, 30, 30), (30, 40, 70, 100))
    other.paste((220, 30, 30), (5, 5, 12, 12))
    region = changed_region(noisy(other, 3, 1), noisy(grey, 3, 2), 16)
    assert region[45:95, 35:65].all() and not region[:20, :20].any()
