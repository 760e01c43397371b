"""A supersampled canvas: each stroke draws the picture and the mask of the garment in it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from triptych.pocket.world import RGB

WIDTH, HEIGHT = 64, 96
"""Drawing units; the native panel has three quarters as many pixels."""
PANEL_WIDTH, PANEL_HEIGHT = 48, 72
"""Native panel in pixels (scale 1)."""

Point = tuple[float, float]


@lru_cache(maxsize=16)
def _pattern(name: str, samples: int) -> Image.Image:
    """Return the area of a pattern's second colour: a mask twice as large as the canvas."""
    rows, columns = np.mgrid[0 : HEIGHT * samples * 2, 0 : WIDTH * samples * 2].astype(np.float32) / samples
    if name == "stripes":
        second = (rows % 12) < 5
    elif name == "dots":
        period = 13.0
        shift = (np.floor(rows / period) % 2) * period / 2
        y = rows % period - period / 2
        x = (columns + shift) % period - period / 2
        second = x**2 + y**2 < 3.8**2
    else:
        assert name == "check", name
        second = ((columns % 12.5) < 3.5) | ((rows % 12.5) < 3.5)
    return Image.fromarray((second * 255).astype(np.uint8))


class Canvas:
    """Draws in units of 64 x 96; ``garment=True`` strokes add to the garment's mask, all others remove from
    it.
    """

    def __init__(self, background: RGB, scale: int) -> None:
        """Start with a plain background; ``scale`` multiplies the native panel."""
        self.samples = 3 * scale
        size = (WIDTH * self.samples, HEIGHT * self.samples)
        self.image = Image.new("RGB", size, background)
        self.mask = Image.new("L", size, 0)
        self._draw = ImageDraw.Draw(self.image)
        self._draw_mask = ImageDraw.Draw(self.mask)

    def finish(self) -> tuple[Image.Image, Image.Image]:
        """Return the antialiased picture and garment mask at the native size times the scale."""
        return self.image.reduce(4), self.mask.reduce(4)

    def region(self) -> Region:
        """Return an empty region of this canvas."""
        return Region(self)

    def points(self, points: list[Point]) -> list[Point]:
        """Convert units to samples."""
        return [(x * self.samples, y * self.samples) for x, y in points]

    def box(self, corner: Point, opposite: Point) -> list[float]:
        """Convert two corners to the box that pillow's ellipses and rectangles want."""
        return [value * self.samples for value in (*corner, *opposite)]

    def polygon(self, points: list[Point], colour: RGB, *, garment: bool = False) -> None:
        """Fill a polygon."""
        xy = self.points(points)
        self._draw.polygon(xy, fill=colour)
        self._draw_mask.polygon(xy, fill=255 * garment)

    def ellipse(self, corner: Point, opposite: Point, colour: RGB, *, garment: bool = False) -> None:
        """Fill an ellipse."""
        box = self.box(corner, opposite)
        self._draw.ellipse(box, fill=colour)
        self._draw_mask.ellipse(box, fill=255 * garment)

    def half_disc(self, corner: Point, opposite: Point, colour: RGB) -> None:
        """Fill the upper half of an ellipse."""
        box = self.box(corner, opposite)
        self._draw.pieslice(box, 180, 360, fill=colour)
        self._draw_mask.pieslice(box, 180, 360, fill=0)

    def rectangle(self, corner: Point, opposite: Point, colour: RGB, *, garment: bool = False) -> None:
        """Fill a rectangle."""
        box = self.box(corner, opposite)
        self._draw.rectangle(box, fill=colour)
        self._draw_mask.rectangle(box, fill=255 * garment)

    def frame(self, corner: Point, opposite: Point, colour: RGB) -> None:
        """Draw the outline of a rectangle on the garment."""
        box = self.box(corner, opposite)
        self._draw.rectangle(box, outline=colour, width=self.samples)
        self._draw_mask.rectangle(box, outline=255, width=self.samples)

    def line(
        self, points: list[Point], width: float, colour: RGB, *, garment: bool = False, caps: bool = False
    ) -> None:
        """Draw a line; ``caps`` rounds its two ends."""
        _line(self._draw, self.points(points), width * self.samples, colour, caps)
        _line(self._draw_mask, self.points(points), width * self.samples, 255 * garment, caps)

    def fill(self, region: Region, colour: RGB, *, garment: bool = False) -> None:
        """Fill a region with one colour."""
        self.image.paste(colour, (0, 0), region.mask)
        self.mask.paste(255 * garment, (0, 0), region.mask)

    def fill_pattern(self, region: Region, colour: RGB, pattern: str, colour2: RGB, offset: Point) -> None:
        """Fill a region with the cloth of a garment; ``offset`` moves the pattern."""
        cloth = Image.new("RGB", self.image.size, colour)
        if pattern != "plain":
            left, top = (round(value * self.samples) for value in offset)
            box = (left, top, left + self.image.width, top + self.image.height)
            cloth.paste(colour2, (0, 0), _pattern(pattern, self.samples).crop(box))
        self.image.paste(cloth, (0, 0), region.mask)
        self.mask.paste(255, (0, 0), region.mask)


class Region:
    """A set of samples, built by adding and cutting shapes."""

    def __init__(self, canvas: Canvas) -> None:
        """Start empty."""
        self._canvas = canvas
        self.mask = Image.new("L", canvas.image.size, 0)
        self._draw = ImageDraw.Draw(self.mask)

    def polygon(self, points: list[Point]) -> Region:
        """Add a polygon."""
        self._draw.polygon(self._canvas.points(points), fill=255)
        return self

    def line(self, points: list[Point], width: float) -> Region:
        """Add a thick line with round ends."""
        _line(self._draw, self._canvas.points(points), width * self._canvas.samples, 255, True)
        return self

    def cut_ellipse(self, corner: Point, opposite: Point) -> Region:
        """Take an ellipse away."""
        self._draw.ellipse(self._canvas.box(corner, opposite), fill=0)
        return self


def _line(draw: ImageDraw.ImageDraw, xy: list[Point], width: float, fill: RGB | int, caps: bool) -> None:
    draw.line(xy, fill=fill, width=max(1, int(width)), joint="curve")
    if caps:
        radius = math.floor(width) / 2
        for x, y in (xy[0], xy[-1]):
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
