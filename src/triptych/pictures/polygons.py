"""Polygons around the repainted area of a photo: their checks, files and units.

Corners are (x, y) in pixels of the upright photo; (0, 0) is the outer corner of the top left pixel.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych.errors import InputError
from triptych.store.files import read_text, write_json

Polygon = list[tuple[float, float]]
"""Corners (x, y); it is closed implicitly."""
Polygons = list[Polygon]
"""Several polygons mean their union."""

MAX_POINTS = 100_000  # a hand-drawn outline has tens, an outline traced around a mask thousands
MAX_POLYGONS = 2_000
MAX_BYTES = 32 << 20  # annotation programs write the photo, or many photos' polygons, into one file
MAX_COORDINATE = 1e6
_FORM = '{"polygons": [[[x, y], [x, y], [x, y]]]}, in pixels of the photo.'
_FORMAT = f"A polygon file looks like {_FORM}"
_KEYS = ("polygons", "holes", "size", "units")

# Top-level keys in the files of other programs, and the advice for each.
_OTHERS = {
    "segmentation": "It looks like one annotation out of a COCO file: give the whole file, or put its "
    "'segmentation', as pairs, into",
    "regions": "It looks like a VGG Image Annotator file: put its points, as pairs, into",
    "_via_img_metadata": "It looks like a VGG Image Annotator file: put its points, as pairs, into",
    "result": "It looks like one annotation out of a Label Studio file: give the whole file, or put its "
    "points into",
    "coordinates": "It looks like GeoJSON: put its 'coordinates' into",
    "features": "It looks like GeoJSON: put its 'coordinates' into",
}


class Outlines(NamedTuple):
    """The content of a polygon file: repainted area, kept area inside it, and whether the file names the size
    of its photo.
    """

    polygons: Polygons
    holes: Polygons
    sized: bool


def check_polygons(value: Any, name: str = "The polygon", noun: str = "polygon") -> Polygons:
    """`value` as `Polygons`, if it is a non-empty sequence of polygons with at least three (x, y) pairs of
    finite numbers.

    Raises:
        InputError: it is not; the message begins with `name` and names the wrong polygon and corner.
    """
    if not _is_list(value) or len(value) == 0:
        raise InputError(
            f"{name} holds no polygon.", "Draw at least one outline around what is to be repainted."
        )
    if len(value) > MAX_POLYGONS:
        raise InputError(
            f"{name} has more than {MAX_POLYGONS} polygons.", "Keep those around what is to be repainted."
        )
    if len(value) > 2 and all(_is_pair(corner) for corner in value):
        raise InputError(
            f"{name}: its corners stand one list too high.",
            f"One polygon is a list in a list, too. {_FORMAT}",
        )
    polygons: Polygons = []
    points = 0
    for number, corners in enumerate(value, 1):
        if not _is_list(corners) or len(corners) < 3:
            raise InputError(f"{name}: {noun} {number} has fewer than 3 corners.", _FORMAT)
        points += len(corners)
        if points > MAX_POINTS:
            raise InputError(
                f"{name} has more than {MAX_POINTS} corners.",
                "Simplify the outline; a few dozen corners are plenty.",
            )
        polygons.append([])
        for index, corner in enumerate(corners, 1):
            if not _is_pair(corner):
                flat = (
                    " COCO's flat lists x, y, x, y … are to be cut into pairs." if _is_number(corner) else ""
                )
                raise InputError(
                    f"{name}: corner {index} of {noun} {number} is not a pair of numbers.", _FORMAT + flat
                )
            # Compared before the conversion: float() of a huge int overflows. Comparisons with NaN are false.
            if not all(-MAX_COORDINATE <= v <= MAX_COORDINATE for v in corner):
                raise InputError(
                    f"{name}: corner {index} of {noun} {number} is not finite or far outside any photo.",
                    _FORMAT,
                )
            polygons[-1].append((float(corner[0]), float(corner[1])))
    return polygons


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _is_pair(value: Any) -> bool:
    return _is_list(value) and len(value) == 2 and all(map(_is_number, value))


# --- Units
# ------------------------------------------------------------------------------------------------------------

UNITS = {"fractions": 1.0, "percent": 100.0}
"""What the sides of the photo count in each unit that is relative to them; the other unit is pixels."""


def relative(polygons: Polygons, units: str, size: tuple[int, int], name: str, said: str) -> Polygons:
    """Polygons in fractions or percent of the sides of a photo of `size` (width, height), as pixels of it.

    Args:
        said: who says that they are in these units: `YOLO files have`.

    Raises:
        InputError: the numbers show other units.
    """
    looks = units_of(polygons)
    if looks != units:
        raise InputError(
            f"{name} has {_reach(polygons)}: these look like {looks}, and {said} {units}.",
            "Export it again, or correct its units.",
        )
    width, height = (side / UNITS[units] for side in size)
    return [[(x * width, y * height) for x, y in corners] for corners in polygons]


def units_of(polygons: Polygons) -> str:
    """`fractions`, `percent` or `pixels`: what the largest number looks like. Pixels may be of any size, so
    the first two are a guess.
    """
    reach = max(abs(side) for corners in polygons for corner in corners for side in corner)
    # A little beyond the edge is how one draws.
    return next((units for units, side in UNITS.items() if reach <= 1.05 * side), "pixels")


def _reach(polygons: Polygons) -> str:
    reach = max(abs(side) for corners in polygons for corner in corners for side in corner)
    return f"no corner beyond {reach:g}"


def check_units(
    polygons: Polygons, size: tuple[int, int], name: str = "The polygon", *, sized: bool = False
) -> list[str]:
    """Warnings about corners that may not be in pixels of a photo of `size` (width, height).

    Args:
        sized: the file itself says that it was drawn on a photo of this size, so all corners may lie in one
            corner of the photo.

    Raises:
        InputError: fractions, percentages, or x and y exchanged, as far as the numbers show.
    """
    x, y = np.array([corner for corners in polygons for corner in corners]).T
    width, height = size
    reach, short = float(max(np.abs(x).max(), np.abs(y).max())), min(size)
    pixels = f"Corners are pixels of the photo, here of {width}×{height} px"
    for number, corners in enumerate(polygons if short > 16 else [], 1):
        furthest = max(abs(side) for corner in corners for side in corner)
        if furthest <= 2:
            one = f"{name}: polygon {number}" if reach > 2 else name
            raise InputError(
                f"{one} has no corner beyond {furthest:g}: these look like fractions.",
                f'{pixels}: multiply by them, or write "units": "fractions" into a file of polygons.',
            )
    if reach <= 100 and short >= 256 and not sized:
        sure = f'Write "units": "percent" into the file, or, if they are pixels, "size": [{width}, {height}].'
        raise InputError(
            f"{name} has no corner beyond {reach:g}: these look like percent.", f"{pixels}. {sure}"
        )

    def beyond(x: np.ndarray, y: np.ndarray) -> float:
        """How far corners lie outside the photo, as a fraction of its sides."""
        return float(max(0.0, -x.min() / width, x.max() / width - 1, -y.min() / height, y.max() / height - 1))

    outside = beyond(x, y)
    if outside > 0.05 and beyond(y, x) == 0:
        raise InputError(
            f"{name} leaves the photo of {width}×{height} px, and would fit with x and y exchanged.",
            "A corner is [x, y].",
        )
    if outside > 0.05:
        return [
            f"{name} reaches {100 * outside:.0f} % of a side beyond the photo: was it drawn on another one, "
            "or on a larger copy?"
        ]
    if reach <= 1000 and short >= 2500 and not sized:
        return [f"{name} has no corner beyond {reach:g}: are these thousandths? {pixels}."]
    return []


# --- Files
# ------------------------------------------------------------------------------------------------------------


def read_outlines(path: Path, size: tuple[int, int] | None = None) -> Outlines:
    """The content of a JSON file as `write_polygons` writes it; see `outlines_in`.

    Raises:
        InputError: the file is missing or unreadable, no JSON; or as `outlines_in`.
    """
    return outlines_in(read_json(read_polygon_text(path), path), path, size)


def read_polygon_text(path: Path) -> str:
    """The text of a file with polygons. Raises InputError if it cannot be read."""
    return read_text(path, MAX_BYTES, "The polygon file", hint="Check the path given to --polygon.")


def read_json(text: str, path: Path) -> Any:
    """The JSON in a file with polygons. Raises InputError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON.", _FORMAT) from error


