"""Imports foreign In-Context LoRA data sets: pictures of several panels on one canvas, with captions.

Such sets do not state the rows and columns of a canvas, so the user states them. Panel sizes need not fit a
model's grid: every panel is fitted to it on its own.
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
"""Placeholder for a panel's number in a marker."""
_MARKER = re.compile(r"([\[<({][A-Za-z][A-Za-z _-]{0,20})1([\])}>])")


def read_grid(text: str) -> tuple[int, int]:
    """(rows, columns) of `3x1`.

    Raises:
        ConfigError: the text is no grid, has only one panel, or has too many.
    """
    found = re.fullmatch(r"\s*(\d{1,2})\s*[xX×]\s*(\d{1,2})\s*", text)
    rows, columns = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 < rows * columns <= MAX_PANELS:
        raise ConfigError(
            f"--layout {text!r} is no grid of panels." if text.strip() else "No --layout is given.",
            "Say ROWSxCOLUMNS: 3x1 for three panels below each other, 1x3 for three side by side. The folder "
            "above train/ and test/ of VITON-HD, or of DressCode or Garments2Look, needs none.",
        )
    return rows, columns


def read_roles(
    roles: Sequence[str], made: Sequence[str], count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(roles, generated roles). Without names the roles are `panel1` …; by default all are generated.

    Raises:
        ConfigError: too few or too many roles, roles that are not distinct plain words, or unknown generated
            roles.
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
    """The markers of the panels, from one pattern such as `[SCENE-{n}]` or one marker per panel; empty for
    the house format.

    Raises:
        ConfigError: neither form, or markers that are not distinct plain text.
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
    """The pattern of the markers in a caption, such as `[SCENE-{n}]`; empty if not every panel has one."""
    for found in _MARKER.finditer(in_house(caption, ())):
        template = f"{found[1]}{NUMBER}{found[2]}"
        if all(template.replace(NUMBER, str(number)) in caption for number in range(1, count + 1)):
            return template
    return ""


class Fitted(NamedTuple):
    """A canvas on the grid, its layout, and a description of the change to its panels."""

    canvas: Image.Image
    layout: PanelLayout
    done: str


class Wanted(NamedTuple):
    """The wanted form of a canvas. width, height: of a panel in pixels, None for the picture's own."""

    rows: int
    columns: int
    roles: tuple[str, ...]
    made: tuple[str, ...]
    stride: int
    width: int | None = None
    height: int | None = None


def fitted(canvas: Image.Image, wanted: Wanted) -> Fitted:
    """Fit every panel of the canvas to the grid on its own, so that no seam moves into a panel.

    By default a panel keeps its own pixels, less those at its edges beyond a multiple of `stride`. If another
    size is wanted, the middle of the panel is scaled.

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
    """Width and height of a panel on the grid. A side without a wanted size follows the other, or keeps its
    own.
    """
    if wanted.width is None and wanted.height is None:
        return own[0] // wanted.stride * wanted.stride, own[1] // wanted.stride * wanted.stride
    width = (
        wanted.width or max(1, round(own[0] * (wanted.height or 0) / own[1] / wanted.stride)) * wanted.stride
    )
    height = wanted.height or max(1, round(own[1] * width / own[0] / wanted.stride)) * wanted.stride
    return width, height


def _middle(box: Box, size: tuple[int, int], *, whole: bool) -> tuple[float, float, float, float]:
    """The largest part in the middle of `box` with the aspect of `size`; with `whole`, with exactly that
    size.
    """
    width, height = box.right - box.left, box.bottom - box.top
    scale = 1.0 if whole else min(width / size[0], height / size[1])
    part = size[0] * scale, size[1] * scale
    left, top = box.left + (width - part[0]) / 2, box.top + (height - part[1]) / 2
    if whole:
        left, top = int(left), int(top)
    return left, top, left + part[0], top + part[1]


def name_of(path: Path) -> str:
    """The id of a picture: its file name, without characters that would hide it or leave its folder."""
    return re.sub(r"[\s/\\:]+", "-", path.stem).lstrip(".") or "picture"
