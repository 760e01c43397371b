"""Finds smaller copies of a photo, such as shop systems make of every upload (`coat-300x300.jpg`,
`coat@2x.jpg`, thumbnails).

It uses two measures. Both avoid one danger: the front and the back of a plain garment look much alike and
must never count as one picture.

- The content. Each picture is reduced to `SHAPE` × `SHAPE` fields of grey and `COLOUR` × `COLOUR` fields of
  colour. A copy differs only at edges, as far as scaling and JPEG blur them; between a front and a back, one
  has an edge where the other has none. So a field's difference counts only as far as it exceeds half of the
  contrast that both pictures have there. docs/photos.md has the figures.
- The names. `coat-300x300.jpg` is a copy if it has 300 × 300 pixels and `coat.jpg` is in the same item. This
  finds cut-outs too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = 48
"""Grey fields per side."""
COLOUR = 24
"""Colour fields (Cb and Cr) per side."""
SIGNATURE = SHAPE * SHAPE + 2 * COLOUR * COLOUR
"""Bytes of a photo's signature."""
MOST_DIFFERENT, MOST_BLURRED = 8.0, 20.0
"""For copies: the largest difference of a field beyond its contrast, in levels of 255. Heavy blur or
compression makes all fields differ; then the largest difference may be `TIMES_MEAN` times the mean one.
"""
TIMES_MEAN = 6.0
MOST_DIFFERENT_EQUAL_SIZE = 8.0
"""For copies of equal size: the largest difference of a field, contrast included. Cameras make pictures of
one size, so two of these must agree more closely.
"""
MOST_DIFFERENT_MEAN = (6.0, 4.0)
"""The largest mean difference over all fields: of grey, of colour."""


@dataclass(frozen=True)
class Seen:
    """A photo that may be a copy: its name, upright size (width, height) in pixels, and `signature`."""

    name: str
    size: tuple[int, int]
    signature: np.ndarray
    first: bool = False
    """Whether the user names it in the override file: then it stays and its copies go."""

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]


def signature(image: Image.Image) -> np.ndarray:
    """(SIGNATURE,) uint8 of an RGB picture of any size: grey fields, then colour fields."""
    parts = zip(image.convert("YCbCr").split(), (SHAPE, COLOUR, COLOUR), strict=True)
    return np.concatenate(
        [np.asarray(part.resize((side, side), Image.Resampling.BOX)).ravel() for part, side in parts]
    )


def find_copies(photos: Sequence[Seen]) -> dict[int, int]:
    """{index of a photo: index of a larger photo with the same content}, among the photos of one item.

    The largest photo stays; among equals the one that the user has named, then the first. A photo that stays
    is never a copy of another.
    """
    order = sorted(
        range(len(photos)), key=lambda index: (not photos[index].first, -photos[index].area, index)
    )
    named = _by_name(photos)
    kept: list[int] = []
    copies: dict[int, int] = {}
    signatures = np.empty((len(photos), SIGNATURE), np.int16)  # of the photos that stay
    for index in order:
        if index in named:
            original = named[index]
            copies[index] = copies.get(original, original)
            continue
        own = photos[index].signature.astype(np.int16)
        near = np.flatnonzero(np.abs(signatures[: len(kept)] - own).mean(1) <= max(MOST_DIFFERENT_MEAN))
        twin = next((kept[at] for at in near if same_picture(photos[index], photos[kept[at]])), None)
        if twin is not None and not photos[index].first:
            copies[index] = twin
            continue
        signatures[len(kept)] = own
        kept.append(index)
    return copies


# --- By content
# ---------------------------------------------------------------------------------------------


def same_picture(one: Seen, other: Seen) -> bool:
    """Whether two photos show one picture at two sizes, or in two compressions."""
    aspect = (one.size[0] * other.size[1]) / (one.size[1] * other.size[0])
    slack = 1.01 + 1 / min(*one.size, *other.size)  # sides are rounded to whole pixels
    if not 1 / slack < aspect < slack:
        return False
    equal_size = 0.98 < one.area / other.area < 1.02
    for mine, theirs, most in zip(
        _fields(one), _fields(other), (*MOST_DIFFERENT_MEAN, MOST_DIFFERENT_MEAN[1]), strict=True
    ):
        difference = np.abs(mine - theirs)
        mean = difference.mean()
        if mean > most:
            return False
        if equal_size:
            if difference.max() > MOST_DIFFERENT_EQUAL_SIZE:
                return False
            continue
        excess = (difference - np.minimum(_contrast(mine), _contrast(theirs)) / 2).max()
        if excess > max(MOST_DIFFERENT, min(MOST_BLURRED, TIMES_MEAN * mean)):
            return False
    return True


def _fields(photo: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(SHAPE, SHAPE) of grey and twice (COLOUR, COLOUR) of colour, float32."""
    numbers = photo.signature.astype(np.float32)
    grey, blue, red = np.split(numbers, [SHAPE * SHAPE, SHAPE * SHAPE + COLOUR * COLOUR])
    return grey.reshape(SHAPE, SHAPE), blue.reshape(COLOUR, COLOUR), red.reshape(COLOUR, COLOUR)


def _contrast(fields: np.ndarray) -> np.ndarray:
    """(H, W): the range of levels in the 3 × 3 fields around each."""
    height, width = fields.shape
    padded = np.pad(fields, 1, mode="edge")
    around = [padded[down : down + height, right : right + width] for down in range(3) for right in range(3)]
    return np.max(around, axis=0) - np.min(around, axis=0)


# --- By name
# -------------------------------------------------------------------------------------------------

_SIZED = re.compile(
    r"(?P<base>.+?)[-_ ](?P<width>\d{2,5})x(?P<height>\d{2,5})(_crop_\w+)?(@\dx)?", re.IGNORECASE
)
_THUMB = re.compile(
    r"((?P<base>.+)[-_. ]|)(thumb|thumbnail|tn|icon|pico|preview)([-_. ](?P<rest>.+)|)", re.IGNORECASE
)


def _by_name(photos: Sequence[Seen]) -> dict[int, int]:
    """{index of a photo with the name of a smaller version: index of the original}."""
    bases: dict[str, list[int]] = {}
    smaller: set[int] = set()
    for index, photo in enumerate(photos):
        base, told = _base(photo)
        bases.setdefault(re.sub(r"[\W_]+", "", base.casefold()) or base, []).append(index)
        if told and not photo.first:
            smaller.add(index)
    found: dict[int, int] = {}
    for group in bases.values():
        best = min(group, key=lambda index: (not photos[index].first, -photos[index].area, index))
        for index in group:
            if (
                index in smaller
                and index != best
                and (photos[best].first or photos[index].area < photos[best].area)
            ):
                found[index] = best
    return found


def _base(photo: Seen) -> tuple[str, bool]:
    """(the name without ending and size words, whether it denotes a smaller version).

    A size in pixels counts only if it is the file's size; `thumb` counts only for pictures of thumbnail size.
    """
    stem = Path(photo.name).stem
    if (match := _SIZED.fullmatch(stem)) and sorted((int(match["width"]), int(match["height"]))) == sorted(
        photo.size
    ):
        return match["base"].removesuffix("-scaled"), True
    if (match := _THUMB.fullmatch(stem)) and (match["base"] or match["rest"]) and max(photo.size) <= 400:
        return f"{match['base'] or ''} {match['rest'] or ''}", True
    return stem.removesuffix("-scaled"), False
