"""Masks: what is inside a polygon is never missed, what is outside is never touched."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.panels import Box, fit, place
from triptych.pictures.polygons import (
    Polygons,
)
from triptych.sampling import token_sets

WIDTH, HEIGHT = 48, 64

points = st.tuples(st.floats(-10, WIDTH + 10, width=32), st.floats(-10, HEIGHT + 10, width=32))
polygons_ = st.lists(st.lists(points, min_size=3, max_size=7), min_size=1, max_size=3)


def draw(polygons: Polygons, scale: int = 1) -> np.ndarray:
    """The mask, or hypothesis looks for other polygons where one of these covers nothing."""
    try:
        return masks.polygon_mask(polygons, (WIDTH * scale, HEIGHT * scale))
    except InputError:
        assume(False)
        raise


def winding(polygons: Polygons, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie inside any polygon, by the angle the outline sweeps around them: an independent
    definition.
    """
    inside = np.zeros(x.shape, bool)
    for corners in polygons:
        total = np.zeros(x.shape)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            a, b = (x0 - x) + 1j * (y0 - y), (x1 - x) + 1j * (y1 - y)
            total += np.angle(b * np.conj(a))
        inside |= np.abs(total) > math.pi
    return inside


@given(polygons_)
@example([[(0.0, 0.0), (0.0, 1.0), (0.0625, 37.0)]])
@settings(max_examples=40, deadline=None)
def test_coverage_agrees_with_points_inside_and_never_misses_one(polygons: Polygons) -> None:
    mask = draw(polygons)
    assert mask.dtype == np.float32
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask.min() >= 0
    assert mask.max() <= 1
    y, x = np.mgrid[: HEIGHT * 8, : WIDTH * 8] / 8
    samples = winding(polygons, x + 0.37 / 8, y + 0.5 / 8).reshape(HEIGHT, 8, WIDTH, 8)
    share = samples.mean(axis=(1, 3))
    # A single sample may stand on the outline itself; and a sliver may be thinner than a step of 1/256 pixel.
    missed = np.repeat(np.repeat((mask == 0) & (share > 1.5 / 64), 8, 0), 8, 1)
    x, y = x[missed] + 0.37 / 8, y[missed] + 0.5 / 8
    beside = winding(polygons, x - 1 / 480, y) | winding(polygons, x + 1 / 480, y)
    assert not (winding(polygons, x, y) & beside).any()
    assert np.abs(mask - share).max() <= 0.5
    assert np.abs(mask - share).mean() < 0.02


def test_area_is_exact_for_plain_shapes() -> None:
    box = masks.polygon_mask([[(2, 3), (10, 3), (10, 20), (2, 20)]], (30, 30))
    assert set(np.unique(box)) == {0.0, 1.0}
    assert box.sum() == 8 * 17
    assert (box[3:20, 2:10] == 1).all()
    half = masks.polygon_mask([[(2.5, 3.25), (10.5, 3.25), (10.5, 20), (2.5, 20)]], (30, 30))
    assert half.sum() == pytest.approx(8 * 16.75, rel=0.01)
    disc = [
        [(50 + 40 * math.cos(a / 50 * math.pi), 50 + 40 * math.sin(a / 50 * math.pi)) for a in range(100)]
    ]
    assert masks.polygon_mask(disc, (100, 100)).sum() == pytest.approx(math.pi * 40**2, rel=0.003)


def test_an_outline_that_crosses_itself_counts_whole() -> None:
    star: Polygons = [
        [(50 + 40 * math.cos(4 * math.pi * k / 5), 50 + 40 * math.sin(4 * math.pi * k / 5)) for k in range(5)]
    ]
    assert masks.polygon_mask(star, (100, 100))[50, 50] == 1
    bow: Polygons = [[(0, 0), (8, 8), (8, 0), (0, 8)]]
    assert masks.polygon_mask(bow, (8, 8))[4, 0] == 1 == masks.polygon_mask(bow, (8, 8))[4, 7]


