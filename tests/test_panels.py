"""PanelLayout, fit, concatenate, split."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.panels import Box, PanelLayout, concatenate, equal_boxes, fit, place, split
from triptych.tasks.tryon import TRY_ON

GRIDS = [
    (("front", "back", "worn"), 3),
    (("front", "worn"), 2),
    (("front", "worn"), 1),
    (("front", "back", "worn"), 1),
    (("front", "back", "detail", "worn"), 2),
]
sides = st.integers(1, 400)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("roles", "columns"), GRIDS)
def test_panels_tile_the_canvas_exactly_at_every_unit(roles: tuple[str, ...], columns: int) -> None:
    layout = PanelLayout(64, 96, roles, columns)
    for unit in (1, 8, 16):
        count = np.zeros((layout.size[1] // unit, layout.size[0] // unit), int)
        for role in roles:
            box = layout.box(role, unit)
            assert (box.right - box.left, box.bottom - box.top) == (64 // unit, 96 // unit)
            count[box.top : box.bottom, box.left : box.right] += 1
            assert layout.mask([role], unit).sum() == (64 // unit) * (96 // unit)
        assert (count == 1).all()
        assert layout.mask(roles, unit).all()
        assert not layout.mask([], unit).any()


def test_reading_order() -> None:
    layout = PanelLayout(10, 20, ("a", "b", "c", "d"), 2)
    assert [layout.box(role)[:2] for role in layout.roles] == [(0, 0), (10, 0), (0, 20), (10, 20)]
    assert layout.size == (20, 40)
    assert layout.mask(["b"]).nonzero()[1].min() == 10, "in pixels, if no unit is given"


def test_layout_survives_json() -> None:
    layout = PanelLayout(48, 64, ("front", "worn"), 1)
    assert PanelLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


PLAIN = {"width": 32, "height": 48, "roles": ["front", "back", "worn"], "columns": 3}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"width": 1, "height": 65_536},
        {"width": 65_536, "height": 1},
        {"made": ["front"]},
        {"made": ["front", "worn"]},
        {"made": ["front", "back", "worn"]},
        {"roles": ["a" * 40], "columns": 1},
        {"roles": [f"r{n}" for n in range(64)], "columns": 8},
        {"roles": ["X"], "columns": 1},
    ],
)
def test_layouts_of_a_file_are_taken_up_to_the_limits(change: dict[str, Any]) -> None:
    assert PanelLayout.from_dict(PLAIN | change).to_dict() == PLAIN | change


@pytest.mark.parametrize(
    "data",
    [
        None,
        ["width", "height", "roles", "columns"],
        {name: value for name, value in PLAIN.items() if name != "columns"},
        *(PLAIN | {"width": value} for value in (0, -1, 65_537, 32.0, True, "32", None)),
        *(PLAIN | {"height": 0}, PLAIN | {"columns": 0}, PLAIN | {"columns": 2}),
        *(
            PLAIN | {"roles": value, "columns": 1}
            for value in ([], "abc", None, [f"r{n}" for n in range(65)], ["a", "a"], [1], [["a"]])
        ),
        *(
            PLAIN | {"roles": [value], "columns": 1}
            for value in ("", "a" * 41, "a/b", "a\\b", "a:b", ".a", "a\n", "a\u202e")
        ),
        *(PLAIN | {"made": value} for value in (["side"], ["worn", "side"], {"worn": 1}, "worn", None)),
    ],
)
def test_what_is_no_layout_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"layout|do not fill"):
        PanelLayout.from_dict(data)


def test_masks_of_panels_are_true_and_false() -> None:
    mask = PanelLayout.from_dict(PLAIN).mask(["worn"], 16)
    assert mask.dtype == bool and mask.tolist() == [[False] * 4 + [True] * 2] * 3


def test_panels_of_a_canvas_that_they_do_not_divide_differ_by_a_pixel() -> None:
    layout = PanelLayout(1, 1, ("a", "b", "c", "d", "e", "f"), 3)
    boxes = equal_boxes((10, 7), layout)
    assert boxes[:3] == [(0, 0, 3, 3), (3, 0, 6, 3), (6, 0, 10, 3)]
    assert boxes[3:] == [(0, 3, 3, 7), (3, 3, 6, 7), (6, 3, 10, 7)]
    assert all(isinstance(side, int) for box in boxes for side in box)
    assert equal_boxes((30, 40), PanelLayout(30, 40, ("a",), 1)) == [Box(0, 0, 30, 40)]


def test_layout_refuses_what_is_no_grid() -> None:
    for roles, columns in [(("a", "b", "c"), 2), (("a", "a"), 2), (("a",), 0)]:
        with pytest.raises((AssertionError, ZeroDivisionError)):
            PanelLayout(16, 16, roles, columns)


def test_seams_must_fall_on_the_grid() -> None:
    assert TRY_ON.layout(576, 768).check(16) == TRY_ON.layout(576, 768)
    for size in [(570, 768), (576, 770), (8, 8)]:
        with pytest.raises(InputError, match="grid of 16 px") as caught:
            TRY_ON.layout(*size).check(16)
        width, height = map(int, caught.value.hint.removeprefix("Use ").removesuffix(" instead.").split("×"))
        TRY_ON.layout(width, height).check(16)  # the advice works
        assert max(abs(width - size[0]), abs(height - size[1])) <= 8, "and is the nearest"


@given(sides, sides, st.integers(8, 200), st.integers(8, 200))
def test_place_keeps_the_aspect_and_touches_two_edges(w: int, h: int, width: int, height: int) -> None:
    left, top, fitted_w, fitted_h = place((w, h), width, height)
    assert fitted_w == width or fitted_h == height  # as large as possible
    assert left >= 0 and top >= 0 and left + fitted_w <= width and top + fitted_h <= height
    assert abs(2 * left - (width - fitted_w)) <= 1 and abs(2 * top - (height - fitted_h)) <= 1  # centred
    scale = min(width / w, height / h)
    assert abs(fitted_w - max(1, w * scale)) <= 0.5 and abs(fitted_h - max(1, h * scale)) <= 0.5


@given(sides, sides)
@settings(max_examples=25)
def test_fit_shows_the_whole_picture_and_extends_its_edges(w: int, h: int) -> None:
    picture = noise(w, h)
    panel = np.asarray(fit(picture, 48, 64))
    left, top, fw, fh = place((w, h), 48, 64)
    inner = np.asarray(picture.resize((fw, fh), Image.Resampling.LANCZOS))
    assert (panel[top : top + fh, left : left + fw] == inner).all()  # nothing cropped
    assert (panel[:top] == panel[top]).all() and (panel[top + fh :] == panel[top + fh - 1]).all()
    assert (panel[:, :left] == panel[:, left : left + 1]).all()
    assert (panel[:, left + fw :] == panel[:, left + fw - 1 : left + fw]).all()


def test_all_four_corners_of_wide_and_tall_pictures_survive() -> None:
    for size in [(300, 100), (100, 300)]:
        picture = Image.new("RGB", size, "white")
        marks = {
            (0, 0): "red",
            (size[0] - 20, 0): "green",
            (0, size[1] - 20): "blue",
            (size[0] - 20, size[1] - 20): "black",
        }
        for corner, colour in marks.items():
            picture.paste(colour, (*corner, corner[0] + 20, corner[1] + 20))
        panel = fit(picture, 60, 60)
        left, top, w, h = place(size, 60, 60)
        corners = [(left, top), (left + w - 1, top), (left, top + h - 1), (left + w - 1, top + h - 1)]
        assert [panel.getpixel(corner) for corner in corners] == [
            (255, 0, 0),
            (0, 128, 0),
            (0, 0, 255),
            (0, 0, 0),
        ]


def test_plain_background_stays_plain() -> None:
    assert fit(Image.new("RGB", (50, 200), (250, 249, 248)), 96, 64).getcolors() == [
        (96 * 64, (250, 249, 248))
    ]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_fit_always_gives_rgb(mode: str) -> None:
    assert fit(Image.new(mode, (20, 30)), 16, 16).mode == "RGB"


@pytest.mark.parametrize(("roles", "columns"), GRIDS)
def test_split_undoes_concatenate(roles: tuple[str, ...], columns: int) -> None:
    layout = PanelLayout(32, 48, roles, columns)
    fitting = [noise(32, 48, seed) for seed in range(len(roles))]
    canvas = concatenate(fitting, layout)
    assert canvas.size == layout.size
    assert [panel.tobytes() for panel in split(canvas, layout)] == [picture.tobytes() for picture in fitting]
    odd = [noise(100, 37, seed) for seed in range(len(roles))]
    panels = split(concatenate(odd, layout), layout)
    assert [panel.tobytes() for panel in panels] == [fit(picture, 32, 48).tobytes() for picture in odd]


def test_split_refuses_another_size() -> None:
    with pytest.raises(InputError, match="its layout"):
        split(Image.new("RGB", (97, 48)), TRY_ON.layout(32, 48))
