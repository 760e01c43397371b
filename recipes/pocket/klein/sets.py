"""The pictures that editing with references is learned from, in sets of four, and the edits drawn from them.

A *quad* is two garments times two scenes of ONE view: with the same scene and seed, `render` draws the same
person in the other garment. A *look* is four types of garment in one colour, pattern and print, in any views.
No set holds one garment in two views, none a garment or a person that is held out. So front, back and worn
of one item are left to a LoRA, as in the first pocket.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from triptych.pocket.prompts import BOARD_VIEWS, Panel
from triptych.pocket.render import PANEL_WIDTH, render
from triptych.pocket.world import (
    PRINTABLE,
    TYPES,
    Garment,
    Scene,
    sample_garment,
    sample_printed,
    sample_scene,
)

PATTERN_WEIGHTS = (0.19, 0.23, 0.29, 0.29)
QUAD_VIEWS = {"worn": 0.68, "back": 0.2, "front": 0.12}
BEHIND, PRINTED_QUAD, PRINTED_LOOK, SAME_TYPE = 0.42, 0.6, 0.35, 0.5
"""Shares: people from behind; prints among quads that show backs; looks with a print; quads of one type."""
CROPPED_SIDE, PADDED_WIDTH = 48, 64
"""Reference shapes besides the whole panel: a square cut around the garment; a panel widened to the 64 pixels
that diffusers' pipeline asks for.
"""

ReferenceShape = str
LAYOUTS: dict[str, tuple[ReferenceShape, ...]] = {
    "one": ("whole",),
    "two": ("whole", "whole"),
    "three": ("whole",) * 3,
    "three small": ("cropped",) * 3,
    "wide and small": ("padded", "cropped"),
    "small and wide": ("cropped", "padded"),
}
"""The references of a batch: all examples of a batch have them in the same order and sizes."""


@dataclass(frozen=True)
class PictureSet:
    """Four panels. Quads: garment i in scene j at index 2·i + j."""

    kind: str
    panels: tuple[Panel, ...]
    seeds: tuple[int, ...]

    def pictures(self) -> list[np.ndarray]:
        """Draw the panels, uint8 (72, 48, 3)."""
        return [self.picture(index) for index in range(len(self.panels))]

    def picture(self, index: int, scale: int = 1) -> np.ndarray:
        """Draw one panel, uint8 (72, 48, 3) times the scale."""
        return np.asarray(render(*self.panels[index], self.seeds[index], scale).image)


def sample_quad(rng: random.Random, held_out: bool = False) -> PictureSet:
    """Draw two different garments and two scenes of one view, facing the same way."""
    view = rng.choices(list(QUAD_VIEWS), list(QUAD_VIEWS.values()))[0]
    facing: dict[str, Any] = (
        {"facing": "behind" if rng.random() < BEHIND else "front"} if view == "worn" else {}
    )
    scenes = [sample_scene(rng, view, held_out=held_out, **facing) for _ in range(2)]
    if view != "worn" and rng.random() < 0.5:
        scenes[1] = replace(scenes[1], zoom=rng.uniform(0.6, 0.9))
    printed = scenes[0].shows_back and rng.random() < PRINTED_QUAD
    same_type = rng.random() < SAME_TYPE

    def garment() -> Garment:
        if printed:
            return sample_printed(rng, held_out=held_out)
        return sample_garment(rng, pattern_weights=PATTERN_WEIGHTS, held_out=held_out)

    garments = [garment()]
    while len(garments) < 2:
        other = garment()
        if other != garments[0] and (other.type == garments[0].type or not same_type):
            garments.append(other)
    seeds = [rng.getrandbits(31) for _ in scenes]
    panels = tuple((one, scene) for one in garments for scene in scenes)
    return PictureSet("quad", panels, (*seeds, *seeds))


def sample_look(rng: random.Random, held_out: bool | None = False) -> PictureSet:
    """Draw four types of one look, in any views. held_out: True wants the first to be held out."""
    printed = rng.random() < PRINTED_LOOK
    while True:
        first = (
            sample_printed(rng, held_out=held_out)
            if printed
            else sample_garment(rng, pattern_weights=PATTERN_WEIGHTS, print_share=0, held_out=held_out)
        )
        types = [type_ for type_ in (PRINTABLE if printed else TYPES) if type_ != first.type]
        garments = [first, *(replace(first, type=type_) for type_ in rng.sample(types, 3))]
        if held_out or not any(one.held_out for one in garments):
            break

    def scene() -> Scene:
        drawn = sample_scene(
            rng,
            rng.choice(("back", "worn") if printed else BOARD_VIEWS),
            behind_share=0.75 if printed else 0.3,
            held_out=bool(held_out),
        )
        small = not drawn.worn and rng.random() < 0.25
        return replace(drawn, zoom=rng.uniform(0.65, 0.9)) if small else drawn

    panels = tuple((garment, scene()) for garment in garments)
    return PictureSet("look", panels, tuple(rng.getrandbits(31) for _ in panels))


def cropped(picture: np.ndarray, panel: Panel) -> np.ndarray:
    """Cut a square as wide as the panel around the garment."""
    garment, scene = panel
    top = 12
    if scene.worn:
        top = 24 if garment.type in ("skirt", "trousers") else 12 if garment.type == "dress" else 8
    scale = picture.shape[1] // PANEL_WIDTH
    return picture[top * scale : (top + CROPPED_SIDE) * scale]


def padded(picture: np.ndarray) -> np.ndarray:
    """Widen a panel of 48 pixels to 64, a larger one as much, in the colour of its upper left corner."""
    margin = (PADDED_WIDTH * picture.shape[1] // PANEL_WIDTH - picture.shape[1]) // 2
    sides = np.broadcast_to(picture[0, 0], (picture.shape[0], margin, 3))
    return np.concatenate([sides, picture, sides], 1)


def reshaped(picture: np.ndarray, panel: Panel, shape: ReferenceShape) -> np.ndarray:
    """Bring a panel to the shape of a reference."""
    if shape == "cropped":
        return cropped(picture, panel)
    return padded(picture) if shape == "padded" else picture


Place = tuple[str, int, int]
"""A picture of the bank: kind of its set, number of the set, number within it."""


@dataclass(frozen=True)
class Edit:
    """One example. Numbers of references count from 1; 0: from none of them."""

    kind: str
    target: Place
    references: tuple[Place, ...]
    garment_from: tuple[int, ...] = ()
    person_from: int = 0


EDIT_SHARES: dict[str, dict[str, float]] = {
    "one": {"scene": 0.5, "look": 0.2, "matching": 0.3},
    "two": {"scene": 0.3, "dress": 0.45, "look": 0.05, "matching": 0.2},
    "three": {"scene": 0.2, "dress": 0.3, "matching": 0.5},
    "three small": {"scene": 0.4, "matching": 0.6},
    "wide and small": {"scene": 0.4, "dress": 0.35, "matching": 0.25},
    "small and wide": {"scene": 0.4, "dress": 0.35, "matching": 0.25},
}
SCENE_VIEWS = {"worn": 0.5, "back": 0.35, "front": 0.15}
PRINTED_EDITS = 0.35
"""Share of the edits of kinds `scene` and `dress` that are drawn among quads with prints."""


def draw_edit(
    layout: str, sets: Mapping[str, Sequence[PictureSet]], rng: random.Random, kind: str | None = None
) -> Edit:
    """Draw an edit whose references fit a layout; kinds:

    scene: the same garment in another scene, same view. dress: the person of one reference, the garment of
    another. look: the person of a reference in a garment that the words name. matching: another type in the
    look of one to three references.
    """
    shapes = LAYOUTS[layout]
    shares = EDIT_SHARES[layout]
    kind = kind or rng.choices(list(shares), list(shares.values()))[0]
    if kind == "matching":
        number = rng.randrange(len(sets["look"]))
        order = rng.sample(range(4), len(shapes) + 1)
        places = tuple(("look", number, index) for index in order)
        return Edit(kind, places[-1], places[:-1], tuple(range(1, len(shapes) + 1)))
    quads = sets["quad"]
    printed = rng.random() < PRINTED_EDITS

    def wanted(one: PictureSet) -> bool:
        garment, scene = one.panels[0]
        has_print = scene.shows_back and garment.print != "none"
        return (scene.worn or kind == "scene") and (has_print or not printed)

    number = _find(quads, wanted, rng)
    garment, scene = rng.randrange(2), rng.randrange(2)
    target: Place = ("quad", number, 2 * garment + scene)
    same_garment: Place = ("quad", number, 2 * garment + 1 - scene)
    same_person: Place = ("quad", number, 2 * (1 - garment) + scene)
    needed = {"scene": [same_garment], "dress": [same_person, same_garment], "look": [same_person]}[kind]
    references = [*needed]
    shown = {quads[number].panels[0][0].look, quads[number].panels[2][0].look}

    def unlike(one: PictureSet) -> bool:
        return all(garment.look not in shown for garment, _ in one.panels)

    while len(references) < len(shapes):
        other = _find(quads, unlike, rng)
        references.append(("quad", other, rng.randrange(4)))
        shown |= {garment.look for garment, _ in quads[other].panels}
    while True:
        rng.shuffle(references)
        if kind == "scene" or shapes[references.index(same_person)] != "cropped":
            break  # a person is copied whole
    return Edit(
        kind,
        target,
        tuple(references),
        (references.index(same_garment) + 1,) if kind != "look" else (),
        references.index(same_person) + 1 if kind != "scene" else 0,
    )


def _find(quads: Sequence[PictureSet], wanted: Callable[[PictureSet], bool], rng: random.Random) -> int:
    while True:
        number = rng.randrange(len(quads))
        if wanted(quads[number]):
            return number