def test_several_polygons_are_their_union_without_a_seam() -> None:
    left, right = (
        [(1.0, 1.0), (5.5, 1.0), (5.5, 9.0), (1.0, 9.0)],
        [(5.5, 1.0), (9.0, 1.0), (9.0, 9.0), (5.5, 9.0)],
    )
    whole = masks.polygon_mask([[(1.0, 1.0), (9.0, 1.0), (9.0, 9.0), (1.0, 9.0)]], (10, 10))
    assert (masks.polygon_mask([left, right], (10, 10)) == whole).all()
    assert (masks.polygon_mask([left, right[::-1], left], (10, 10)) == whole).all()


@given(polygons_, st.randoms())
@settings(max_examples=40, deadline=None)
def test_direction_start_and_order_do_not_matter(polygons: Polygons, random: Any) -> None:
    mask = draw(polygons)
    turned = [corners[1:] + corners[:1] for corners in polygons]
    assert (draw(turned) == mask).all()
    assert (draw([corners[::-1] for corners in polygons]) == mask).all()
    random.shuffle(turned)
    assert (draw(turned) == mask).all()


@given(polygons_, st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_scale_consistency(polygons: Polygons, scale: int) -> None:
    small = draw(polygons)
    large = draw([[(x * scale, y * scale) for x, y in corners] for corners in polygons], scale)
    averaged = large.reshape(HEIGHT, scale, WIDTH, scale).mean(axis=(1, 3))
    # Eight lines a pixel against 8 · scale: nearly level spikes differ, areas hardly do.
    assert np.abs(averaged - small).mean() < 0.01
    assert np.abs(averaged - small).max() <= 0.5


@given(polygons_, st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=40, deadline=None)
def test_latent_cells_never_under_cover(polygons: Polygons, stride: int) -> None:
    mask = draw(polygons)
    cells = token_sets.latent_mask(mask, stride)
    assert cells.shape == (HEIGHT // stride, WIDTH // stride)
    assert cells.dtype == bool
    pixels = np.kron(cells, np.ones((stride, stride), bool))
    assert pixels[mask > 0].all()
    for row, column in np.argwhere(cells):  # and never more than needed
        assert mask[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride].any()


@given(st.integers(0, 2**32 - 1), st.integers(0, 90))
@settings(max_examples=30, deadline=None)
def test_grow_is_the_largest_value_nearby(seed: int, pixels: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.where(random.random((17, 23)) < 0.03, random.random((17, 23)), 0).astype(np.float32)
    expected = [
        [
            mask[max(0, y - pixels) : y + pixels + 1, max(0, x - pixels) : x + pixels + 1].max()
            for x in range(23)
        ]
        for y in range(17)
    ]
    assert (masks.grow(mask, pixels) == np.array(expected)).all()


@given(polygons_, st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_feather_is_one_inside_and_exactly_zero_out_of_reach(polygons: Polygons, pixels: int) -> None:
    mask = draw(polygons)
    soft = masks.feather(mask, pixels)
    assert soft.dtype == np.float32
    assert soft.shape == mask.shape
    assert (soft >= mask).all()
    assert soft.max() <= 1
    assert (soft[mask == 1] == 1).all()
    assert (soft[masks.grow(mask, pixels) == 0] == 0).all()
    if pixels == 0:
        assert (soft == mask).all()


@pytest.mark.parametrize("pixels", [2, 7, 16])
def test_feather_falls_evenly_over_the_whole_reach(pixels: int) -> None:
    mask = np.zeros((40, 80), np.float32)
    mask[:, :20] = 1
    row = masks.feather(mask, pixels)[20]
    assert (np.diff(row) <= 0).all()
    assert row[19] == 1
    assert row[20 + pixels - 2] > 0
    assert (row[20 + pixels :] == 0).all()
    assert (masks.feather(mask, pixels) == row).all(), "a mask that reaches the border stays whole there"


@given(polygons_, st.integers(0, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_composite_is_bit_identical_outside_and_rounds_between(
    polygons: Polygons, pixels: int, seed: int
) -> None:
    soft = masks.feather(draw(polygons), pixels)
    a, b = np.random.default_rng(seed).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    result = np.asarray(masks.composite(Image.fromarray(a), Image.fromarray(b), soft))
    assert (result[soft == 0] == a[soft == 0]).all()
    assert (result[soft == 1] == b[soft == 1]).all()
    exact = (1 - soft[..., None].astype(float)) * a + soft[..., None] * b
    assert np.abs(result - exact).max() <= 0.5 + 1e-6


def test_a_large_photo_is_composed_without_touching_the_rest() -> None:
    size = (4000, 6000)
    photo = Image.radial_gradient("L").resize(size).convert("RGB")
    soft = masks.feather(
        masks.polygon_mask([[(1000, 1000.5), (3000, 1200), (2800, 4000), (1200, 3900)]], size), 40
    )
    result = np.asarray(masks.composite(photo, Image.new("RGB", size, (1, 2, 3)), soft))
    before = np.asarray(photo)
    assert (result[soft == 0] == before[soft == 0]).all()
    assert (result[2000, 2000] == (1, 2, 3)).all()
    for untouched in (np.s_[:960], np.s_[4040:], np.s_[:, :960], np.s_[:, 3040:]):
        assert (result[untouched] == before[untouched]).all()


@given(polygons_, st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_a_mask_survives_a_png(polygons: Polygons, pixels: int) -> None:
    soft = masks.feather(draw(polygons), pixels)
    image = masks.mask_image(soft)
    assert image.mode == "L"
    assert image.size == (WIDTH, HEIGHT)
    assert (np.asarray(image).astype(np.float32) / np.float32(255) == soft).all()


@given(polygons_, st.floats(0.2, 5), st.floats(0, 2))
@settings(max_examples=100, deadline=None)
def test_crop_box_holds_the_mask_and_lies_inside(polygons: Polygons, aspect: float, margin: float) -> None:
    mask = draw(polygons)
    box = masks.crop_box(mask, aspect, margin)
    assert 0 <= box.left < box.right <= WIDTH
    assert 0 <= box.top < box.bottom <= HEIGHT
    outside = mask.copy()
    outside[box.top : box.bottom, box.left : box.right] = 0
    assert not outside.any()
    width, height = box.right - box.left, box.bottom - box.top
    if width < WIDTH and height < HEIGHT:
        assert (width - 1) / (height + 1e-3) <= aspect + 1e-3
        assert width / (height - 1 + 1e-3) >= aspect - 1e-3


def test_crop_box_examples() -> None:
    mask = np.zeros((100, 200), np.float32)
    mask[40:60, 90:110] = 1
    assert masks.crop_box(mask, 1, 0) == Box(90, 40, 110, 60)
    assert masks.crop_box(mask, 1, 0.5) == Box(80, 30, 120, 70)
    assert masks.crop_box(mask, 0.5, 0) == Box(90, 30, 110, 70)
    mask[:] = 0
    mask[0:20, 0:20] = 1
    assert masks.crop_box(mask, 1, 0.5) == Box(0, 0, 40, 40), "shifted into the photo"
    assert masks.crop_box(mask, 0.1, 0) == Box(0, 0, 20, 100), "cut to the photo"
    with pytest.raises(InputError, match="empty"):
        masks.crop_box(np.zeros((5, 5), np.float32), 1)


@given(polygons_, st.integers(8, 90), st.integers(8, 90))
@settings(max_examples=80, deadline=None)
def test_a_fitted_mask_never_under_covers(polygons: Polygons, width: int, height: int) -> None:
    mask = draw(polygons)
    box = masks.crop_box(mask, width / height, 0.1)
    panel = token_sets.fit_mask(mask, box, width, height)
    assert panel.shape == (height, width)
    assert panel.dtype == np.float32
    assert panel.max() <= 1
    part = mask[box.top : box.bottom, box.left : box.right]
    left, top, w, h = place((part.shape[1], part.shape[0]), width, height)
    for y, x in np.argwhere(part > 0):  # every panel pixel whose area the source pixel overlaps
        x0, x1 = (
            left + math.floor(x * w / part.shape[1] + 1e-9),
            left + math.ceil((x + 1) * w / part.shape[1] - 1e-9),
        )
        y0, y1 = (
            top + math.floor(y * h / part.shape[0] + 1e-9),
            top + math.ceil((y + 1) * h / part.shape[0] - 1e-9),
        )
        assert (panel[y0:y1, x0:x1] > 0).all()
    panel[top : top + h, left : left + w] = 0
    assert not panel.any(), "padding is kept"


def test_a_fitted_mask_lies_where_the_fitted_photo_shows_it() -> None:
    mask = np.zeros((300, 200), np.float32)
    mask[100:200, 50:150] = 1
    box = Box(20, 60, 180, 240)
    panel = token_sets.fit_mask(mask, box, 64, 96)
    seen = np.asarray(fit(masks.mask_image(mask).crop(box), 64, 96))[..., 0] / 255
    assert np.abs(panel - seen).mean() < 0.02
    assert (panel[seen > 0.6] > 0.6).all()


def test_a_fitted_mask_is_the_mean_of_what_falls_on_a_pixel_and_at_least_one_step_of_255() -> None:
    mask = np.zeros((8, 100), np.float32)
    mask[:4, :50], mask[7, 99] = 1, 0.001
    panel = token_sets.fit_mask(mask, Box(0, 0, 100, 8), 50, 4)
    assert (panel[:2, :25] == 1).all() and (panel[:2, 25:] == 0).all()
    assert panel[3, 49] == np.float32(1) / np.float32(255) and panel.sum() == 50 + panel[3, 49]
    soft = token_sets.fit_mask(np.array([[1, 0], [0, 0]], np.float32), Box(0, 0, 2, 2), 1, 1)
    assert soft[0, 0] == pytest.approx(0.25, abs=0.5 / 255)


# --- holes and hull
# ---------------------------------------------------------------------------------------------

BLOCK = [(8.0, 8.0), (40.0, 8.0), (40.0, 56.0), (8.0, 56.0)]
HOLE = [(20.0, 20.0), (30.0, 20.0), (30.0, 30.0), (20.0, 30.0)]


def test_holes_are_kept_however_far_the_polygon_grows() -> None:
    plain = masks.repaint_mask([BLOCK], (WIDTH, HEIGHT), grow_by=3)
    assert plain.sum() == (32 + 6) * (48 + 6)
    holed = masks.repaint_mask([BLOCK], (WIDTH, HEIGHT), holes=[HOLE], grow_by=3)
    assert (holed[20:30, 20:30] == 0).all()
    assert plain.sum() - holed.sum() == 100
    with pytest.raises(InputError, match="holes cover all"):
        masks.repaint_mask([HOLE], (WIDTH, HEIGHT), holes=[BLOCK])


@given(polygons_)
@settings(max_examples=40, deadline=None)
def test_the_hull_holds_the_polygon_and_every_segment_between_its_corners(polygons: Polygons) -> None:
    mask = draw(polygons[:1])
    hull = masks.repaint_mask(polygons[:1], (WIDTH, HEIGHT), expand="hull")
    assert (hull >= mask).all()
    for x0, y0 in polygons[0]:
        for x1, y1 in polygons[0]:
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            near = hull[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
            if 1 <= x < WIDTH - 1 and 1 <= y < HEIGHT - 1 and mask.sum() > WIDTH:
                assert near.any()


def test_each_polygon_has_its_own_hull() -> None:
    corner = [(1.0, 1.0), (9.0, 1.0), (9.0, 3.0), (3.0, 3.0), (3.0, 9.0), (1.0, 9.0)]
    far = [(x + 30, y + 40) for x, y in corner]
    hull = masks.repaint_mask([corner, far], (WIDTH, HEIGHT), expand="hull")
    assert hull[4, 4] == hull[44, 34] == 1
    assert hull[25, 20] == 0


def test_hulls_of_small_and_of_flat_outlines() -> None:
    small = [(0.0, 0.0), (0.5, 0.0), (0.2, 0.2), (0.5, 0.5), (0.0, 0.5)]
    assert {*masks._hull(small)} == {(0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5)}
    flat = [(0.0, 0.0), (2.0, 2.0), (1.0, 1.0)]
    assert masks._hull(flat) == flat


def test_by_itself_a_polygon_is_neither_grown_nor_filled_to_its_hull() -> None:
    corner = [(1.0, 1.0), (9.0, 1.0), (9.0, 3.0), (3.0, 3.0), (3.0, 9.0), (1.0, 9.0)]
    assert masks.repaint_mask([corner], (WIDTH, HEIGHT)).sum() == 8 * 2 + 2 * 6
    mask = np.zeros((100, 100), np.float32)
    mask[40:60, 40:60] = 1
    assert masks.crop_box(mask, 1.0) == Box(35, 35, 65, 65), "a quarter of its side around it"


# --- what lies outside the photo, and what takes too long
# -----------------------------------------------------------------------------------------------


def test_a_polygon_larger_than_the_photo_is_cut_to_it() -> None:
    assert (
        masks.polygon_mask([[(-1e6, -1e6), (1e6, -1e6), (1e6, 1e6), (-1e6, 1e6)]], (WIDTH, HEIGHT)) == 1
    ).all()


@pytest.mark.parametrize(
    "outlines",
    [
        [[(i % 192, 0 if i % 2 else 288) for i in range(100_000)]],
        [[(x, 0), (x + 9, 0), (x + 9, 288), (x, 288)] for x in range(2_000)],
    ],
    ids=["zigzag", "many"],
)
def test_outlines_that_would_take_minutes_are_refused_at_once(outlines: Polygons) -> None:
    began = time.process_time()
    with pytest.raises(InputError, match="too often"):
        masks.polygon_mask(outlines, (192, 288))
    assert time.process_time() - began < 2


@pytest.mark.parametrize("reach", [12, 287], ids=["traced", "spikes"])
def test_an_outline_with_many_corners_takes_a_second(reach: int) -> None:
    """As many corners as may be, traced around a mask, and as many crossings as may be."""
    count = 100_000 if reach == 12 else 1_200
    outline = [(192 * i / count, 0 if i % 2 else reach / 4) for i in range(count)]
    began = time.process_time()
    assert masks.polygon_mask([outline], (192, 288)).any()
    assert time.process_time() - began < 3


def test_a_hole_outside_is_called_a_hole() -> None:
    with pytest.raises(InputError, match="Hole 1 lies outside"):
        masks.repaint_mask(
            [[(1, 1), (9, 1), (9, 9)]], (WIDTH, HEIGHT), holes=[[(200, 1), (209, 1), (209, 9)]]
        )


def test_what_lies_left_of_the_photo_is_cut_off_exactly() -> None:
    def column(left: float, right: float) -> float:
        mask = masks.polygon_mask([[(left, 1), (right, 1), (right, 9), (left, 9)]], (WIDTH, HEIGHT))
        assert mask[:, 1:].sum() == 0
        return float(mask[5, 0])

    assert column(-5, 0.5) == column(0, 0.5) == np.float32(128) / np.float32(255)
    assert column(-5, 1 / 256) > 0


def test_scan_lines_are_counted_where_the_outline_is(monkeypatch: pytest.MonkeyPatch) -> None:
    low: Polygons = [[(1, 60), (9, 60), (9, 64), (1, 64)]]
    monkeypatch.setattr(masks, "MAX_CROSSINGS", 2 * 8 * 4)
    assert masks.polygon_mask(low, (WIDTH, HEIGHT)).sum() == 8 * 4
    monkeypatch.setattr(masks, "MAX_CROSSINGS", 2 * 8 * 4 - 1)
    with pytest.raises(InputError, match="The polygons run up and down the photo too often"):
        masks.polygon_mask(low, (WIDTH, HEIGHT))


def test_a_soft_edge_is_two_means_of_a_mask_grown_by_half() -> None:
    mask = np.zeros((40, 60), np.float32)
    mask[:, :20] = 1
    grown = np.zeros(60)
    grown[:24] = 1  # seven pixels: grown by four, and means over two and one pixel to either side
    expected = np.convolve(np.convolve(grown, np.full(5, 1 / 5), "same"), np.full(3, 1 / 3), "same")
    assert np.abs(masks.feather(mask, 7)[20] - expected)[5:].max() < 2 / 255
