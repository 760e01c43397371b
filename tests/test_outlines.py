"""Polygons around a mask: filled again they are the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.outlines import outlines


def overlap(mask: np.ndarray) -> float:
    """Intersection over union of a mask and its polygons."""
    filled = masks.polygon_mask(outlines(mask), (mask.shape[1], mask.shape[0])) >= 0.5
    return float((filled & mask).sum() / (filled | mask).sum())


@given(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 24), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_any_small_mask_is_covered_exactly(seed: int, width: int, height: int, white: float) -> None:
    """Noise: specks, holes, holes in islands in holes, pixels that touch at corners."""
    mask = np.random.default_rng(seed).random((height, width)) < white
    mask[0, 0] = True
    filled = masks.polygon_mask(outlines(mask), (width, height))
    assert np.array_equal(filled, mask.astype(np.float32))


def drawn(size: tuple[int, int]) -> Image.Image:
    """A shirt-like shape with two holes, one of which has an island, at four times the size of the mask."""
    picture = Image.new("L", (400, 600))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(120, 90), (280, 90), (390, 260), (320, 300), (300, 560), (100, 540), (90, 310)], 255)
    draw.ellipse((150, 150, 210, 260), 0)
    draw.ellipse((180, 300, 290, 480), 0)
    draw.ellipse((210, 340, 260, 400), 255)
    return picture.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(400, 600), (1024, 1536)])
def test_few_corners_cover_a_drawn_mask(size: tuple[int, int]) -> None:
    picture = drawn(size)
    mask = np.asarray(picture) > 127
    found = outlines(picture)
    assert found == outlines(mask)
    assert [len(corners) < limit for corners, limit in zip(found, (450, 60), strict=True)] == [True, True]
    assert overlap(mask) >= 0.995
    hole, island = (np.array(at) * size[0] // 400 for at in ((180, 200), (235, 370)))
    filled = masks.polygon_mask(found, size)
    assert (filled[hole[1], hole[0]], filled[island[1], island[0]]) == (0, 1)


def test_specks_do_not_become_polygons() -> None:
    mask = np.asarray(drawn((400, 600))) > 127
    speckled = mask.copy()
    speckled[5:590:70, 5:395:60] ^= True
    assert len(outlines(speckled)) == len(outlines(mask)) == 2
    assert overlap(speckled) >= 0.995


def test_what_cannot_be_outlined_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="The mask is empty"):
        outlines(Image.new("L", (9, 9), 127))
    noise = np.random.default_rng(0).random((200, 200)) < 0.5
    with pytest.raises(InputError, match="too ragged"):
        outlines(noise)
    monkeypatch.setattr("triptych.pictures.outlines.MAX_STEPS", 100)
    with pytest.raises(InputError, match="too ragged"):
        outlines(Image.new("L", (26, 26), 255))
