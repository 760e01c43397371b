"""The shapes in files of annotation programs, as polygons in the units of the file."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from triptych.errors import InputError
from triptych.pictures.outlines import outlines
from triptych.pictures.polygons import MAX_COORDINATE, Polygon, Polygons

_ROUND = 64  # corners of a circle
MAX_PIXELS = 200_000_000


class Shape(NamedTuple):
    """A labelled area; a point or a line has no polygons."""

    label: str
    polygons: Polygons


def number(value: Any) -> float:
    """A number of a file as a float. Raises ValueError if it is none, or far outside any photo."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_COORDINATE:
        raise ValueError("no number of a photo")
    return float(value)


def _box(left: float, top: float, width: float, height: float) -> Polygon:
    return [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]


def _ellipse(x: float, y: float, across: float, down: float) -> Polygon:
    angles = (2 * math.pi * step / _ROUND for step in range(_ROUND))
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


def _pairs(flat: list[Any]) -> Polygon:
    values = [number(value) for value in flat]
    return list(zip(values[::2], values[1::2], strict=True))


def _unreadable(title: str, what: str) -> InputError:
    return InputError(
        f"The {title} file holds {what}, which is not read.",
        "Draw it as a polygon; or export it as a picture, white where it is to be repainted, for --mask.",
    )


# --- LabelMe
# ------------------------------------------------------------------------------------------------------------


def of_labelme(item: Any, size: tuple[int, int]) -> list[Shape]:
    """A polygon, a rectangle (two opposite corners), a circle (its centre, and a point of its rim)."""
    kind = item.get("shape_type") or "polygon"
    points: list[Any] = [(number(x), number(y)) for x, y in item["points"]]
    label = str(item.get("label") or "")
    if kind == "mask":
        raise _unreadable("LabelMe", "a mask")
    if kind in ("rectangle", "circle") and len(points) == 2:
        (x, y), (u, v) = points
        if kind == "rectangle":
            return [Shape(label, [_box(x, y, u - x, v - y)])]
        radius = math.hypot(u - x, v - y)
        return [Shape(label, [_ellipse(x, y, radius, radius)])]
    encloses = len(points) > 2 and kind in ("polygon", "rectangle", "oriented_rectangle")
    return [Shape(label, [points] if encloses else [])]


# --- COCO
# ------------------------------------------------------------------------------------------------------------


def of_coco(item: Any, size: tuple[int, int]) -> list[Shape]:
    """Polygons as flat lists x, y, x, y …; runs of pixels as plain numbers; without either, the box."""
    label, about = item
    parts = about.get("segmentation")
    if isinstance(parts, dict):
        return [Shape(label, _of_runs(parts, size))]
    if not any(parts or []):
        box = about.get("bbox")
        return [Shape(label, [_box(*map(number, box))] if box else [])]
    return [Shape(label, [_pairs(part) for part in parts if part])]


def _of_runs(parts: dict[str, Any], size: tuple[int, int]) -> Polygons:
    """Run lengths down the columns of a mask, black and white by turns, beginning with black."""
    counts, (height, width) = parts["counts"], parts["size"]
    if isinstance(counts, str):
        raise _unreadable("COCO", "a compressed mask (RLE)")
    whole = width * height
    if (width, height) != size or whole > MAX_PIXELS or not all(0 <= run <= whole for run in counts):
        raise ValueError("runs of another picture")
    runs = np.array(counts, dtype=np.int64)
    if runs.sum() != whole:
        raise ValueError("runs that do not fill the picture")
    white = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    return list(outlines(white)) if white.any() else []


# --- Label Studio
# ------------------------------------------------------------------------------------------------------------


def of_label_studio(item: Any, size: tuple[int, int]) -> list[Shape]:
    """A polygon; a rectangle, which is turned about its top left corner; an ellipse, about its centre."""
    names = [value for key, value in item.items() if key.endswith("labels") and isinstance(value, list)]
    label = ", ".join(str(name) for name in (names[0] if names else []))
    if "rle" in item:
        raise _unreadable("Label Studio", "brush strokes (RLE)")
    if number(item.get("image_rotation") or 0) % 360:
        raise InputError(
            "The Label Studio file was drawn on a photo that was turned there.",
            "Save the photo upright first.",
        )
    if "points" in item:
        points = [(number(x), number(y)) for x, y in item["points"]]
        return [Shape(label, [points] if len(points) > 2 else [])]
    if "radiusX" in item:
        x, y, across, down = (number(item[key]) for key in ("x", "y", "radiusX", "radiusY"))
        return [Shape(label, [_turned(_ellipse(x, y, across, down), (x, y), item, size)])]
    if "width" in item and "height" in item and "x" in item:
        x, y, width, height = (number(item[key]) for key in ("x", "y", "width", "height"))
        return [Shape(label, [_turned(_box(x, y, width, height), (x, y), item, size)])]
    return [Shape(label, [])] if "x" in item else []  # a point; the rest is about the picture as a whole


def _turned(corners: Polygon, about: tuple[float, float], item: Any, size: tuple[int, int]) -> Polygon:
    """Corners in percent, turned clockwise about a point, as on the picture of that size."""
    angle = math.radians(number(item.get("rotation") or 0))
    aspect, (x, y) = size[0] / size[1], about
    cosine, sine = math.cos(angle), math.sin(angle)
    return [
        (x + (u - x) * cosine - (v - y) * sine / aspect, y + (u - x) * aspect * sine + (v - y) * cosine)
        for u, v in corners
    ]


# --- YOLO
# ------------------------------------------------------------------------------------------------------------


def is_yolo(text: str) -> bool:
    """Whether the first line with words looks like a line of a YOLO file: a class, then numbers."""
    first = next((line.split() for line in text.splitlines() if line.strip()), [])
    try:
        return len(first) > 4 and first[0].isdigit() and all(math.isfinite(float(word)) for word in first[1:])
    except ValueError:
        return False


def of_yolo(item: Any, size: tuple[int, int]) -> list[Shape]:
    """A class, then the corners x y x y …; or the box: its centre, width and height. A confidence may stand
    behind them.
    """
    label, *words = item
    values = [number(float(word)) for word in words]
    if len(values) in (4, 5):
        x, y, width, height = values[:4]
        return [Shape(label, [_box(x - width / 2, y - height / 2, width, height)])]
    if len(values) < 6:
        raise ValueError("too few numbers")
    return [Shape(label, [_pairs(values[: len(values) // 2 * 2])])]
