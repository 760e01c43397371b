"""Polygons: their files, and the mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.polygons import (
    Polygons,
    check_polygons,
    check_units,
    read_holes,
    read_outlines,
    read_polygons,
    write_polygons,
)

WIDTH, HEIGHT = 48, 64

points = st.tuples(st.floats(-10, WIDTH + 10, width=32), st.floats(-10, HEIGHT + 10, width=32))
polygons_ = st.lists(st.lists(points, min_size=3, max_size=7), min_size=1, max_size=3)

BLOCK = [(8.0, 8.0), (40.0, 8.0), (40.0, 56.0), (8.0, 56.0)]
HOLE = [(20.0, 20.0), (30.0, 20.0), (30.0, 30.0), (20.0, 30.0)]


def test_holes_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"polygons": [BLOCK], "holes": [HOLE]}))
    assert read_holes(path) == [HOLE]
    write_polygons(path, [BLOCK])
    assert read_holes(path) == []
    path.write_text(json.dumps({"polygons": [BLOCK], "holes": [[1, 2]]}))
    with pytest.raises(InputError, match="'holes': hole 1 has fewer than 3"):
        read_holes(path)


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
        (json.dumps([{"id": 1, "segmentation": [[1, 2, 3]]}]), "has no 'polygons'.*COCO"),
        (json.dumps({"type": "FeatureCollection", "features": []}), "has no 'polygons'.*GeoJSON"),
        ('{"polygons": [[[1, 1], [5, 1], [5, 5]]]}' + " " * (32 << 20), "larger than 32 MB"),
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
            "Corners are pixels of the photo, here of 17×17 px: multiply by them, or write "
            '"units": "fractions" into a file of polygons.',
        ),
        (
            right_angle(1) + right_angle(3),
            (17, 17),
            "The polygon: polygon 1 has no corner beyond 1: these look like fractions.",
            "Corners are pixels of the photo, here of 17×17 px: multiply by them, or write "
            '"units": "fractions" into a file of polygons.',
        ),
        (
            right_angle(100),
            (256, 256),
            "The polygon has no corner beyond 100: these look like percent.",
            'Corners are pixels of the photo, here of 256×256 px. Write "units": "percent" into the file, '
            'or, if they are pixels, "size": [256, 256].',
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
