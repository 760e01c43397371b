"""Tells the pocket world's drawings from photographs: drawings have few, known colours and a plain
background.

A picture is examined with its longest side at `SIDE` pixels, where a drawing looks much the same whatever its
original size. A pixel is *flat* if it differs little from its eight neighbours. A picture is a drawing if

- nearly all (`PURITY`) of its flat pixels have a colour that the renderer uses, and
- some (`BACKGROUND`) of its flat pixels have one of the renderer's four background colours, and
- some (`FIGURE`) of the pixels off that background have at least roughly a colour of cloth or people,

or if nothing can be seen in it (`BLANK`).

`python benchmarks/drawings.py` measures both kinds of mistakes; docs/pocket.md has the figures.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from triptych.pocket.wardrobe import EYES, SHOES, ZIP
from triptych.pocket.world import BACKGROUNDS, COLOURS, HAIRS, OTHER_CLOTHES, SKINS

SIDE = 144
FLAT, EVEN = 14, 2
"""Largest difference within 3 × 3 pixels, of 255: after JPEG in a plain area, and in an empty one.
"""
NEAR_CLOTH, ROUGHLY, NEAR_BACKGROUND = 6, 12, 14
"""Tolerance of a colour, of 255 in each channel; backgrounds themselves vary by 8."""
PURITY, BACKGROUND, FIGURE, BLANK = 0.86, 0.02, 0.05, 0.99
CELL = 2
"""Side of the cubes in which colours are looked up, in levels."""


def is_drawing(image: Image.Image) -> bool:
    """Whether a picture is a drawing of the rendered world (one panel of it), or blank; any size, JPEG or
    not.
    """
    flat, even, cloth, roughly, background = _pixels(image)
    if even.mean() >= BLANK:
        return True
    pure = (flat & (cloth | background)).sum() >= PURITY * flat.sum()
    figure = (roughly & ~background).sum() >= FIGURE * (~background).sum()
    return bool(pure and figure and (flat & background).mean() >= BACKGROUND)


def _pixels(image: Image.Image) -> tuple[np.ndarray, ...]:
    """For each pixel: is it flat, even, of a colour of clothes or people, roughly so, of a background's
    colour? (H, W) bool each.
    """
    small = image.convert("RGB")
    scale = SIDE / max(small.size)
    if scale < 1:
        width, height = (max(3, round(side * scale)) for side in small.size)
        small = small.resize((width, height), Image.Resampling.BOX, reducing_gap=4.0)
    pixels = np.pad(np.asarray(small), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows, columns = pixels.shape[0] - 2, pixels.shape[1] - 2
    around = [pixels[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    differs = (np.maximum.reduce(around) - np.minimum.reduce(around)).max(-1)
    cells = tuple(np.moveaxis(pixels[1:-1, 1:-1] // CELL, -1, 0))
    return differs <= FLAT, differs <= EVEN, *(table[cells] for table in _tables())


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """(256 / CELL)³ bool each: is a colour near one of clothes and people, roughly so, near a background or a
    shadow on it?
    """
    seams = [_times(colour, factor) for colour in COLOURS.values() for factor in (0.62, 0.5)]
    people = [*SKINS.values(), *(_times(skin, 0.6) for skin in SKINS.values()), *HAIRS.values(), SHOES, EYES]
    cloth = [*COLOURS.values(), *seams, (85, 85, 92), ZIP, *people, *OTHER_CLOTHES.values()]
    behind = [colour for plain in BACKGROUNDS.values() for colour in (plain, _times(plain, 0.86))]
    return _near(cloth, NEAR_CLOTH), _near(cloth, ROUGHLY), _near(behind, NEAR_BACKGROUND)


def _times(colour: tuple[int, int, int], factor: float) -> tuple[int, ...]:
    return tuple(round(value * factor) for value in colour)


def _near(colours: list[tuple[int, ...]], distance: int) -> np.ndarray:
    table = np.zeros((256 // CELL,) * 3, dtype=bool)
    for colour in colours:
        table[
            tuple(
                slice(max(0, round((level - distance) / CELL)), round((level + distance) / CELL) + 1)
                for level in colour
            )
        ] = True
    return table
