"""An In-Context LoRA data set of somebody else's: pictures of several panels on one canvas, captions beside
them.

Such sets say nowhere how many rows and columns a canvas has, so whoever imports one says it. Their sides need
not fall on a model's grid: every panel is fitted to it on its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from triptych.data.captions import in_house, marker, markers_of
from triptych.errors import ConfigError, InputError
from triptych.pictures.panels import MAX_PANELS, PLAIN_ROLE, Box, PanelLayout, equal_boxes

NUMBER = "{n}"
"""Stands for a panel's number in a marker."""
_MARKER = re.compile(r"([\[<({][A-Za-z][A-Za-z _-]{0,20})1([\])}>])")


def read_grid(text: str) -> tuple[int, int]:
    """(rows, columns) of `3x1`.

    Raises:
        ConfigError: it says none, or there is only one panel, or more than can be.
    """
    found = re.fullmatch(r"\s*(\d{1,2})\s*[xX×]\s*(\d{1,2})\s*", text)
    rows, columns = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 < rows * columns <= MAX_PANELS:
        raise ConfigError(
            f"--layout {text!r} is no grid of panels.",
            "Say ROWSxCOLUMNS: 3x1 for three panels below each other, 1x3 for three side by side.",
        )
    return rows, columns


def read_roles(
    roles: Sequence[str], made: Sequence[str], count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(roles, those that are made): `panel1` … without names, all of them where none is said to be made.

    Raises:
        ConfigError: too few or too many roles, no different plain words, or made ones that are none of them.
    """
    names = tuple(roles) or tuple(f"panel{number}" for number in range(1, count + 1))
    if len(names) != count or len({*names}) != count or not all(map(PLAIN_ROLE.fullmatch, names)):
        raise ConfigError(
            f"The roles {', '.join(names)} do not name {count} panels.",
            "Give one word of letters and digits for each panel in reading order: --roles logo,bag,poster.",
        )
    if unknown := [role for role in made if role not in names]:
        raise ConfigError(f"{', '.join(unknown)} is no panel here.", f"Roles: {', '.join(names)}.")
    return names, tuple(role for role in names if role in made) or names


def read_markers(given: Sequence[str], count: int) -> tuple[str, ...]:
    """The markers of the panels, of `[SCENE-{n}]` or of one for each panel; empty for those of the house.

    Raises:
        ConfigError: neither, or markers that are no different plain text.
    """
    if not given:
        return ()
    several = len(given) == 1 and NUMBER in given[0]
    named = [given[0].replace(NUMBER, str(n)) for n in range(1, count + 1)] if several else list(given)
    if named == [marker(number) for number in range(1, count + 1)]:
        return ()
    if not (markers := markers_of(named, count)):
        raise ConfigError(
            f"--marker {' '.join(given)} does not mark {count} panels.",
            'Give one with {n} for the number, such as --marker "[SCENE-{n}]", or one for each panel.',
        )
    return markers


def markers_in(caption: str, count: int) -> str:
    """What seem to be the markers of a caption, such as `[SCENE-{n}]`; empty if not every panel has one."""
    for found in _MARKER.finditer(in_house(caption, ())):
        template = f"{found[1]}{NUMBER}{found[2]}"
        if all(template.replace(NUMBER, str(number)) in caption for number in range(1, count + 1)):
            return template
    return ""


class Fitted(NamedTuple):
    """A canvas on the grid, its layout, and what was done to its panels."""

    canvas: Image.Image
    layout: PanelLayout
    done: str


class Wanted(NamedTuple):
    """What a canvas is to become. width, height: of a panel in pixels, None for the picture's own."""

    rows: int
    columns: int
    roles: tuple[str, ...]
    made: tuple[str, ...]
    stride: int
    width: int | None = None
    height: int | None = None


def fitted(canvas: Image.Image, wanted: Wanted) -> Fitted:
    """The canvas with every panel fitted to the grid on its own, so that no seam moves into a panel.

    A panel keeps its own pixels, and loses those at its edges that are too many for a multiple of `stride`.
    Where another size is wanted, the middle of it is scaled.

    Raises:
        InputError: panels smaller than the grid.
    """
    rows, columns = wanted.rows, wanted.columns
    boxes = equal_boxes(canvas.size, PanelLayout(1, 1, wanted.roles, columns, wanted.made))
    own = canvas.width // columns, canvas.height // rows
    if min(own) < wanted.stride:
        raise InputError(f"its panels are {own[0]}×{own[1]} px, less than the grid of {wanted.stride} px")
    size = _size(own, wanted)
    layout = PanelLayout(*size, wanted.roles, columns, wanted.made)
    scaled = wanted.width is not None or wanted.height is not None
    result = Image.new("RGB", layout.size)
    for role, box in zip(layout.roles, boxes, strict=True):
        middle = _middle(box, size, whole=not scaled)
        if scaled:
            panel = canvas.resize(size, Image.Resampling.LANCZOS, middle)
        else:
            panel = canvas.crop(Box(*map(int, middle)))
        result.paste(panel, layout.box(role)[:2])
    if size == own:
        return Fitted(result, layout, f"{own[0]}×{own[1]} px as they are")
    left, top, right, bottom = _middle(Box(0, 0, *own), size, whole=not scaled)
    lost = 1 - (right - left) * (bottom - top) / (own[0] * own[1])
    words = f"{'scaled' if scaled else 'cropped'} to {size[0]}×{size[1]} px"
    cut = f", {lost:.1%} of each cut off at its edges" if lost > 0 else ""
    return Fitted(result, layout, f"{own[0]}×{own[1]} px {words}{cut}")


def _size(own: tuple[int, int], wanted: Wanted) -> tuple[int, int]:
    """Width and height of a panel on the grid. A side that is not wanted follows the other, or is its own."""
    if wanted.width is None and wanted.height is None:
        return own[0] // wanted.stride * wanted.stride, own[1] // wanted.stride * wanted.stride
    width = (
        wanted.width or max(1, round(own[0] * (wanted.height or 0) / own[1] / wanted.stride)) * wanted.stride
    )
    height = wanted.height or max(1, round(own[1] * width / own[0] / wanted.stride)) * wanted.stride
    return width, height


def _middle(box: Box, size: tuple[int, int], *, whole: bool) -> tuple[float, float, float, float]:
    """The largest part in the middle of `box` of the shape of `size`; with `whole`, of that very size."""
    width, height = box.right - box.left, box.bottom - box.top
    scale = 1.0 if whole else min(width / size[0], height / size[1])
    part = size[0] * scale, size[1] * scale
    left, top = box.left + (width - part[0]) / 2, box.top + (height - part[1]) / 2
    if whole:
        left, top = int(left), int(top)
    return left, top, left + part[0], top + part[1]


def name_of(path: Path) -> str:
    """The id of a picture: its name, without what would hide it or lead out of its folder."""
    return re.sub(r"[\s/\\:]+", "-", path.stem).lstrip(".") or "picture"
