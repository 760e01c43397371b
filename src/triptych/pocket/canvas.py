"""A supersampled canvas: each stroke draws the picture, the mask of the garment in it and, on request, a map
of the parts it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    it. In the label map they stand as ``garment_part`` and ``part``, which may change from stroke to stroke.
    """

    part, garment_part = 0, 0
    counts = True
    """False while a second garment is drawn: its strokes are no part of the garment's mask."""

    def __init__(self, background: RGB, scale: int, labels: bool = False) -> None:
        """Start with a plain background; ``scale`` multiplies the native panel, ``labels`` asks for a map."""
        self.samples = 3 * scale
        size = (WIDTH * self.samples, HEIGHT * self.samples)
        self.image = Image.new("RGB", size, background)
        self.mask = Image.new("L", size, 0)
        self._draw = ImageDraw.Draw(self.image)
        self._draw_mask = ImageDraw.Draw(self.mask)
        self.labels = Image.new("L", size, 0) if labels else None
        self._draw_labels = ImageDraw.Draw(self.labels) if self.labels else None

    def finish(self) -> tuple[Image.Image, Image.Image]:
        """Return the antialiased picture and garment mask at the native size times the scale."""
        return self.image.reduce(4), self.mask.reduce(4)

    def label_map(self) -> np.ndarray | None:
        """Return the part that fills most of each pixel, (H, W) uint8; None if no map was asked for."""
        if self.labels is None:
            return None
        blocks = np.asarray(self.labels)
        blocks = blocks.reshape(blocks.shape[0] // 4, 4, blocks.shape[1] // 4, 4)
        present = np.unique(blocks)
        covered = np.stack([(blocks == part).sum((1, 3), dtype=np.uint8) for part in present])
        return np.asarray(present[covered.argmax(0)])

    def _strokes(self, colour: RGB, garment: bool) -> Iterator[tuple[ImageDraw.ImageDraw, RGB | int]]:
        """Each picture that a stroke is drawn into, and its colour there."""
        garment = garment and self.counts
        yield self._draw, colour
        yield self._draw_mask, 255 * garment
        if self._draw_labels:
            yield self._draw_labels, self.garment_part if garment else self.part

    def _paste(self, colours: RGB | Image.Image, region: Region, garment: bool) -> None:
        garment = garment and self.counts
        self.image.paste(colours, (0, 0), region.mask)
        self.mask.paste(255 * garment, (0, 0), region.mask)
        if self.labels:
            self.labels.paste(self.garment_part if garment else self.part, (0, 0), region.mask)

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
        for draw, fill in self._strokes(colour, garment):
            draw.polygon(xy, fill=fill)

    def ellipse(self, corner: Point, opposite: Point, colour: RGB, *, garment: bool = False) -> None:
        """Fill an ellipse."""
        box = self.box(corner, opposite)
        for draw, fill in self._strokes(colour, garment):
            draw.ellipse(box, fill=fill)

    def half_disc(self, corner: Point, opposite: Point, colour: RGB) -> None:
        """Fill the upper half of an ellipse."""
        box = self.box(corner, opposite)
        for draw, fill in self._strokes(colour, False):
            draw.pieslice(box, 180, 360, fill=fill)

    def rectangle(self, corner: Point, opposite: Point, colour: RGB, *, garment: bool = False) -> None:
        """Fill a rectangle."""
        box = self.box(corner, opposite)
        for draw, fill in self._strokes(colour, garment):
            draw.rectangle(box, fill=fill)

    def frame(self, corner: Point, opposite: Point, colour: RGB) -> None:
        """Draw the outline of a rectangle on the garment."""
        box = self.box(corner, opposite)
        for draw, fill in self._strokes(colour, True):
            draw.rectangle(box, outline=fill, width=self.samples)

    def line(
        self, points: list[Point], width: float, colour: RGB, *, garment: bool = False, caps: bool = False
    ) -> None:
        """Draw a line; ``caps`` rounds its two ends."""
        for draw, fill in self._strokes(colour, garment):
            _line(draw, self.points(points), width * self.samples, fill, caps)

    def fill(self, region: Region, colour: RGB, *, garment: bool = False) -> None:
        """Fill a region with one colour."""
        self._paste(colour, region, garment)

    def fill_label(self, region: Region, part: int) -> None:
        """Name what a region shows, without drawing anything."""
        if self.labels:
            self.labels.paste(part, (0, 0), region.mask)

    def fill_pattern(self, region: Region, colour: RGB, pattern: str, colour2: RGB, offset: Point) -> None:
        """Fill a region with the cloth of a garment; ``offset`` moves the pattern."""
        cloth = Image.new("RGB", self.image.size, colour)
        if pattern != "plain":
            left, top = (round(value * self.samples) for value in offset)
            box = (left, top, left + self.image.width, top + self.image.height)
            cloth.paste(colour2, (0, 0), _pattern(pattern, self.samples).crop(box))
        self._paste(cloth, region, True)


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

    def cut_line(self, points: list[Point], width: float) -> Region:
        """Take a thick line with round ends away."""
        _line(self._draw, self._canvas.points(points), width * self._canvas.samples, 0, True)
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
