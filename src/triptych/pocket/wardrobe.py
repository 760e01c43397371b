"""The cuts: how each type of garment looks lying flat, front and back, and on a person."""

from __future__ import annotations

import random
from collections.abc import Callable

from triptych.pocket.canvas import Canvas, Point, Region
from triptych.pocket.parts import ACCESSORIES, PART, PART_OF
from triptych.pocket.trims import (
    darker,
    draw_print,
    flat_print,
    shade,
    trim_flat,
    trim_worn,
    worn_print,
)
from triptych.pocket.world import COLOURS, HAIRS, NONE, OTHER_CLOTHES, RGB, SKINS, Garment, Scene

TOPS = ("t-shirt", "sweater", "jacket")
BOTTOMS = ("skirt", "trousers")
ROUND_NECK = ("t-shirt", "sweater", "dress")
ZIP: RGB = (215, 215, 220)
SHOES: RGB = (50, 45, 50)
EYES: RGB = (40, 30, 30)


def _mirror(points: list[Point]) -> list[Point]:
    return points + [(64 - x, y) for x, y in reversed(points)]


FLAT: dict[str, list[Point]] = {
    "t-shirt": _mirror([(27, 20), (17, 24), (5, 38), (12, 45), (18, 39), (18, 76)]),
    "sweater": _mirror([(27, 20), (17, 24), (8, 48), (5, 70), (12, 72), (18, 46), (18, 76)]),
    "jacket": _mirror([(26, 18), (16, 23), (7, 46), (4, 72), (12, 74), (17, 46), (16, 80)]),
    "dress": _mirror([(26, 12), (20, 12), (20, 24), (18, 30), (22, 44), (10, 88)]),
    "skirt": _mirror([(20, 24), (19, 30), (9, 78)]),
    "trousers": [(19, 12), (45, 12), (46, 30), (50, 88), (37, 88), (32, 40), (27, 88), (14, 88), (18, 30)],
}
HAT: list[Point] = [
    (20, 54),
    (21, 40),
    (25, 35),
    (39, 35),
    (43, 40),
    (44, 54),
    (55, 57),
    (55, 61),
    (9, 61),
    (9, 57),
]
BAG: list[Point] = [(17, 40), (47, 40), (50, 68), (14, 68)]
ELBOWS_HANDS: dict[str, tuple[Point, Point, Point, Point]] = {
    "arms down": ((-13, 40), (-14, 54), (13, 40), (14, 54)),
    "arms out": ((-18, 36), (-26, 46), (18, 36), (26, 46)),
    "hand on hip": ((-18, 39), (-9.5, 49), (13, 40), (14, 54)),
    "one arm up": ((-13, 40), (-14, 54), (17, 18), (20, 6)),
}


def _cloth(canvas: Canvas, region: Region, garment: Garment, offset: Point) -> None:
    second = COLOURS[garment.colour if garment.colour2 == NONE else garment.colour2]
    canvas.fill_pattern(region, COLOURS[garment.colour], garment.pattern, second, offset)


def draw_flat(
    canvas: Canvas, garment: Garment, scene: Scene, rng: random.Random, offset: Point, background: RGB
) -> None:
    """Draw the garment lying flat, seen from the front or from the back."""
    scale_x, scale_y = scene.zoom * rng.uniform(0.9, 1.06), scene.zoom * rng.uniform(0.92, 1.04)
    move_x, move_y = rng.uniform(-2, 2), rng.uniform(-3, 3)
    front, cut = scene.view == "front", garment.type
    seam, inside = darker(garment.colour, 0.62), darker(garment.colour, 0.5)

    def place(*points: Point) -> list[Point]:
        return [((x - 32) * scale_x + 32 + move_x, (y - 48) * scale_y + 48 + move_y) for x, y in points]

    outline = place(*FLAT[cut])
    canvas.polygon([(x + 2, y + 2) for x, y in outline], shade(background, 0.86))
    region = canvas.region().polygon(outline)
    neck_y = 12 if cut == "dress" else 20
    neck_depth = (8.0 if cut == "dress" else 6.0) if front else 2.5
    neck = place((26.5, neck_y - neck_depth), (37.5, neck_y + neck_depth))
    if cut in ROUND_NECK:
        region.cut_ellipse(*neck)
    _cloth(canvas, region, garment, offset)
    canvas.line([*outline, outline[0]], 1, seam, garment=True)
    if cut in ROUND_NECK:
        (left, top), (right, bottom) = neck
        level = place((0, neck_y - 0.5))[0][1]
        if front:
            canvas.ellipse((left, top), (right, bottom), inside, garment=True)
            canvas.rectangle((left - 1, top - 1), (right + 1, level), background)
    if cut == "jacket" and front:
        canvas.line(place((32, 22), (32, 80)), 2, ZIP, garment=True)
        canvas.polygon(place((26, 18), (32, 32), (38, 18)), inside, garment=True)
    elif cut == "jacket":
        canvas.line(place((16, 34), (48, 34)), 1, seam, garment=True)
    elif cut == "skirt":
        canvas.line(place((20, 28), (44, 28)), 2, seam, garment=True)
        if not front:
            canvas.line(place((32, 28), (32, 46)), 1, seam, garment=True)
    elif cut == "trousers":
        canvas.line(place((19, 16), (45, 16)), 1, seam, garment=True)
        if front:
            canvas.line(place((32, 16), (32, 38)), 1, seam, garment=True)
        else:
            for x in (21, 35):
                corner, opposite = place((x, 24), (x + 8, 33))
                canvas.frame(corner, opposite, seam)
    trim_flat(canvas, garment, place, front, neck_y)
    if garment.shows_print(scene):
        y, radius = flat_print(garment)
        draw_print(canvas, garment, place((32, y))[0], radius * scale_x)


