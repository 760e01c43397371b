"""The pocket world: every garment and every picture of it that the renderer can draw.

The world is small on purpose: six types of garment, eight well separated colours, four coarse patterns.
A :class:`Garment` says what is shown, a :class:`Scene` says how, and (garment, scene, seed) fixes every pixel.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
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
VIEWS = ("front", "back", "worn")
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
"""The second colour of a plain garment."""


@dataclass(frozen=True)
class Garment:
    """What is shown: a type and a look (colour, pattern, second colour)."""

    type: str
    colour: str
    pattern: str = "plain"
    colour2: str = NONE

    def __post_init__(self) -> None:
        """Refuse a garment that the renderer cannot draw."""
        assert self.type in TYPES, self.type
        assert self.colour in COLOURS, self.colour
        assert self.pattern in PATTERNS, self.pattern
        assert (self.colour2 == NONE) == (self.pattern == "plain"), self
        assert self.colour2 == NONE or self.colour2 in COLOURS, self.colour2

    @property
    def look(self) -> tuple[str, str, str]:
        """Colour, pattern and second colour: all that is not the cut."""
        return self.colour, self.pattern, self.colour2


@dataclass(frozen=True)
class Scene:
    """How it is shown: a flat lay (front, back) or a person (worn)."""

    view: str
    background: str
    skin: str = NONE
    hair: str = NONE
    hairstyle: str = NONE
    pose: str = NONE
    other: str = NONE
    zoom: float = 1.0

    @property
    def worn(self) -> bool:
        """True when a person wears the garment."""
        return self.view == "worn"


def sample_garment(rng: random.Random, *, pattern_weights: tuple[float, ...] | None = None, **fixed: str) -> Garment:
    """Draw a garment; keyword arguments fix attributes, ``pattern_weights`` follows :data:`PATTERNS`."""
    type_ = fixed.get("type") or rng.choice(TYPES)
    colour = fixed.get("colour") or rng.choice(tuple(COLOURS))
    pattern = fixed.get("pattern") or rng.choices(PATTERNS, pattern_weights)[0]
    colour2 = NONE if pattern == "plain" else fixed.get("colour2") or rng.choice(SECOND_COLOURS[colour])
    return Garment(type_, colour, pattern, colour2)


def sample_scene(rng: random.Random, view: str, **fixed: Any) -> Scene:
    """Draw a scene of one view; keyword arguments fix fields of the scene."""
    assert view in VIEWS, view
    scene = Scene(view, rng.choice(tuple(BACKGROUNDS)))
    if view == "worn":
        scene = replace(
            scene,
            skin=rng.choice(tuple(SKINS)),
            hair=rng.choice(tuple(HAIRS)),
            hairstyle=rng.choice(HAIRSTYLES),
            pose=rng.choice(POSES),
            other=rng.choice(tuple(OTHER_CLOTHES)),
        )
    return replace(scene, **fixed) if fixed else scene


def sample_triptych_scenes(rng: random.Random) -> tuple[Scene, Scene, Scene]:
    """Draw front, back and worn scenes of one item; the two flat lays often share a background."""
    front, back, worn = (sample_scene(rng, view) for view in VIEWS)
    if rng.random() < 0.6:
        back = replace(back, background=front.background)
    return front, back, worn


def as_json(thing: Garment | Scene) -> dict[str, Any]:
    """Return a garment or a scene as plain JSON data."""
    return asdict(thing)
