"""Masks: what is inside a polygon is never missed, what is outside is never touched."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.panels import Box, fit, place
from triptych.pictures.polygons import (
    Polygons,
    check_polygons,
    check_units,
    read_holes,
    read_outlines,
    read_polygons,
    write_polygons,
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
    assert (mask[share > 1.5 / 64] > 0).all()  # a single sample may stand on the outline itself
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


def test_preview_changes_the_inside_and_keeps_the_size() -> None:
    photo = Image.new("RGB", (300, 400), (40, 90, 160))
    shown = masks.preview(
        photo, masks.polygon_mask([[(100, 100), (200, 100), (200, 250), (100, 250)]], photo.size)
    )
    assert shown.size == photo.size
    assert shown.mode == "RGB"
    assert shown.getpixel((150, 170)) != (40, 90, 160)
    assert shown.getpixel((20, 20)) == (40, 90, 160)


def test_the_preview_tints_outlines_and_names() -> None:
    mask = np.zeros((300, 200), np.float32)
    mask[100:150, 50:150] = 1
    shown = np.asarray(masks.preview(Image.new("RGB", (200, 300), (40, 90, 160)), mask)).astype(int)
    assert np.abs(shown[100:150, 50:150] - (126, 80, 134)).max() <= 1, "0.6 of the photo, 0.4 of the tint"
    outline = np.zeros((300, 200), bool)
    outline[99:151, 49:151], outline[100:150, 50:150] = True, False
    assert (shown[outline] == 255).all()
    rest = np.argwhere((shown != (40, 90, 160)).any(axis=2) & ~outline & (mask == 0))
    assert rest[:, 0].min() >= 300 - 21 and rest[:, 1].min() >= 3, "and words in the corner"
    words = shown[279:, :].reshape(-1, 3)
    assert words.min(axis=1).max() > 200 and words.max(axis=1).min() < 60, "white with a black rim"


# --- holes, hull, hugging
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


def test_the_edge_ratio_of_a_square_on_its_edge() -> None:
    """Steps of 100 levels have slopes of 50 on both sides of the outline: 312 pixels of it, 4 corners inside
    with both slopes, 4 outside with none; beside it nothing.
    """
    mask = np.zeros((100, 100), np.float32)
    mask[30:70, 30:70] = 1
    photo = Image.fromarray(np.where(mask[..., None] > 0, np.uint8([150] * 3), np.uint8([50] * 3)))
    expected = (312 * 50 + 4 * 50 * math.sqrt(2)) / 320
    assert masks.edge_ratio(photo, mask) == pytest.approx(expected, rel=1e-4)
    assert masks.edge_ratio(photo, np.ones_like(mask)) == 0


def test_a_polygon_along_a_silhouette_hugs_and_a_free_one_does_not() -> None:
    rng = np.random.default_rng(0)
    body = [
        (300.0, 200.0),
        (380.0, 180.0),
        (470.0, 210.0),
        (560.0, 420.0),
        (520.0, 450.0),
        (460.0, 330.0),
        (470.0, 640.0),
        (290.0, 640.0),
    ]
    inside = masks.polygon_mask([body], (800, 900))
    photo = np.where(inside[..., None] > 0, (60, 80, 150), (190, 180, 170)) + rng.normal(0, 6, (900, 800, 3))
    image = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
    assert masks.edge_ratio(image, inside) > masks.HUGGING
    wobbly = [
        (x + dx, y + dy) for (x, y), (dx, dy) in zip(body, rng.normal(0, 2, (len(body), 2)), strict=True)
    ]
    assert masks.edge_ratio(image, masks.polygon_mask([wobbly], (800, 900))) > masks.HUGGING
    for free in (
        masks.repaint_mask([body], (800, 900), grow_by=40),
        masks.polygon_mask([[(250.0, 150.0), (600.0, 150.0), (600.0, 700.0), (250.0, 700.0)]], (800, 900)),
        np.ones((900, 800), np.float32),
    ):
        assert masks.edge_ratio(image, free) < masks.HUGGING
    assert masks.edge_ratio(Image.new("RGB", (800, 900)), inside) == 0


def test_holes_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"polygons": [BLOCK], "holes": [HOLE]}))
    assert read_holes(path) == [HOLE]
    write_polygons(path, [BLOCK])
    assert read_holes(path) == []
    path.write_text(json.dumps({"polygons": [BLOCK], "holes": [[1, 2]]}))
    with pytest.raises(InputError, match="'holes': hole 1 has fewer than 3"):
        read_holes(path)


# --- files and mistakes
# -----------------------------------------------------------------------------------------------


@given(polygons_)
@settings(max_examples=30, deadline=None)
def test_files_round_trip(tmp_path_factory: pytest.TempPathFactory, polygons: Polygons) -> None:
    path = tmp_path_factory.mktemp("p") / "polygon.json"
    write_polygons(path, polygons, (WIDTH, HEIGHT))
    assert read_polygons(path, (WIDTH, HEIGHT)) == polygons == read_polygons(path)
    with pytest.raises(InputError, match="drawn on a photo of"):
        read_polygons(path, (WIDTH, HEIGHT + 1))


SQUARE = [[1, 1], [5, 1], [5, 5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\x00\xff", "not UTF-8"),
        ("[]", "has no 'polygons'"),
        (json.dumps([SQUARE]), "has no 'polygons'"),
        ('{"polygons": []}', "holds no polygon"),
        ('{"polygons": 3}', "holds no polygon"),
        ('{"polygons": "abcd"}', "holds no polygon"),
        ('{"polygons": {"0": [[1, 1], [5, 1], [5, 5]]}}', "holds no polygon"),
        ('{"polygons": [[]]}', "polygon 1 has fewer than 3"),
        ('{"polygons": [[[1, 1], [2, 2]]]}', "polygon 1 has fewer than 3"),
        ('{"polygons": [[[1, 1], [5, 1], [5, 5]], [[1, 1]]]}', "polygon 2 has fewer than 3"),
        ('{"polygons": [[1, 2, 3]]}', "corner 1 of polygon 1 is not a pair"),
        ('{"polygons": [[[1, 1], [5, 1], [5, "5"]]]}', "corner 3 of polygon 1 is not a pair"),
        ('{"polygons": [[[1, 1], [5, 1], [5, true]]]}', "corner 3 of polygon 1 is not a pair"),
        ('{"polygons": [[[1, 1], [5, 1], [5, null]]]}', "corner 3 of polygon 1 is not a pair"),
        ('{"polygons": [[[1, 1], [5, 1], [5, 5, 5]]]}', "corner 3 of polygon 1 is not a pair"),
        ('{"polygons": [[[1, 1], [5, 1], [5, NaN]]]}', "corner 3 of polygon 1 is not finite"),
        ('{"polygons": [[[1, 1], [5, 1], [-Infinity, 1]]]}', "corner 3 of polygon 1 is not finite"),
        ('{"polygons": [[[1, 1], [5, 1], [1e300, 1]]]}', "corner 3 of polygon 1 is not finite"),
        ('{"polygons": [[[1, 1], [5, 1], [1' + "0" * 400 + ", 1]]]}", "corner 3 of polygon 1 is not finite"),
        ('{"polygons": [[[1, 1], [5, 1], [1' + "0" * 9000 + ", 1]]]}", "not JSON"),
        (json.dumps({"polygons": [[[1, 1]] * 100_001]}), "more than 100000"),
        (json.dumps({"polygons": [SQUARE] * 2_001}), "more than 2000 polygons"),
        (json.dumps({"polygons": SQUARE}), "one list too high"),
        (json.dumps({"polygons": [[1.5, 1, 5, 1, 5, 5]]}), "corner 1 of polygon 1 is not a pair"),
        (json.dumps({"polygons": [SQUARE], "hole": [SQUARE]}), "key 'hole'"),
        (json.dumps({"polygons": [SQUARE], "size": [[[1]]]}), "'size' that is no"),
        (json.dumps({"polygons": [SQUARE], "size": "10x10"}), "'size' that is no"),
        (
            json.dumps({"polygons": [SQUARE], "holes": [SQUARE, [[1, 2], [3, 4], [5, "6"]]]}),
            "corner 3 of hole 2",
        ),
        (json.dumps({"version": "5", "shapes": [{"points": SQUARE}]}), "has no 'polygons'.*LabelMe"),
        (json.dumps({"images": [], "annotations": []}), "has no 'polygons'.*COCO"),
        (json.dumps([{"id": 1, "segmentation": [[1, 2, 3]]}]), "has no 'polygons'.*COCO"),
        (json.dumps({"type": "FeatureCollection", "features": []}), "has no 'polygons'.*GeoJSON"),
        ('{"polygons": [[[1, 1], [5, 1], [5, 5]]]}' + " " * (8 << 20), "larger than 8 MB"),
    ],
)
def test_a_broken_file_is_a_sentence_with_a_hint(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "polygon.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_polygons(path)
    assert caught.value.hint
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InputError, match=r"^The polygon file .* cannot be read") as caught:
            read_polygons(path)
        assert caught.value.hint == "Check the path given to --polygon."
    (tmp_path / "p.json").write_text('{"x": 1}')
    with pytest.raises(InputError, match="has no 'polygons'") as caught:
        read_polygons(tmp_path / "p.json")
    assert caught.value.hint.startswith("A polygon file looks like {")


@pytest.mark.parametrize(
    "outside",
    [
        [(200, 200), (300, 200), (300, 300)],
        [(-9, 5), (-1, 5), (-1, 9)],
        [(48, 0), (60, 0), (60, 64)],
        [(0, 64), (48, 64), (20, 90)],
        [(-9, 5), (0, 5), (0, 9)],
        [(5, -9), (9, -9), (9, 0)],
    ],
)
def test_a_polygon_outside_the_photo_is_refused(outside: list[tuple[float, float]]) -> None:
    for polygons in ([outside], [[(1.0, 1.0), (9.0, 1.0), (9.0, 9.0)], outside]):
        with pytest.raises(InputError, match=f"Polygon {len(polygons)} lies outside the photo of 48×64"):
            masks.polygon_mask(polygons, (WIDTH, HEIGHT))


def test_polygons_without_area_are_refused() -> None:
    with pytest.raises(InputError, match="holds no polygon"):
        masks.polygon_mask([], (WIDTH, HEIGHT))
    with pytest.raises(InputError, match="encloses no part"):
        masks.polygon_mask([[(0.2, 0.2), (0.8, 0.8), (0.2, 0.2)]], (WIDTH, HEIGHT))
    with pytest.raises(InputError, match="encloses no part"):
        masks.polygon_mask([[(3, 3), (9, 9), (3, 3)]], (WIDTH, HEIGHT))


def test_a_polygon_larger_than_the_photo_is_cut_to_it() -> None:
    assert (
        masks.polygon_mask([[(-1e6, -1e6), (1e6, -1e6), (1e6, 1e6), (-1e6, 1e6)]], (WIDTH, HEIGHT)) == 1
    ).all()


CORNERS = np.array([(0.2, 0.3), (0.6, 0.3), (0.6, 0.8)])


@pytest.mark.parametrize(
    ("corners", "size", "sized", "words"),
    [
        (CORNERS, (768, 1024), True, "fractions"),
        (2 * CORNERS - 1, (768, 1024), False, "fractions"),
        (100 * CORNERS, (768, 1024), False, "percent"),
        (100 * CORNERS, (768, 1024), True, None),  # the file says that they are pixels
        (100 * CORNERS, (120, 160), False, None),  # a small photo
        (CORNERS[:, ::-1] * (1024, 768), (768, 1024), False, "exchanged"),
        (CORNERS * (768, 1024), (768, 1024), False, None),
        (CORNERS * (768, 1024), (384, 512), False, "beyond the photo"),
        (1000 * CORNERS, (4000, 6000), False, "thousandths"),
        (1000 * CORNERS, (4000, 6000), True, None),
        (
            CORNERS * (768, 1024) - (170, 0),
            (768, 1024),
            False,
            None,
        ),  # a little beyond the edge is how one draws
    ],
)
def test_corners_in_other_units_are_noticed(
    corners: np.ndarray, size: tuple[int, int], sized: bool, words: str | None
) -> None:
    outlines = [[(float(x), float(y)) for x, y in corners]]
    refused = words in ("fractions", "percent", "exchanged")
    if refused:
        with pytest.raises(InputError, match=words) as caught:
            check_units(outlines, size, sized=sized)
        assert caught.value.hint
    else:
        said = check_units(outlines, size, sized=sized)
        assert [words in one for one in said] == [True] if words else said == []


def right_angle(reach: float) -> Polygons:
    return [[(0.0, 0.0), (reach, 0.0), (0.0, reach)]]


@pytest.mark.parametrize(
    ("outlines", "size", "message", "hint"),
    [
        (
            right_angle(2),
            (17, 17),
            "The polygon has no corner beyond 2: these look like fractions.",
            "Corners are pixels of the photo, here of 17×17 px: multiply by them.",
        ),
        (
            right_angle(1) + right_angle(3),
            (17, 17),
            "The polygon: polygon 1 has no corner beyond 1: these look like fractions.",
            "Corners are pixels of the photo, here of 17×17 px: multiply by them.",
        ),
        (
            right_angle(100),
            (256, 256),
            "The polygon has no corner beyond 100: these look like percent.",
            "Corners are pixels of the photo, here of 256×256 px. If they are pixels, add "
            '"size": [256, 256] to the file.',
        ),
    ],
)
def test_what_other_units_are_refused_with(
    outlines: Polygons, size: tuple[int, int], message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_units(outlines, size)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("outlines", "size", "said"),
    [
        (right_angle(2), (16, 16), None),
        (right_angle(101), (256, 256), None),
        (right_angle(100), (255, 255), None),
        (right_angle(1000), (2500, 2500), "The polygon has no corner beyond 1000: are these thousandths"),
        (right_angle(1001), (2500, 2500), None),
        (right_angle(1000), (2499, 2499), None),
        ([[(-50, 10), (900, 10), (900, 900)]], (1000, 1000), None),
        ([[(-60, 10), (900, 10), (900, 900)]], (1000, 1000), "The polygon reaches 6 % of a side beyond"),
        ([[(10, -100), (700, 10), (10, 900)]], (768, 1024), "The polygon reaches 10 % of a side beyond"),
        ([[(10, 10), (700, 10), (10, 1200)]], (768, 1024), "The polygon reaches 17 % of a side beyond"),
        ([[(10, 10), (2304, 10), (10, 900)]], (768, 1024), "The polygon reaches 200 % of a side beyond"),
    ],
)
def test_where_doubt_begins(outlines: Polygons, size: tuple[int, int], said: str | None) -> None:
    found = check_units(outlines, size)
    assert len(found) == (said is not None) and (said is None or found[0].startswith(said))


def test_lists_that_are_no_polygons_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^The polygon holds no polygon"):
        check_polygons([])
    with pytest.raises(InputError, match="polygon 1 has fewer than 3"):
        check_polygons([[1, 2], [3, 4]])
    with pytest.raises(InputError, match="corner 1 of polygon 1") as caught:
        check_polygons([[1, 2, 3, 4, 5, 6]])
    assert caught.value.hint.endswith("photo. COCO's flat lists x, y, x, y … are to be cut into pairs.")
    with pytest.raises(InputError, match="corner 3 of polygon 1") as caught:
        check_polygons([[[1, 2], [3, 4], ["a", 5]]])
    assert caught.value.hint.endswith("in pixels of the photo.")
    monkeypatch.setattr("triptych.pictures.polygons.MAX_POINTS", 5)
    with pytest.raises(InputError, match="more than 5 corners"):
        check_polygons([SQUARE, SQUARE])


@pytest.mark.parametrize(("side", "fits"), [(0, False), (1, True), (999_999, True), (1_000_000, False)])
def test_a_file_says_which_photo_it_is_for(tmp_path: Path, side: int, fits: bool) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"polygons": [SQUARE], "size": [side, side], "sides": 4}))
    if not fits:
        with pytest.raises(InputError, match="'size' that is no"):
            read_outlines(path)
        return
    assert read_outlines(path, (side, side)).sized and not read_outlines(path).sized
    path.write_text(json.dumps({"polygons": [SQUARE]}))
    assert not read_outlines(path, (side, side)).sized


def test_one_outline_in_fractions_among_others_is_named() -> None:
    pixels, fractions = (
        [(float(x), float(y)) for x, y in corners] for corners in (CORNERS * (768, 1024), CORNERS)
    )
    with pytest.raises(InputError, match=r"polygon 2 has no corner .* fractions"):
        check_units([pixels, fractions], (768, 1024), sized=True)
    assert check_units([pixels, [(0.0, 0.0), (3.0, 0.0), (0.0, 3.0)]], (768, 1024)) == []


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


WHITE = np.zeros((HEIGHT, WIDTH), bool)
WHITE[5:20, 7:30] = True


@pytest.mark.parametrize(
    "mask",
    [
        WHITE,
        WHITE.astype(np.uint8) * 255,
        WHITE.astype(np.uint8),
        WHITE.astype(np.int64) * 255,
        WHITE.astype(np.uint16) * 65535,
        WHITE.astype(np.float64),
        WHITE[:, :, None].astype(np.float32),
        WHITE[None].astype(np.float16),
        np.dstack([WHITE] * 3),
        WHITE * 1.0005,
        torch.from_numpy(WHITE).long() * 255,
        Image.fromarray(WHITE.astype(np.uint16) * 65535),
        Image.fromarray(WHITE.astype(np.float32)),
        Image.fromarray(WHITE.astype(np.uint8) * 255).convert("P"),
        Image.fromarray(WHITE),
        Image.fromarray(WHITE.astype(np.uint8) * 255),
        Image.fromarray(np.dstack([WHITE.astype(np.uint8) * 255] * 3)),
        Image.fromarray(WHITE.astype(np.uint8) * 255).convert("RGBA"),
        torch.from_numpy(WHITE),
        torch.from_numpy(WHITE).bfloat16(),
        torch.from_numpy(WHITE).float()[None, None].requires_grad_(),
    ],
    ids=lambda mask: (
        f"{type(mask).__name__}-{getattr(mask, 'dtype', getattr(mask, 'mode', ''))}"
        f"-{getattr(mask, 'shape', '')}"
    ),
)
def test_a_mask_means_the_same_in_every_form(mask: Any) -> None:
    assert np.array_equal(masks.as_mask(mask, (WIDTH, HEIGHT)), WHITE.astype(np.float32))


def test_grey_values_and_narrow_photos_are_kept() -> None:
    grey = np.full((9, 1), 128, np.uint8)
    assert masks.as_mask(grey, (1, 9)).tolist() == [[np.float32(128) / np.float32(255)]] * 9
    with pytest.raises(InputError, match="photo 9 high and 2 wide") as caught:
        masks.as_mask(grey, (2, 9))
    assert caught.value.hint == "Give one value a pixel."
    with pytest.raises(InputError) as caught:
        masks.as_mask(grey, (9, 1))
    assert caught.value.hint.endswith("a pixel. Its sides are exchanged: an array is (height, width).")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (WHITE[:, :-1], "photo 64 high and 48 wide"),
        (WHITE * 1.5, "from 0 to 1.5"),
        (WHITE.astype(np.uint8) * 2, "nowhere whiter than 0.00784"),
        (WHITE.T, "exchanged"),
        (np.dstack([WHITE] * 4), "photo 64 high"),
        (np.zeros_like(WHITE), "black"),
        (WHITE.astype(np.float32) / 255, "nowhere whiter"),
        (WHITE.astype(np.float32) * 255, "from 0 to 255"),
        (WHITE.astype(np.float32) - 1, "from -1 to 0"),
        (np.where(WHITE, np.nan, 0), "nan"),
        (np.full((HEIGHT, WIDTH), "x"), "not understood"),
        (Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 9)), "transparent"),
        (None, "photo 64 high"),
        ([[0, 1], [1]], "no array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "mask",
)
def test_what_is_no_mask_is_a_sentence(mask: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        masks.as_mask(mask, (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("mask", "level"),
    [
        (Image.fromarray(WHITE.astype(np.float32) * np.float32(0.6)), 153),
        (Image.fromarray(WHITE.astype(np.uint16) * 40_000), 156),
        (Image.fromarray(WHITE.astype(np.uint8) * 200), 200),
        (WHITE * 0.5, 128),
        (WHITE * 1.0009, 255),
        (np.where(WHITE, 1, 1e-6), 255),
    ],
    ids=["float picture", "16 bits", "8 bits", "half", "rounding error", "a touch"],
)
def test_greys_of_a_mask_are_rounded_up(mask: Any, level: int) -> None:
    found = masks.mask_image(masks.as_mask(mask, (WIDTH, HEIGHT)))
    touched = isinstance(mask, np.ndarray) and mask.min() > 0
    assert np.array_equal(np.asarray(found), np.where(WHITE, level, int(touched)))
    assert masks.mask_image(np.full((1, 1), 1e-6, np.float32)).getpixel((0, 0)) == 1


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


@pytest.mark.parametrize(("side", "box"), [(100, Box(80, 40, 320, 160)), (75, Box(107, 52, 287, 142))])
def test_the_edge_ratio_by_its_definition(side: int, box: Box) -> None:
    """The mask's box with a tenth around it, as wide as the photo is; two pixels are 1 % here."""
    left, top = {100: (150, 50), 75: (160, 60)}[side]
    photo = np.random.default_rng(1).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    photo[top : top + side, left : left + side] //= 2
    mask = np.zeros((200, 400), np.float32)
    mask[top : top + side, left : left + side] = 1

    def ring(reach: int) -> np.ndarray:
        around = np.zeros((200, 400), bool)
        around[top - reach : top + side + reach, left - reach : left + side + reach] = True
        around[top + reach : top + side - reach, left + reach : left + side - reach] = False
        return around[box.top : box.bottom, box.left : box.right]

    part = photo[box.top : box.bottom, box.left : box.right].astype(float)
    slopes = np.hypot(*(np.abs(slope).max(axis=2) for slope in np.gradient(part, axis=(0, 1))))
    expected = slopes[ring(2)].mean() / (slopes[ring(12) & ~ring(4)].mean() + 1)
    assert masks.edge_ratio(Image.fromarray(photo), mask) == pytest.approx(expected, rel=1e-5)
    if side == 100:  # a larger photo is scaled down to this one
        large, larger = (np.kron(one, np.ones((3, 3, 1)[: one.ndim])) for one in (photo, mask))
        ratio = masks.edge_ratio(Image.fromarray(large.astype(np.uint8)), larger.astype(np.float32))
        assert ratio == pytest.approx(expected, rel=1e-5)
        turned = Image.fromarray(large.astype(np.uint8).swapaxes(0, 1).copy())
        assert masks.edge_ratio(turned, larger.T.astype(np.float32)) == pytest.approx(expected, rel=1e-5)
    dot = np.zeros_like(mask)
    dot[100, 200] = 1
    assert masks.edge_ratio(Image.fromarray(photo), dot) == 0, "nothing lies beside it"
    strip = np.concatenate([np.ones((2, 40), np.float32), np.zeros((2, 60), np.float32)], axis=1)
    assert masks.edge_ratio(Image.fromarray(photo[:2, :100].copy()), strip) > 0


@pytest.mark.parametrize(("size", "text", "line"), [((200, 300), 10, 1), ((525, 600), 21, 2)])
def test_the_preview_pixel_by_pixel(size: tuple[int, int], text: int, line: int) -> None:
    photo = Image.new("RGB", size, (40, 90, 162))
    mask = np.zeros(size[::-1], np.float32)
    mask[100:150, 50:150] = 1
    expected = photo.copy()
    expected.paste((255, 255, 255), (50 - line, 100 - line, 150 + line, 150 + line))
    expected.paste((126, 79, 135), (50, 100, 150, 150))
    ImageDraw.Draw(expected).text(
        (text / 2, size[1] - 1.6 * text),
        "inside the outline = repainted",
        "white",
        ImageFont.load_default(text),
        stroke_width=text // 10,
        stroke_fill="black",
    )
    assert np.array_equal(np.asarray(masks.preview(photo, mask)), np.asarray(expected))


def test_a_strip_of_a_photo_follows_no_outline() -> None:
    assert masks.edge_ratio(Image.new("RGB", (2000, 8)), np.ones((8, 2000), np.float32)) == 0.0
