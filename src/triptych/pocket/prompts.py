"""Captions in the house format: ``summary <IMAGE 1> ... <IMAGE 2> ... <IMAGE 3> ...``.

``named`` says whether a panel's caption names the look of its garment (colour, pattern, second colour). A
caption comes with the attributes it states, panel by panel: the text encoders are trained to understand
exactly these.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triptych.pocket.world import (
    BEHIND_SHARE,
    NONE,
    PRINTABLE,
    TYPES,
    Garment,
    Scene,
    sample_garment,
    sample_printed,
    sample_scene,
    sample_triptych_scenes,
)

TRIPTYCH_SUMMARY = "three pictures of one <Brand> item"
"""Pictures in the pretraining never have this summary; only the text encoders have read it."""

BOARD_SUMMARIES: dict[str, tuple[str, ...]] = {
    "independent": ("three different pictures", "three pictures of different items"),
    "matching": ("three matching pictures", "three pictures of matching items"),
    "copy": ("three pictures, an item and a copy", "three pictures with a copy"),
}
BOARD_VIEWS = ("front", "back", "worn", "worn")

Panel = tuple[Garment, Scene]


@dataclass(frozen=True)
class Caption:
    """A caption and the attributes that each of its panels states: attribute name to value."""

    text: str
    said: tuple[dict[str, str], ...]
    kind: str = "single"
    panels: tuple[str, ...] = field(default=())


def look_phrase(garment: Garment, named: bool = True, *, printed: bool = False, wording: int = 0) -> str:
    """Return ``red dress with white dots``, ``plain red dress`` or, not named, ``dress``; ``printed`` adds
    the print.

    ``wording`` 0 is the house wording, 1 a synonymous one.
    """
    if not named:
        return garment.type
    colour = f"plain {garment.colour}" if garment.pattern == "plain" else garment.colour
    phrase = f"{garment.called} in {colour}" if wording else f"{colour} {garment.called}"
    if garment.pattern != "plain":
        phrase += f" with {garment.colour2} {garment.pattern}"
    if printed and garment.print != NONE:
        phrase += f" with {garment.print_phrase}"
    return phrase


PEOPLE, WEARING = ("a person", "someone", "a model"), ("wearing", "dressed in", "in")
FLAT = ("the {view} of {look}", "{view} view of {look}", "{look}, {view} side")
BACKGROUND = (", {} background", ", on {}", ", {} behind")
"""Synonymous wordings. The first is the house's, used unless wordings are to vary."""


def panel_caption(
    garment: Garment,
    scene: Scene,
    rng: random.Random | None = None,
    *,
    named: bool = True,
    details: float = 0.6,
    article: str = "a",
    varied: bool = False,
) -> Caption:
    """Describe one panel; every detail (hair, background) appears with probability ``details`` (without rng:
    always).

    ``varied`` draws the wording too; otherwise it is the house's. The caption does not mention that a person
    faces the camera.
    """

    def tell() -> bool:
        return rng is None or rng.random() < details

    def word(choices: tuple[str, ...]) -> str:
        return rng.choice(choices) if rng is not None and varied and rng.random() < 0.6 else choices[0]

    said = {"type": garment.type, "view": scene.view}
    if named:
        said |= {"colour": garment.colour, "pattern": garment.pattern, "colour2": garment.colour2}
        said |= garment.cut
        if garment.shows_print(scene):
            said |= {"print": garment.print, "place": garment.place}
    wording = int(rng is not None and varied and rng.random() < 0.3)
    look = f"{article} {look_phrase(garment, named, printed=garment.shows_print(scene), wording=wording)}"
    if scene.worn:
        said["facing"] = scene.facing
        person = word(PEOPLE)
        if scene.facing == "behind":
            person += " from behind"
        if tell():
            person += f" with {scene.hairstyle} {scene.hair} hair"
            said |= {"hair": scene.hair, "hairstyle": scene.hairstyle}
        text = f"{person} {word(WEARING)} {look}"
        for name, (value, words) in scene.besides(garment).items():
            if tell():
                text += words
                said[name] = value
    else:
        text = word(FLAT).format(view=scene.view, look=look)
    if tell():
        text += word(BACKGROUND).format(scene.background)
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
    varied: bool = False,
) -> Caption:
    """Describe front, back and worn of one item: panel 1 may name the look, the others say ``the dress``.

    A back print is named where it first appears: on the back.
    """
    captions = []
    for index, scene in enumerate(scenes):
        tell = named and (not index or (index == 1 and garment.print != NONE))
        article = "the" if index else "a"
        captions.append(
            panel_caption(garment, scene, rng, named=tell, details=details, article=article, varied=varied)
        )
    return join_captions(summary, captions, "one item")


def sample_board(
    rng: random.Random,
    kind: str,
    pattern_weights: tuple[float, ...] | None = None,
    *,
    print_share: float = 0.18,
    behind_share: float = BEHIND_SHARE,
) -> list[Panel]:
    """Draw three panels that are never front, back and worn of one item.

    ``matching``: three types, one look. ``copy``: one garment twice in the SAME view, and another item.
    ``independent``: three items. ``print_share`` of the boards show back prints, mostly from behind.
    """
    printed = rng.random() < print_share

    def scene(view: str | None = None) -> Scene:
        drawn = sample_scene(
            rng, view or rng.choice(("back", "worn") if printed else BOARD_VIEWS), behind_share=behind_share
        )
        if printed and drawn.worn and rng.random() < 0.7:
            drawn = sample_scene(rng, "worn", facing="behind")
        small = not drawn.worn and rng.random() < 0.35
        return replace(drawn, zoom=rng.uniform(0.6, 0.9)) if small else drawn

    def garment() -> Garment:
        return sample_printed(rng) if printed else sample_garment(rng, pattern_weights=pattern_weights)

    if kind == "matching":
        while True:
            first = garment()
            types = rng.sample(PRINTABLE if first.print != NONE else TYPES, 3)
            garments = [replace(first, type=type_) for type_ in types]
            if not any(one.held_out for one in garments):
                return [(one, scene()) for one in garments]
    if kind == "independent":
        return [(garment(), scene()) for _ in range(3)]
    assert kind == "copy", kind
    first, view = garment(), rng.choice(("back", "worn") if printed else BOARD_VIEWS)
    large, small = scene(view), scene(view)
    if view != "worn":
        large, small = replace(large, zoom=1.0), replace(small, zoom=rng.uniform(0.55, 0.9))
    elif printed:
        small = sample_scene(rng, "worn", facing=large.facing)
    panels = [(first, large), (first, small), (garment(), scene())]
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
    varied: bool = False,
) -> Caption:
    """Describe a board: with probability ``silent`` no panel names its look, with ``one_named`` one does,
    otherwise all do.
    """
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
        panel_caption(
            garment, scene, rng, named=tell, details=details, article=rng.choice(("a", "the")), varied=varied
        )
        for (garment, scene), tell in zip(panels, named, strict=True)
    ]
    return join_captions(rng.choice(BOARD_SUMMARIES[kind]), captions, kind)


def sample_triptych(
    rng: random.Random, *, held_out: bool | None = False
) -> tuple[Garment, tuple[Scene, Scene, Scene]]:
    """Draw one item and its front, back and worn scenes; ``held_out`` applies to the garment and to the
    person.
    """
    return sample_garment(rng, held_out=held_out), sample_triptych_scenes(rng, held_out=held_out)
