"""Draws garments and people. ``render(garment, scene, seed)`` is a pure function of its arguments.

All random numbers are drawn before anything that depends on the garment. So the same (scene, seed) with
another garment gives the same picture except for the garment: exact ground truth for try-on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH, Canvas, Point
from triptych.pocket.parts import PART_OF
from triptych.pocket.shading import shaded
from triptych.pocket.wardrobe import draw_flat, draw_worn
from triptych.pocket.world import BACKGROUNDS, RGB, Garment, Scene

__all__ = ["PANEL_HEIGHT", "PANEL_WIDTH", "Rendered", "background_of", "concatenate_panels", "render"]


@dataclass(frozen=True)
class Rendered:
    """A picture and the mask of the garment in it (white = garment, antialiased); on request, the part of
    `parts.PARTS` that most of each pixel shows, (H, W) uint8.
    """

    image: Image.Image
    mask: Image.Image
    labels: np.ndarray | None = field(default=None, compare=False)


def render(garment: Garment, scene: Scene, seed: int, scale: int = 1, *, labels: bool = False) -> Rendered:
    """Draw one panel of 48 x 72 pixels times ``scale``; another scale draws exactly the same
    picture larger. ``labels`` asks for the map of parts too.
    """
    rng = random.Random(seed)
    canvas = Canvas(background_of(scene, rng), scale, labels)
    canvas.garment_part = PART_OF[garment.type]
    background: RGB = canvas.image.getpixel((0, 0))  # type: ignore[assignment]
    offset: Point = (rng.uniform(0, 20), rng.uniform(0, 20))
    if scene.worn:
        draw_worn(canvas, garment, scene, rng, offset)
    else:
        draw_flat(canvas, garment, scene, rng, offset, background)
    image, mask = canvas.finish()
    if scene.shaded:
        image = shaded(image, mask, seed)
    return Rendered(image, mask, canvas.label_map())


def concatenate_panels(images: list[Image.Image]) -> Image.Image:
    """Put pictures of one size side by side."""
    width, height = images[0].size
    wide = Image.new(images[0].mode, (width * len(images), height))
    for index, image in enumerate(images):
        wide.paste(image, (index * width, 0))
    return wide


def background_of(scene: Scene, rng: random.Random) -> RGB:
    """Draw the exact colour of a scene's background."""
    shift = rng.randint(-5, 5)
    red, green, blue = (
        max(0, min(255, value + shift + rng.randint(-3, 3))) for value in BACKGROUNDS[scene.background]
    )
    return red, green, blue
