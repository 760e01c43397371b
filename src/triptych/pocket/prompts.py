"""Captions in the house format: ``summary <IMAGE 1> ... <IMAGE 2> ... <IMAGE 3> ...``.

``named`` says whether a panel's caption names the look of its garment (colour, pattern, second colour).
A caption comes with what it said, panel by panel: the text encoders are trained to understand exactly that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triptych.pocket.world import TYPES, Garment, Scene, sample_garment, sample_scene, sample_triptych_scenes

TRIPTYCH_SUMMARY = "three pictures of one <Brand> item"
"""Pictures of the pretraining never carry this summary; the text encoders have read it."""

BOARD_SUMMARIES: dict[str, tuple[str, ...]] = {
    "independent": ("three different pictures", "three pictures of different items"),
    "matching": ("three matching pictures", "three pictures of matching items"),
    "copy": ("three pictures, an item and a copy", "three pictures with a copy"),
}
BOARD_VIEWS = ("front", "back", "worn", "worn")

Panel = tuple[Garment, Scene]


@dataclass(frozen=True)
class Caption:
    """A caption and what each of its panels said: attribute name to value."""

    text: str
    said: tuple[dict[str, str], ...]
    kind: str = "single"
    panels: tuple[str, ...] = field(default=())


def look_phrase(garment: Garment, named: bool = True) -> str:
    """Return ``red dress with white dots``, ``plain red dress`` or, not named, ``dress``."""
    if not named:
        return garment.type
    if garment.pattern == "plain":
        return f"plain {garment.colour} {garment.type}"
    return f"{garment.colour} {garment.type} with {garment.colour2} {garment.pattern}"


def panel_caption(
    garment: Garment,
    scene: Scene,
    rng: random.Random | None = None,
    *,
    named: bool = True,
    details: float = 0.6,
    article: str = "a",
) -> Caption:
    """Describe one panel; every detail (hair, background) appears with probability ``details`` (without rng: all)."""

    def tell() -> bool:
        return rng is None or rng.random() < details

    said = {"type": garment.type, "view": scene.view}
    if named:
        said |= {"colour": garment.colour, "pattern": garment.pattern, "colour2": garment.colour2}
    text = f"{article} {look_phrase(garment, named)}"
    if scene.worn:
        person = "a person"
        if tell():
            person += f" with {scene.hairstyle} {scene.hair} hair"
            said |= {"hair": scene.hair, "hairstyle": scene.hairstyle}
        text = f"{person} wearing {text}"
    else:
        text = f"the {scene.view} of {text}"
    if tell():
        text += f", {scene.background} background"
        said["background"] = scene.background
    return Caption(text, (said,), panels=(text,))


def join_captions(summary: str, captions: Sequence[Caption], kind: str) -> Caption:
    """Put a summary and panel captions together."""
    panels = tuple(caption.text for caption in captions)
    text = summary + "".join(f" <IMAGE {index}> {panel}" for index, panel in enumerate(panels, 1))
    return Caption(text, tuple(caption.said[0] for caption in captions), kind, panels)


def triptych_caption(
    garment: Garment,
    scenes: Sequence[Scene],
    rng: random.Random | None = None,
    *,
    named: bool = True,
    details: float = 0.6,
    summary: str = TRIPTYCH_SUMMARY,
) -> Caption:
    """Describe front, back and worn of one item: panel 1 may name the look, the others say ``the dress``."""
    captions = [
        panel_caption(garment, scene, rng, named=named and not index, details=details, article="the" if index else "a")
        for index, scene in enumerate(scenes)
    ]
    return join_captions(summary, captions, "one item")


def sample_board(rng: random.Random, kind: str, pattern_weights: tuple[float, ...] | None = None) -> list[Panel]:
    """Draw three panels that are never front, back and worn of one item.

    ``matching``: three types, one look. ``copy``: one garment twice in the SAME view, and another item.
    ``independent``: three items.
    """

    def scene(view: str | None = None) -> Scene:
        drawn = sample_scene(rng, view or rng.choice(BOARD_VIEWS))
        small = not drawn.worn and rng.random() < 0.35
        return replace(drawn, zoom=rng.uniform(0.6, 0.9)) if small else drawn

    first = sample_garment(rng, pattern_weights=pattern_weights)
    if kind == "matching":
        return [(replace(first, type=type_), scene()) for type_ in rng.sample(TYPES, 3)]
    if kind == "independent":
        others = [sample_garment(rng, pattern_weights=pattern_weights) for _ in range(2)]
        return [(garment, scene()) for garment in (first, *others)]
    assert kind == "copy", kind
    view = rng.choice(BOARD_VIEWS)
    large, small = scene(view), scene(view)
    if view != "worn":
        large, small = replace(large, zoom=1.0), replace(small, zoom=rng.uniform(0.55, 0.9))
    panels = [(first, large), (first, small), (sample_garment(rng, pattern_weights=pattern_weights), scene())]
    rng.shuffle(panels)
    return panels


def board_caption(
    panels: Sequence[Panel],
    kind: str,
    rng: random.Random,
    *,
    silent: float = 0.25,
    one_named: float = 0.5,
    details: float = 0.5,
) -> Caption:
    """Describe a board: no panel names its look (``silent``), one does (``one_named``), or all do (the rest)."""
    count, chance = len(panels), rng.random()
    if kind == "independent":
        named = [rng.random() < 0.6 for _ in panels]
    elif chance < silent:
        named = [False] * count
    elif chance < silent + one_named:
        chosen = rng.randrange(count)
        named = [index == chosen for index in range(count)]
    else:
        named = [True] * count
    captions = [
        panel_caption(garment, scene, rng, named=tell, details=details, article=rng.choice(("a", "the")))
        for (garment, scene), tell in zip(panels, named, strict=True)
    ]
    return join_captions(rng.choice(BOARD_SUMMARIES[kind]), captions, kind)


def sample_triptych(rng: random.Random, **fixed: str) -> tuple[Garment, tuple[Scene, Scene, Scene]]:
    """Draw one item and its front, back and worn scenes."""
    return sample_garment(rng, pattern_weights=None, **fixed), sample_triptych_scenes(rng)
