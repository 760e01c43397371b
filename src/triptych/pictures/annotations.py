"""Polygons out of the files of annotation programs: LabelMe, COCO, Label Studio and YOLO.

A file may come from anybody: its size and its numbers are bounded, and what cannot be read is one sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from triptych.errors import InputError
from triptych.pictures import annotation_shapes as shapes
from triptych.pictures.annotation_shapes import Shape
from triptych.pictures.polygons import (
    MAX_POLYGONS,
    Outlines,
    Polygons,
    check_polygons,
    check_units,
    outlines_in,
    read_json,
    read_polygon_text,
    relative,
    units_of,
)


class Drawing(NamedTuple):
    """What a file holds about one picture. name: its path or address, as in the file. size: (width, height),
    if the file says it. items: its shapes, in the words of the file.
    """

    name: str
    size: tuple[int, int] | None
    items: list[Any]


class Format(NamedTuple):
    """How a program writes polygons. units: of its numbers. sees: whether data is of this format. drawings:
    the pictures in the data. shapes: those of an item, on a picture of (width, height).
    """

    title: str
    units: str
    sees: Callable[[Any], bool]
    drawings: Callable[[Any], list[Drawing]]
    shapes: Callable[[Any, tuple[int, int]], list[Shape]]


def read_annotations(
    path: Path, size: tuple[int, int], photo: str = "", labels: str = ""
) -> tuple[Outlines, list[str]]:
    """The polygons and holes in a file of any known format, in pixels of the photo; and warnings.

    Args:
        size: (width, height) of the upright photo. photo: the name of its file, which says which picture of
            several is meant. labels: names of the shapes to take, with commas between them; needed if there
            are several names.

    Raises:
        InputError: the file cannot be read, is of no known format, or was drawn on another photo; nothing in
            it is about the photo, or has the labels; or its numbers do not fit its units.
    """
    path = Path(path)
    text = read_polygon_text(path)
    data = text if shapes.is_yolo(text) else read_json(text, path)
    kind = next((kind for kind in FORMATS if kind.sees(data)), None)
    if kind is None:
        own = outlines_in(data, path, size)
        if labels:
            raise InputError(f"{path} has no labels.", "Leave --polygon-label out.")
        return own, check_units([*own.polygons, *own.holes], size, str(path), sized=own.sized)
    try:
        drawing, warnings = _of_photo(kind.drawings(data), photo, path)
        whole = drawing.size or size
        if len(drawing.items) > MAX_POLYGONS:
            raise InputError(
                f"{path} has more than {MAX_POLYGONS} shapes on that photo.", "Keep those to repaint."
            )
        found = [shape for item in drawing.items for shape in kind.shapes(item, whole)]
    # What these find in the file may be anything.
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} looks like a {kind.title} file, but cannot be read as one.", "Export it again."
        ) from error
    chosen = _labelled([shape for shape in found if shape.polygons], labels, path, drawing)
    if flat := sum(not shape.polygons for shape in found):
        warnings.append(f"{path}: {flat} point{'s' * (flat > 1)} or lines enclose nothing, and are left out.")
    polygons = check_polygons([corners for shape in chosen for corners in shape.polygons], str(path))
    pixels = _in_pixels(polygons, kind, drawing, size, str(path))
    return Outlines(pixels, [], True), warnings + check_units(pixels, size, str(path), sized=True)


# --- which picture, which shapes
# ------------------------------------------------------------------------------------------------------------


def _of_photo(drawings: list[Drawing], photo: str, path: Path) -> tuple[Drawing, list[str]]:
    """The drawing on a photo, by the name of its file; a single one is taken whatever its name, with a
    warning.
    """
    if not drawings:
        raise InputError(f"{path} names no picture.", "Export it again.")
    named = [one for one in drawings if _plain(one.name) == _plain(photo)]
    named = named or [one for one in drawings if Path(_plain(one.name)).stem == Path(_plain(photo)).stem]
    if len(drawings) == 1:
        other = photo and drawings[0].name and not named
        told = f"{path} was drawn on {_shown(drawings[0].name)}, by its name another photo than {photo}."
        return drawings[0], [told] if other else []
    there = _listed([_plain(one.name) for one in drawings])
    if not photo:
        raise InputError(
            f"{path} holds {len(drawings)} pictures, and the photo has no name.",
            f"Give a file with one picture. It holds {there}.",
        )
    if len(named) != 1:
        raise InputError(
            f"{path} holds {photo} {len(named)} times." if named else f"{path} holds nothing about {photo}.",
            f"It holds {there}: the photo must have the name of one of them.",
        )
    return named[0], []


def _plain(name: str) -> str:
    """The name of a picture's file out of a path or an address, as it was before Label Studio or Roboflow put
    something before or behind it.
    """
    name = re.split(r"[/\\=]", unquote(name))[-1].casefold()
    name = re.sub(r"^[0-9a-f]{8}-(?=.)", "", name)
    return re.sub(r"^(.+)_(jpe?g|png|webp|bmp|tiff?)\.rf\.\w+\.\w+$", r"\1.\2", name)


def _labelled(found: list[Shape], labels: str, path: Path, drawing: Drawing) -> list[Shape]:
    """The shapes with one of the labels; all, if they have the same one."""
    if not found:
        of = f" on {_shown(_plain(drawing.name))}" if drawing.name else ""
        raise InputError(f"{path} holds no polygon{of}.", "Draw one around what is to be repainted.")
    counts = Counter(shape.label for shape in found)
    there = _listed([f"{label} ({count})" for label, count in counts.items()])
    if not labels:
        if len(counts) > 1:
            raise InputError(
                f"{path} has shapes with several labels: {there}.",
                "Say which are repainted, such as --polygon-label dress, or --polygon-label top,skirt.",
            )
        return found
    wanted = [label.strip().casefold() for label in labels.split(",") if label.strip()]
    missing = [label for label in wanted if label not in {one.casefold() for one in counts}]
    if missing or not wanted:
        raise InputError(
            f"{path} has no label {_shown(missing[0] if missing else labels)}.", f"It has {there}."
        )
    return [shape for shape in found if shape.label.casefold() in wanted]


def _listed(names: list[str]) -> str:
    return ", ".join(map(_shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _shown(name: str) -> str:
    """A foreign word, safe to print."""
    return name[:60] if name.isprintable() else ascii(name[:60])


# --- pixels
# ------------------------------------------------------------------------------------------------------------


def _in_pixels(
    polygons: Polygons, kind: Format, drawing: Drawing, size: tuple[int, int], name: str
) -> Polygons:
    """Polygons as pixels of the photo of `size`.

    Raises:
        InputError: they were drawn on a picture of another shape, or the numbers show other units.
    """
    width, height = drawing.size or size
    # A side of a picture that was scaled is rounded.
    if abs(width * size[1] - height * size[0]) > max(width, height, *size):
        turned = (width, height) == size[::-1]
        raise InputError(
            f"{name} was drawn on a picture of {width}×{height} px, this photo has {size[0]}×{size[1]}.",
            "Its sides are exchanged: the program did not turn the photo. Save it upright, and draw again."
            if turned
            else "Draw it on the photo that is to be repainted, or on a copy of the same shape.",
        )
    said = f"{kind.title} files have"
    if kind.units != "pixels":
        return relative(polygons, kind.units, size, name, said)
    looks = units_of(polygons)
    if (looks == "percent" and min(width, height) >= 256) or (
        looks == "fractions" and min(width, height) > 16
    ):
        raise InputError(
            f"{name} has all corners in one corner of the photo: these look like {looks}, and {said} pixels.",
            'Export it again; or write {"polygons": …, "units": "' + looks + '"} by hand.',
        )
    x_scale, y_scale = size[0] / width, size[1] / height
    return [[(x * x_scale, y * y_scale) for x, y in corners] for corners in polygons]


# --- formats
# ------------------------------------------------------------------------------------------------------------


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """A size as a file declares it; None if it does not."""
    if not width or not height:
        return None
    width, height = (int(shapes.number(side)) for side in (width, height))
    if width < 1 or height < 1:
        raise ValueError("a side without length")
    return width, height


def _labelme(data: Any) -> list[Drawing]:
    """One picture. Corners are pixels."""
    size = _size(data.get("imageWidth"), data.get("imageHeight"))
    return [Drawing(str(data.get("imagePath") or ""), size, list(data["shapes"]))]


def _coco(data: Any) -> list[Drawing]:
    """All pictures of a data set. Corners are pixels."""
    names = {one["id"]: str(one["name"]) for one in data.get("categories") or []}
    items: dict[Any, list[Any]] = {}
    for one in data["annotations"]:
        label = names.get(one.get("category_id"), str(one.get("category_id", "")))
        items.setdefault(one["image_id"], []).append((label, one))
    return [
        Drawing(
            str(one["file_name"]),
            _size(one.get("width"), one.get("height")),
            items.get(one["id"], []),
        )
        for one in data["images"]
    ]


_RESULTS = ("annotations", "completions", "predictions")


def _sees_label_studio(data: Any) -> bool:
    first = data[0] if isinstance(data, list) and data else data
    return isinstance(first, dict) and (
        ("data" in first and any(key in first for key in _RESULTS)) or bool(_short_results(first))
    )


def _short_results(task: dict[str, Any]) -> list[Any]:
    """The shapes in a task of Label Studio's short form, JSON-MIN."""
    lists = [value for value in task.values() if isinstance(value, list)]
    return [one for value in lists for one in value if isinstance(one, dict) and "original_width" in one]


