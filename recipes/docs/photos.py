"""Draws the photos of the examples and of the gallery, with the renderer of the pocket world.

    python -m recipes.docs.photos          # into examples/ and docs/gallery/

They are a function of this file: the same garments, people and seeds give the same pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from triptych.pictures.masks import grow
from triptych.pictures.outlines import outlines
from triptych.pictures.polygons import write_polygons
from triptych.pocket.render import render
from triptych.pocket.world import Garment, Scene

ROOT = Path(__file__).parents[2]
SCALE = 4
"""Photos are four times as large as a panel of the pocket models: 192 × 288 pixels."""
MARGIN = 3
"""Pixels by which a region is wider than the garment that is to be in it."""


def back_view(folder: Path) -> None:
    """A jacket with a print on its back, and somebody seen from behind."""
    jacket = Garment("jacket", "red", print="triangle")
    person = Scene("worn", "beige", "tan", "dark", "long", "arms down", "navy", "behind")
    _products(folder, jacket, "sky", 1)
    _save(render(Garment("sweater", "white"), person, 3, SCALE).image, folder / "person.png")


def greyscale(folder: Path) -> None:
    """A greyscale photo, the same with the new sweater painted on it roughly, and the region."""
    sweater = Garment("sweater", "yellow", "stripes", "blue")
    person = Scene("worn", "grey", "tan", "dark", "short", "arms down", "cream", "front")
    _products(folder, sweater, "grey", 21)
    photo = render(Garment("sweater", "purple"), person, 23, SCALE).image.convert("L").convert("RGB")
    _save(photo, folder / "photo.png")
    rough = photo.copy()
    draw = ImageDraw.Draw(rough)
    yellow, blue = (245, 205, 60), (45, 75, 205)
    for stroke, colour, width in (
        ([(96, 84), (96, 156)], yellow, 50),
        ([(62, 90), (52, 142)], yellow, 16),
        ([(130, 90), (140, 142)], yellow, 16),
        ([(58, 100), (134, 102)], blue, 9),
        ([(74, 122), (120, 120)], blue, 9),
        ([(72, 142), (120, 144)], blue, 9),
    ):
        draw.line(stroke, fill=colour, width=width)
    _save(rough, folder / "person.png")
    _region(folder, sweater, person, 23)


def jacket_over_dress(folder: Path) -> None:
    """A striped jacket, somebody in a dress, and a region that leaves the skirt of the dress alone."""
    jacket = Garment("jacket", "black", "stripes", "white")
    person = Scene("worn", "mint", "light", "ginger", "long", "arms down", "grey", "front")
    _products(folder, jacket, "grey", 11)
    _save(render(Garment("dress", "red"), person, 13, SCALE).image, folder / "person.png")
    _region(folder, jacket, person, 13)


EXAMPLES = {"back-view": back_view, "greyscale": greyscale, "jacket-over-dress": jacket_over_dress}
"""Folder of `examples` → what draws its photos."""


def gallery(folder: Path) -> None:
    """Product photos of a sweater and of a skirt, and somebody to wear them."""
    sweater = Garment("sweater", "purple", "dots", "yellow")
    skirt = Garment("skirt", "green", "stripes", "white")
    person = Scene("worn", "sky", "dark", "dark", "short", "arms down", "cream", "front")
    _save(render(sweater, Scene("front", "beige"), 31, SCALE).image, folder / "sweater.png")
    _save(render(skirt, Scene("front", "beige"), 32, SCALE).image, folder / "skirt.png")
    _save(render(Garment("sweater", "white"), person, 33, SCALE).image, folder / "person.png")


def _products(folder: Path, garment: Garment, background: str, seed: int) -> None:
    for number, view in enumerate(("front", "back")):
        picture = render(garment, Scene(view, background), seed + number, SCALE).image
        _save(picture, folder / f"{view}.png")


def _region(folder: Path, garment: Garment, person: Scene, seed: int) -> None:
    """Where the garment would be on this person, and a margin."""
    drawn = np.asarray(render(garment, person, seed, SCALE).mask) > 127
    wide = grow(drawn.astype(np.float32), MARGIN) > 0.5
    write_polygons(folder / "region.json", outlines(wide), size=(wide.shape[1], wide.shape[0]))


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    for name, draw in EXAMPLES.items():
        draw(ROOT / "examples" / name)
    gallery(ROOT / "docs" / "gallery")