def outlines_in(data: Any, path: Path, size: tuple[int, int] | None = None) -> Outlines:
    """The content of a polygon file, `{"polygons": [[[x, y], …], …], "holes": […], "size": […], "units": …}`,
    in pixels of the photo. "units" may be pixels, percent or fractions of the photo's sides.

    Args:
        size: (width, height) of the photo. If the file names the size of its photo, the two must agree.

    Raises:
        InputError: it is of another format, or drawn on a photo of another size; or its numbers do not fit
            its units.
    """
    _check_keys(data, path)
    drawn_on = data.get("size")
    if drawn_on is not None and not (
        _is_pair(drawn_on) and all(0 < side < MAX_COORDINATE for side in drawn_on)
    ):
        raise InputError(
            f"{path} has a 'size' that is no [width, height].", "Mend it, or delete it from the file."
        )
    if size is not None and drawn_on is not None and list(drawn_on) != list(size):
        raise InputError(
            f"{path} was drawn on a photo of {drawn_on[0]}×{drawn_on[1]} px, this one has "
            f"{size[0]}×{size[1]} px.",
            "Draw it on the photo that is to be repainted, or delete 'size' from the file if you are sure.",
        )
    outlines = check_polygons(data["polygons"], str(path))
    holes = check_polygons(data["holes"], f"{path}, 'holes'", "hole") if data.get("holes") else []
    units, whole = data.get("units", "pixels"), size or drawn_on
    if units == "pixels":
        return Outlines(outlines, holes, drawn_on is not None and size is not None)
    if units not in UNITS or whole is None:
        raise InputError(
            f"{path} has 'units' that are unknown{' without a size' if units in UNITS else ''}.",
            "They are pixels, percent or fractions; the last two are of the photo's sides.",
        )
    scaled = relative(outlines + holes, units, whole, str(path), "the file says")
    return Outlines(scaled[: len(outlines)], scaled[len(outlines) :], True)