def _label_studio(data: Any) -> list[Drawing]:
    """All pictures of an export. Corners are percent of the picture's sides."""
    drawings = []
    for task in data if isinstance(data, list) else [data]:
        source = task.get("data", task)
        names = [value for value in source.values() if isinstance(value, str)]
        name = next((one for one in names if re.search(r"\.\w{3,4}$", one)), next(iter(names), ""))
        # Later work replaces what was there before; a suggestion of a model is better than nothing.
        given = [[one for one in task.get(key) or [] if not one.get("was_cancelled")] for key in _RESULTS]
        results: list[Any] = next((group[-1]["result"] for group in given if group), [])
        merged: dict[Any, dict[str, Any]] = {}  # a shape and its label may be two results with one id
        for number, one in enumerate(results):
            if isinstance(one.get("value"), dict):
                merged.setdefault(one.get("id", number), {}).update({**one, **one["value"]})
        items = list(merged.values()) or _short_results(task)
        sizes = [_size(one.get("original_width"), one.get("original_height")) for one in items]
        drawings.append(Drawing(name, next(filter(None, sizes), None), items))
    return drawings


def _yolo(text: str) -> list[Drawing]:
    """One picture, a line for each shape. Corners are fractions of the picture's sides."""
    return [Drawing("", None, [line.split() for line in text.splitlines() if line.strip()])]


def _has_lists(*keys: str) -> Callable[[Any], bool]:
    return lambda data: isinstance(data, dict) and all(isinstance(data.get(key), list) for key in keys)


FORMATS = (
    Format("LabelMe", "pixels", _has_lists("shapes"), _labelme, shapes.of_labelme),
    Format("COCO", "pixels", _has_lists("images", "annotations"), _coco, shapes.of_coco),
    Format("Label Studio", "percent", _sees_label_studio, _label_studio, shapes.of_label_studio),
    Format("YOLO", "fractions", lambda data: isinstance(data, str), _yolo, shapes.of_yolo),
)
"""Each has rows of its own in tests/test_annotations.py and in docs/tryon.md."""