def draw_worn(canvas: Canvas, garment: Garment, scene: Scene, rng: random.Random, offset: Point) -> None:
    """Draw a person who wears the garment, and plain other clothes on the rest of the body."""
    person = _Person(scene, rng)
    person.draw_body(canvas)
    if companion := scene.companion(garment):
        _draw_both(canvas, person, garment, companion, offset, (rng.uniform(0, 20), rng.uniform(0, 20)))
        return
    other = OTHER_CLOTHES[scene.other]
    canvas.part = PART["trousers" if garment.type in TOPS else "top"]
    if garment.type in TOPS:
        canvas.fill(person.trousers(canvas), other)
    elif garment.type != "dress":
        canvas.fill(person.other_top(canvas), other)
        person.draw_neck(canvas, 4)
    person.draw_garment(canvas, garment, offset)
    _draw_rest(canvas, person, scene)


def _draw_both(
    canvas: Canvas, person: _Person, garment: Garment, companion: Garment, offset: Point, moved: Point
) -> None:
    """Draw a garment and its companion, the top tucked in; only the first counts as the garment."""
    for one, place in sorted(
        [(garment, offset), (companion, moved)], key=lambda pair: pair[0].type in BOTTOMS
    ):
        canvas.counts, canvas.part = one is garment, PART_OF[one.type]
        person.draw_garment(canvas, one, place)
    canvas.counts = True
    _draw_rest(canvas, person, person.scene)


def _draw_rest(canvas: Canvas, person: _Person, scene: Scene) -> None:
    if scene.bag != NONE:
        person.draw_bag(canvas, scene.bag)
    person.draw_head(canvas)
    if scene.hat != NONE:
        person.draw_hat(canvas, scene.hat)


def draw_outfit(
    canvas: Canvas,
    top: Garment,
    bottom: Garment,
    hat: str,
    bag: str,
    scene: Scene,
    rng: random.Random,
    offset: Point,
) -> None:
    """Draw a person who wears two garments, the top tucked in, and perhaps a hat and a bag, each given by its
    colour or `NONE`. ``offset`` moves the top's pattern; the bottom's own is drawn after the person's
    numbers, so that the person is that of :func:`draw_worn`.
    """
    person = _Person(scene, rng)
    below: Point = (rng.uniform(0, 20), rng.uniform(0, 20))
    person.draw_body(canvas)
    for garment, moved in ((top, offset), (bottom, below)):
        canvas.garment_part = PART_OF[garment.type]
        person.draw_garment(canvas, garment, moved)
    if bag != NONE:
        person.draw_bag(canvas, bag)
    person.draw_head(canvas)
    if hat != NONE:
        person.draw_hat(canvas, hat)


def draw_accessory(canvas: Canvas, kind: str, colour: str, rng: random.Random, background: RGB) -> None:
    """Draw a hat or a bag lying alone."""
    cloth, seam, scale = COLOURS[colour], darker(colour, 0.62), rng.uniform(0.9, 1.06)
    move_x, move_y = rng.uniform(-2, 2), rng.uniform(-3, 3)

    def place(*points: Point) -> list[Point]:
        return [((x - 32) * scale + 32 + move_x, (y - 48) * scale + 48 + move_y) for x, y in points]

    outline = place(*(HAT if kind == "hat" else BAG))
    if kind == "bag":
        canvas.part = ACCESSORIES[kind]
        canvas.line(place((23, 42), (25, 28), (39, 28), (41, 42)), 2.4, seam)
    canvas.part = 0
    canvas.polygon([(x + 2, y + 2) for x, y in outline], shade(background, 0.86))
    canvas.part = ACCESSORIES[kind]
    canvas.polygon(outline, cloth)
    canvas.line([*outline, outline[0]], 1, seam)
    canvas.line(place((20, 51), (44, 51)) if kind == "hat" else place((16, 50), (48, 50)), 2, seam)


