"""What is added to a cut: seams' colours, prints at their places, necklines, hoods, pockets.

A garment of `world` has a round neck, no hood, no pockets, and its print on the back; `rich` varies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from triptych.pocket.canvas import Canvas, Point
from triptych.pocket.world import COLOURS, RGB, Garment

TIES: RGB = (215, 215, 220)


def shade(colour: RGB, factor: float) -> RGB:
    """Return a colour, darker or lighter."""
    red, green, blue = (int(max(0, min(255, value * factor))) for value in colour)
    return red, green, blue


def darker(colour: str, factor: float) -> RGB:
    """Return the colour of seams; black cloth gets lighter seams."""
    return (85, 85, 92) if colour == "black" else shade(COLOURS[colour], factor)


def draw_print(canvas: Canvas, garment: Garment, centre: Point, radius: float) -> None:
    """Draw the print: white, or black on light cloth."""
    ink = COLOURS["black" if garment.colour in ("white", "yellow", "pink") else "white"]
    x, y = centre
    if garment.print in ("circle", "ring"):
        canvas.ellipse((x - radius, y - radius), (x + radius, y + radius), ink, garment=True)
    if garment.print == "ring":
        inner = radius * 0.5
        cloth = COLOURS[garment.colour]
        canvas.ellipse((x - inner, y - inner), (x + inner, y + inner), cloth, garment=True)
    elif garment.print == "cross":
        for width, height in ((radius * 1.1, radius * 0.36), (radius * 0.36, radius * 1.1)):
            canvas.rectangle((x - width, y - height), (x + width, y + height), ink, garment=True)
    elif garment.print == "triangle":
        canvas.polygon(
            [(x, y - radius * 1.1), (x + radius * 1.15, y + radius), (x - radius * 1.15, y + radius)],
            ink,
            garment=True,
        )
    elif garment.print == "star":
        points = []
        for number in range(10):
            length, angle = radius * (0.48 if number % 2 else 1.25), math.pi * number / 5
            points.append((x + length * math.sin(angle), y - length * math.cos(angle)))
        canvas.polygon(points, ink, garment=True)
    elif garment.print == "heart":
        half = radius * 0.56
        for side in (-half, half):
            corner = (x + side - half * 1.05, y - radius)
            canvas.ellipse(corner, (x + side + half * 1.05, y + radius * 0.15), ink, garment=True)
        bottom = (x, y + radius * 1.15)
        canvas.polygon(
            [(x - radius * 1.08, y - radius * 0.2), (x + radius * 1.08, y - radius * 0.2), bottom],
            ink,
            garment=True,
        )


def flat_print(garment: Garment) -> tuple[float, float]:
    """Return the height and the radius of a print on a garment lying flat."""
    dress = garment.type == "dress"
    spots = {"back": (33 if dress else 50, 7.5), "chest": (30 if dress else 41, 6.0)}
    return (spots | {"hem": (74 if dress else 66, 6.5)})[garment.place]


def worn_print(garment: Garment, shoulder: float, hip: float) -> tuple[float, float]:
    """Return the height and the radius of a print on a garment that is worn."""
    dress = garment.type == "dress"
    spots = {
        "back": (shoulder + (13 if dress else 16), 6.4),
        "chest": (shoulder + (11.5 if dress else 13), 5.2),
    }
    return (spots | {"hem": (hip + (17 if dress else -3), 6.0 if dress else 5.0)})[garment.place]


def trim_flat(
    canvas: Canvas, garment: Garment, place: Callable[..., list[Point]], front: bool, neck_y: float
) -> None:
    """Draw neckline, hood and pockets on a garment lying flat; `place` moves points to where it lies."""
    cloth, seam = COLOURS[garment.colour], darker(garment.colour, 0.62)
    inside = darker(garment.colour, 0.5)
    if garment.hood:
        corners = (
            place((23, neck_y - 10), (41, neck_y + 6))
            if front
            else place((23, neck_y - 4), (41, neck_y + 14))
        )
        _ringed(canvas, corners, cloth, seam)
        if front:
            opening = place((26.5, neck_y - 7), (37.5, neck_y + 4))
            canvas.ellipse(opening[0], opening[1], inside, garment=True)
            for x in (29.5, 34.5):
                canvas.line(place((x, neck_y + 4), (x, neck_y + 12)), 1, TIES, garment=True)
        else:
            canvas.line(place((25, neck_y + 1), (39, neck_y + 1)), 1, seam, garment=True)
    elif garment.neckline == "v-neck" and front:
        v = place((26.5, neck_y), (37.5, neck_y), (32, neck_y + 12))
        canvas.polygon(v, inside, garment=True)
        canvas.line([v[0], v[2], v[1]], 1, seam, garment=True)
    elif garment.neckline == "high neck":
        depth = 7 if front else 3
        top = place((26, neck_y - 5), (38, neck_y - 5))
        low = place((38.5, neck_y + 2), (32, neck_y + depth), (25.5, neck_y + 2))
        canvas.polygon([*top, *low], cloth, garment=True)
        canvas.line([*top, *low, top[0]], 1, seam, garment=True)
    if garment.pockets and front:
        y = {"dress": 58, "skirt": 40}.get(garment.type, 60)
        for x in (20, 36):
            corner, opposite = place((x, y), (x + 8, y + 10))
            canvas.frame(corner, opposite, seam)


def trim_worn(
    canvas: Canvas,
    garment: Garment,
    at: Callable[[float, float], Point],
    behind: bool,
    shoulder: float,
    hip: float,
) -> None:
    """Draw neckline, hood and pockets on a garment that is worn; `at` gives points on the person."""
    cloth, seam = COLOURS[garment.colour], darker(garment.colour, 0.62)
    if garment.hood:
        drop = 9 if behind else 3.5
        _ringed(canvas, [at(-8, shoulder - 6), at(8, shoulder + drop)], cloth, seam)
        for x in () if behind else (-2.5, 2.5):
            canvas.line([at(x, shoulder + 3), at(x, shoulder + 9)], 1, TIES, garment=True)
    elif garment.neckline == "v-neck" and not behind:
        canvas.polygon(
            [at(-4, shoulder), at(4, shoulder), at(0, shoulder + 10)],
            darker(garment.colour, 0.5),
            garment=True,
        )
    elif garment.neckline == "high neck":
        corners = [(-4.4, shoulder - 5), (4.4, shoulder - 5), (4.8, shoulder + 2), (0, shoulder + 7)]
        outline = [at(x, y) for x, y in [*corners, (-4.8, shoulder + 2)]]
        canvas.polygon(outline, cloth, garment=True)
        canvas.line([*outline, outline[0]], 1, seam, garment=True)
    if garment.pockets and not behind:
        y = {"dress": hip + 4, "skirt": hip + 5, "jacket": hip}.get(garment.type, hip - 6)
        for x in (-8.5, 2.5):
            canvas.frame(at(x, y), at(x + 6, y + 7), seam)


def _ringed(canvas: Canvas, corners: list[Point], cloth: RGB, seam: RGB) -> None:
    (left, top), (right, bottom) = corners
    canvas.ellipse((left, top), (right, bottom), seam, garment=True)
    canvas.ellipse((left + 0.8, top + 0.8), (right - 0.8, bottom - 0.8), cloth, garment=True)