def read_polygons(path: Path, size: tuple[int, int] | None = None) -> Polygons:
    """The polygons of a file. Raises InputError as `read_outlines`."""
    return read_outlines(path, size).polygons


def read_holes(path: Path) -> Polygons:
    """The kept areas inside the polygons of a file; [] if it names none. Raises InputError as
    `read_outlines`.
    """
    return read_outlines(path).holes


def _check_keys(data: Any, path: Path) -> None:
    """Raises InputError unless `data` has the keys of a polygon file, and no misspelt ones."""
    first = data[0] if isinstance(data, list) and data else data
    if not isinstance(data, dict) or "polygons" not in data:
        other = next(
            (words for key, words in _OTHERS.items() if isinstance(first, dict) and key in first), ""
        )
        raise InputError(f"{path} has no 'polygons'.", f"{other} {_FORM}" if other else _FORMAT)
    for key in data:
        near = difflib.get_close_matches(key.lower(), _KEYS, n=1, cutoff=0.7) if key not in _KEYS else []
        if near:  # other keys belong to other programs
            raise InputError(f"{path} has a key {key[:40]!a}.", f"Did you mean '{near[0]}'?")
    if data["polygons"] == []:
        raise InputError(
            f"{path} holds no polygon.", "Draw at least one outline around what is to be repainted."
        )


def to_dict(
    polygons: Polygons, size: tuple[int, int] | None = None, holes: Polygons | None = None
) -> dict[str, Any]:
    """The content of a polygon file; with the photo's `size` (width, height), readers can notice the wrong
    photo.
    """
    data: dict[str, Any] = {"polygons": [[[x, y] for x, y in corners] for corners in polygons]}
    data |= {"holes": [[[x, y] for x, y in corners] for corners in holes]} if holes else {}
    return data | ({"size": list(size)} if size else {})


def write_polygons(
    path: Path, polygons: Polygons, size: tuple[int, int] | None = None, holes: Polygons | None = None
) -> None:
    """Write a polygon file for `read_polygons` and `triptych tryon --polygon`.

    Raises:
        InputError: see `check_polygons`.
    """
    write_json(Path(path), to_dict(check_polygons(polygons), size, holes))