class _Person:
    """The skeleton of a person: joints in units; all random numbers are drawn at once."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene, self.behind = scene, scene.facing == "behind"
        self.skin, self.hair = SKINS[scene.skin], HAIRS[scene.hair]
        self.x = 32 + rng.uniform(-2.5, 2.5)
        self.shoulder, self.hip, self.foot = 26 + rng.uniform(-1, 1), 52 + rng.uniform(-1, 1), 91.0
        jitter: Callable[[], float] = lambda: rng.uniform(-1, 1)  # noqa: E731
        left_elbow, left_hand, right_elbow, right_hand = (
            self.at(x + jitter(), y + jitter()) for x, y in ELBOWS_HANDS[scene.pose]
        )
        self.arms = [
            [self.at(-9.5, self.shoulder + 3), left_elbow, left_hand],
            [self.at(9.5, self.shoulder + 3), right_elbow, right_hand],
        ]
        self.stance = rng.uniform(4, 6.5)

    def at(self, x: float, y: float) -> Point:
        return self.x + x, y

    def draw_body(self, canvas: Canvas) -> None:
        canvas.part = PART["hair"]
        if self.scene.hairstyle == "long":
            canvas.polygon([self.at(-8, 10), self.at(8, 10), self.at(9.5, 27), self.at(-9.5, 27)], self.hair)
        canvas.ellipse(self.at(-8, 3), self.at(8, 19), self.hair)
        canvas.part = PART["arm"]
        for arm in self.arms:
            canvas.line(arm, 4.4, self.skin, caps=True)
            # the hand is what the longest sleeve leaves bare
            hand = canvas.region().line(arm[1:], 4.4).cut_line(self.sleeve(arm, 1.65), 7.4)
            canvas.fill_label(hand, PART["hand"])
        for side in (-1, 1):
            canvas.part = PART["leg"]
            canvas.line(
                [self.at(side * 4.5, self.hip), self.at(side * self.stance, self.foot - 2)], 6.5, self.skin
            )
            shoe = side * self.stance
            canvas.part = PART["shoe"]
            canvas.ellipse(self.at(shoe - 4.5, self.foot - 3), self.at(shoe + 4.5, self.foot + 3), SHOES)
        canvas.part = PART["neck"]
        canvas.line([self.at(0, 16), self.at(0, self.shoulder + 2)], 6, self.skin, caps=True)

    def draw_neck(self, canvas: Canvas, depth: float) -> None:
        canvas.part = PART["neck"]
        canvas.ellipse(self.at(-4, self.shoulder - depth), self.at(4, self.shoulder + depth), self.skin)

    def trousers_outline(self) -> list[Point]:
        hip, ankle, stance = self.hip, self.foot - 4, self.stance
        half = [(9.3, hip - 1), (10, hip + 8), (stance + 4.6, ankle), (stance - 3.6, ankle)]
        right = [self.at(x, y) for x, y in half]
        left = [self.at(-x, y) for x, y in reversed(half)]
        return [*right, self.at(0, hip + 10), *left]

    def trousers(self, canvas: Canvas) -> Region:
        return canvas.region().polygon(self.trousers_outline())

    def sleeve(self, arm: list[Point], length: float) -> list[Point]:
        """Return the line of a sleeve; ``length`` 1 reaches the elbow, 2 the hand."""
        (x0, y0), (x1, y1) = arm[int(length)], arm[int(length) + 1]
        part = length - int(length)
        return [*arm[: int(length) + 1], (x0 + (x1 - x0) * part, y0 + (y1 - y0) * part)]

    def other_top(self, canvas: Canvas) -> Region:
        shoulder, hip = self.shoulder, self.hip
        corners = [(-11, shoulder), (11, shoulder), (9, hip + 3), (-9, hip + 3)]
        region = canvas.region().polygon([self.at(x, y) for x, y in corners])
        for arm in self.arms:
            region.line(self.sleeve(arm, 0.55), 6)
        return region

    def draw_garment(self, canvas: Canvas, garment: Garment, offset: Point) -> None:
        cut, shoulder, hip = garment.type, self.shoulder, self.hip
        seam = darker(garment.colour, 0.62)
        sleeve, neck_depth = 0.0, 0.0
        if cut in TOPS:
            hem = hip + (9 if cut == "jacket" else 4)
            width = 11.5 if cut == "jacket" else 11.0
            half = [(width - 2, shoulder - 0.5), (width, shoulder + 4), (9.6, shoulder + 16), (10, hem)]
            sleeve, neck_depth = (0.6, 4.0) if cut == "t-shirt" else (1.65, 3.0 if cut == "jacket" else 4.0)
        elif cut == "dress":
            half = [(8, shoulder), (8.5, shoulder + 6), (10, shoulder + 10), (8, hip - 4), (16, hip + 26)]
            neck_depth = 6.0
        else:
            half = [(9.5, hip - 3), (15, hip + 24)]
        outline = [self.at(x, y) for x, y in half] + [self.at(-x, y) for x, y in reversed(half)]
        if cut == "trousers":
            outline = self.trousers_outline()
        sleeves = [self.sleeve(arm, sleeve) for arm in self.arms] if sleeve else []
        for line in sleeves:
            canvas.line(line, 7.4, seam, garment=True, caps=True)
        canvas.line([*outline, outline[0]], 1.4, seam, garment=True)
        region = canvas.region().polygon(outline)
        for line in sleeves:
            region.line(line, 6.3)
        if self.behind:
            neck_depth = min(neck_depth, 2.0)
        if neck_depth:
            self.draw_neck(canvas, neck_depth)
            region.cut_ellipse(self.at(-4, shoulder - neck_depth), self.at(4, shoulder + neck_depth))
        _cloth(canvas, region, garment, offset)
        if cut == "jacket" and self.behind:
            canvas.line([self.at(-10, shoulder + 7), self.at(10, shoulder + 7)], 1, seam, garment=True)
        elif cut == "jacket":
            canvas.line([self.at(0, shoulder + 3), self.at(0, hip + 9)], 2, ZIP, garment=True)
        elif cut in ("skirt", "trousers"):
            canvas.line([self.at(-9.4, hip - 1), self.at(9.4, hip - 1)], 1, seam, garment=True)
            if self.behind and cut == "skirt":
                canvas.line([self.at(0, hip), self.at(0, hip + 12)], 1, seam, garment=True)
            elif self.behind:
                for x in (-8, 2.5):
                    canvas.frame(self.at(x, hip + 3), self.at(x + 5.5, hip + 9), seam)
        trim_worn(canvas, garment, self.at, self.behind, shoulder, hip)
        if garment.shows_print(self.scene):
            y, radius = worn_print(garment, shoulder, hip)
            draw_print(canvas, garment, self.at(0, y), radius)

    def draw_head(self, canvas: Canvas) -> None:
        if self.behind:
            self._draw_head_from_behind(canvas)
            return
        canvas.part = PART["face"]
        canvas.ellipse(self.at(-6, 5), self.at(6, 20), self.skin)
        canvas.part = PART["hair"]
        canvas.half_disc(self.at(-7.5, 2.5), self.at(7.5, 15), self.hair)
        canvas.part = PART["face"]
        for x in (-2.4, 2.4):
            canvas.ellipse(self.at(x - 0.8, 12), self.at(x + 0.8, 13.8), EYES)
        canvas.line([self.at(-1.8, 16.6), self.at(1.8, 16.6)], 1, shade(self.skin, 0.6))

    def _draw_head_from_behind(self, canvas: Canvas) -> None:
        canvas.part = PART["neck"]
        canvas.ellipse(self.at(-6, 5), self.at(6, 20), self.skin)
        canvas.part = PART["hair"]
        canvas.ellipse(self.at(-7.5, 2.5), self.at(7.5, 18), self.hair)
        if self.scene.hairstyle == "long":
            canvas.polygon(
                [self.at(-7.5, 10), self.at(7.5, 10), self.at(8.5, 29), self.at(-8.5, 29)], self.hair
            )

    def draw_hat(self, canvas: Canvas, colour: str) -> None:
        """Draw a hat with a brim, over the hair and clear of the eyes."""
        canvas.part = ACCESSORIES["hat"]
        cloth, seam = COLOURS[colour], darker(colour, 0.62)
        canvas.polygon([self.at(-6.8, 8), self.at(-6, 0.6), self.at(6, 0.6), self.at(6.8, 8)], cloth)
        canvas.line([self.at(-6.8, 6.4), self.at(6.8, 6.4)], 1.6, seam)
        canvas.ellipse(self.at(-11.5, 7), self.at(11.5, 10.6), cloth)

    def draw_bag(self, canvas: Canvas, colour: str) -> None:
        """Draw a bag that hangs from a hand which is down."""
        canvas.part = ACCESSORIES["bag"]
        x, y = self.arms[0 if self.scene.pose == "one arm up" else 1][-1]
        x = min(max(x, 7.0), 57.0)  # the whole bag is in the picture
        seam = darker(colour, 0.62)
        canvas.line([(x - 3, y + 5), (x, y), (x + 3, y + 5)], 1.2, seam)
        canvas.polygon(
            [(x - 5, y + 4.5), (x + 5, y + 4.5), (x + 6.2, y + 15), (x - 6.2, y + 15)], COLOURS[colour]
        )
        canvas.line([(x - 5.4, y + 8), (x + 5.4, y + 8)], 1, seam)
