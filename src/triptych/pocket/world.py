"""The pocket world: every garment and every picture of it that the renderer can draw.

The world is deliberately small: six types of garment, eight well separated colours, four coarse patterns,
three back prints. A :class:`Garment` says what is shown, a :class:`Scene` how, and (garment, scene, seed)
fixes every pixel.

One garment in six and one person in six are *held out*: samplers draw them only on request. So no training
(of the base, the judge, the captioner or a LoRA) has seen them, and all measurements use only them.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (215, 30, 35),
    "yellow": (250, 215, 35),
    "green": (30, 145, 60),
    "blue": (35, 70, 215),
    "purple": (130, 40, 170),
    "pink": (250, 150, 195),
    "black": (28, 28, 32),
    "white": (247, 247, 246),
}
SECOND_COLOURS: dict[str, tuple[str, str]] = {
    "red": ("white", "black"),
    "yellow": ("black", "blue"),
    "green": ("white", "yellow"),
    "blue": ("white", "yellow"),
    "purple": ("white", "yellow"),
    "pink": ("black", "blue"),
    "black": ("white", "red"),
    "white": ("black", "blue"),
}
TYPES = ("t-shirt", "sweater", "dress", "skirt", "jacket", "trousers")
PATTERNS = ("plain", "stripes", "dots", "check")
PRINTS = ("circle", "cross", "triangle")
"""Large motifs on the back of plain garments: visible flat from the back and on people from behind, never
from the front.
"""
PRINTABLE = ("t-shirt", "sweater", "dress", "jacket")
VIEWS = ("front", "back", "worn")
FACINGS = ("front", "behind")
SKINS: dict[str, RGB] = {"light": (244, 208, 178), "tan": (205, 155, 115), "dark": (118, 76, 52)}
HAIRS: dict[str, RGB] = {"blond": (228, 192, 100), "dark": (40, 30, 28), "ginger": (180, 75, 34)}
BACKGROUNDS: dict[str, RGB] = {
    "grey": (192, 194, 198),
    "beige": (226, 208, 180),
    "mint": (172, 216, 196),
    "sky": (172, 204, 232),
}
OTHER_CLOTHES: dict[str, RGB] = {"navy": (40, 50, 90), "grey": (120, 122, 128), "cream": (226, 216, 196)}
POSES = ("arms down", "arms out", "hand on hip", "one arm up")
HAIRSTYLES = ("short", "long")
NONE = "none"
"""Value for an absent attribute: the second colour of a plain garment, a print, the hair in a flat lay."""
PRINT_SHARE, BEHIND_SHARE = 0.5, 0.3
"""Share of the plain printable garments with a back print; share of the people seen from behind."""
HELD_OUT = 6
"""One garment or person in this many is held out."""


def is_held_out(thing: Any) -> bool:
    """True for one tuple of attributes in six."""
    return zlib.crc32("|".join(map(str, thing)).encode()) % HELD_OUT == 0


@dataclass(frozen=True)
class Garment:
    """What is shown: a type and a look (colour, pattern, second colour, back print)."""

    type: str
    colour: str
    pattern: str = "plain"
    colour2: str = NONE
    print: str = NONE
    place, neckline, hood, pockets = "back", "round", False, False
    """What the garments of `rich` vary: no fields here, so that these garments stay what they were."""

    def __post_init__(self) -> None:
        """Refuse a garment that the renderer cannot draw."""
        assert self.type in TYPES, self.type
        assert self.colour in COLOURS, self.colour
        assert self.pattern in PATTERNS, self.pattern
        assert (self.colour2 == NONE) == (self.pattern == "plain"), self
        assert self.colour2 == NONE or self.colour2 in COLOURS, self.colour2
        assert self.print == NONE or (
            self.print in PRINTS and self.type in PRINTABLE and self.pattern == "plain"
        ), self

    @property
    def look(self) -> tuple[str, str, str, str]:
        """Colour, pattern, second colour and print: everything but the cut."""
        return self.colour, self.pattern, self.colour2, self.print

    @property
    def cut(self) -> dict[str, str]:
        """What words can say of the cut beyond the type."""
        return {}

    @property
    def called(self) -> str:
        """The type, with the words for the cut."""
        return self.type

    @property
    def print_phrase(self) -> str:
        """The words for the print."""
        return f"a {self.print} print"

    def shows_print(self, scene: Scene) -> bool:
        """True if there is a print, on the side that the scene shows."""
        return self.print != NONE and scene.shows_back

    @property
    def held_out(self) -> bool:
        """True for one garment in six: never used in training."""
        return is_held_out(astuple(self))


@dataclass(frozen=True)
class Scene:
    """How it is shown: as a flat lay (front, back) or on a person (worn)."""

    view: str
    background: str
    skin: str = NONE
    hair: str = NONE
    hairstyle: str = NONE
    pose: str = NONE
    other: str = NONE
    facing: str = NONE
    zoom: float = 1.0
    hat, bag, shaded = NONE, NONE, False
    """What the scenes of `rich` vary."""

    def companion(self, garment: Garment) -> Garment | None:
        """Return the second garment of the world that a person wears with this one; None: plain clothes."""
        return None

    def besides(self, garment: Garment) -> dict[str, tuple[str, str]]:
        """Return what else a person wears that words can tell: by attribute, its value and the words."""
        return {}

    @property
    def worn(self) -> bool:
        """True when a person wears the garment."""
        return self.view == "worn"

    @property
    def shows_back(self) -> bool:
        """True if the back of the garment is visible: lying flat, or on a person from behind."""
        return self.view == "back" or self.facing == "behind"

    @property
    def held_out(self) -> bool:
        """True for one person in six (looks, pose, clothes and background together); flat lays are never held
        out.
        """
        return self.worn and is_held_out(astuple(replace(self, zoom=1.0)))


def sample_garment(
    rng: random.Random,
    *,
    pattern_weights: tuple[float, ...] | None = None,
    print_share: float = PRINT_SHARE,
    held_out: bool | None = False,
    **fixed: str,
) -> Garment:
    """Draw a garment; keyword arguments fix attributes, ``pattern_weights`` follows :data:`PATTERNS`.

    ``print_share`` is the share of plain printable garments with a back print. ``held_out``: False draws only
    garments for training, True only held-out ones, None both.
    """
    while True:
        type_ = fixed.get("type") or rng.choice(TYPES)
        colour = fixed.get("colour") or rng.choice(tuple(COLOURS))
        pattern = fixed.get("pattern") or rng.choices(PATTERNS, pattern_weights)[0]
        colour2 = NONE if pattern == "plain" else fixed.get("colour2") or rng.choice(SECOND_COLOURS[colour])
        printed = type_ in PRINTABLE and pattern == "plain" and rng.random() < print_share
        garment = Garment(
            type_, colour, pattern, colour2, fixed.get("print") or (rng.choice(PRINTS) if printed else NONE)
        )
        if held_out is None or garment.held_out == held_out:
            return garment


def sample_printed(rng: random.Random, *, held_out: bool | None = False) -> Garment:
    """Draw a garment with a back print."""
    return sample_garment(
        rng, print_share=1.0, held_out=held_out, type=rng.choice(PRINTABLE), pattern="plain"
    )


def sample_scene(
    rng: random.Random,
    view: str,
    *,
    behind_share: float = BEHIND_SHARE,
    held_out: bool | None = False,
    **fixed: Any,
) -> Scene:
    """Draw a scene of one view; keyword arguments fix fields of the scene, ``held_out`` as in
    :func:`sample_garment`.

    ``behind_share`` is the share of the people seen from behind.
    """
    assert view in VIEWS, view
    while True:
        scene = Scene(view, rng.choice(tuple(BACKGROUNDS)))
        if view == "worn":
            scene = replace(
                scene,
                skin=rng.choice(tuple(SKINS)),
                hair=rng.choice(tuple(HAIRS)),
                hairstyle=rng.choice(HAIRSTYLES),
                pose=rng.choice(POSES),
                other=rng.choice(tuple(OTHER_CLOTHES)),
                facing=FACINGS[rng.random() < behind_share],
            )
        scene = replace(scene, **fixed)
        if held_out is None or not scene.worn or scene.held_out == held_out:
            return scene


def sample_triptych_scenes(
    rng: random.Random, *, behind_share: float = BEHIND_SHARE, held_out: bool | None = False
) -> tuple[Scene, Scene, Scene]:
    """Draw front, back and worn scenes of one item; the two flat lays often share a background."""
    front, back, worn = (
        sample_scene(rng, view, behind_share=behind_share, held_out=held_out) for view in VIEWS
    )
    if rng.random() < 0.6:
        back = replace(back, background=front.background)
    return front, back, worn


def as_json(thing: Garment | Scene) -> dict[str, Any]:
    """Return a garment or a scene as plain JSON data."""
    return asdict(thing)
