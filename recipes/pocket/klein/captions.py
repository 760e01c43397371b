"""What an edit with references is asked for in words, and what these words state.

Two forms. Pointing: "a person wearing the dress of picture 2, mint background". The house's: the references
are the first pictures of a caption with <IMAGE n> and the picture that is drawn is the last.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from triptych.pocket.prompts import Caption, Panel, join_captions, look_phrase, panel_caption

HOUSE_FORM = 0.45
"""Share of the edits `scene` and `matching` that are worded in the house's form."""
NAMED_TARGET = 0.15
"""Share of the pointing prompts that also name the look."""
WITHOUT_POINTER = 0.35
"""Share of the prompts without a word about the references, where there is only one look to be copied."""
COUNTS = {2: "two", 3: "three", 4: "four"}
PICTURES = ("picture", "image")
SCENE = ("as in {}", "from {}", "of {}", "the one in {}")
MATCHING = ("matching {}", "in the look of {}", "in the colours of {}")
DRESS = (
    "the person of {person} wearing the {type} of {garment}",
    "the person in {person} dressed in the {type} from {garment}",
    "put the {type} of {garment} on the person of {person}",
    "{person} with the {type} from {garment}",
)
LOOK = (
    "the person of {person} wearing a {look}",
    "the same person as in {person}, now in a {look}",
    "put a {look} on the person of {person}",
    "{person} with a {look}",
)


def edit_caption(
    kind: str,
    target: Panel,
    references: Sequence[Panel],
    garment_from: tuple[int, ...],
    person_from: int,
    rng: random.Random,
    *,
    named: bool | None = None,
    house: bool | None = None,
    details: float = 0.5,
    varied: bool = True,
) -> Caption:
    """Word one edit. named: whether the words name the look (None: now and then)."""
    types = [garment.type for garment, _ in references]
    clear = kind == "matching" or (kind == "scene" and types.count(target[0].type) == 1)
    if house is None:
        house = rng.random() < HOUSE_FORM
    if house and clear:
        return _in_house_form(kind, target, references, garment_from, rng, named, details, varied)
    word = rng.choice(PICTURES) if varied else PICTURES[0]
    if kind in ("dress", "look"):
        return _about_person(kind, target, garment_from, person_from, rng, word, varied)
    tell = rng.random() < NAMED_TARGET if named is None else named
    caption = panel_caption(*target, rng, named=tell, details=details, article="the", varied=varied)
    said = dict(caption.said[0])
    text = caption.text
    alone = kind == "matching" or len(references) == 1
    if not (alone and varied and rng.random() < WITHOUT_POINTER):
        wordings = SCENE if kind == "scene" else MATCHING
        phrase = (rng.choice(wordings) if varied else wordings[0]).format(_pictures(word, garment_from))
        text += f", {phrase}"
        said["garment from"] = str(garment_from[0]) if len(garment_from) == 1 else "all"
    return Caption(text, (said,), kind, (text,))


def _pictures(word: str, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{word} {numbers[0]}"
    return f"{word}s {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _about_person(
    kind: str,
    target: Panel,
    garment_from: tuple[int, ...],
    person_from: int,
    rng: random.Random,
    word: str,
    varied: bool,
) -> Caption:
    garment, scene = target
    said = {"type": garment.type, "view": scene.view, "person from": str(person_from)}
    person = f"{word} {person_from}"
    wordings = DRESS if kind == "dress" else LOOK
    wording = rng.choice(wordings) if varied else wordings[0]
    if kind == "dress":
        text = wording.format(person=person, type=garment.type, garment=f"{word} {garment_from[0]}")
        said["garment from"] = str(garment_from[0])
    else:
        synonym = int(varied and rng.random() < 0.3)
        look = look_phrase(garment, printed=garment.shows_print(scene), wording=synonym)
        text = wording.format(person=person, look=look)
        said |= {"colour": garment.colour, "pattern": garment.pattern, "colour2": garment.colour2}
        if scene.shows_back and garment.print != "none":
            said["print"] = garment.print
    return Caption(text, (said,), kind, (text,))


def _in_house_form(
    kind: str,
    target: Panel,
    references: Sequence[Panel],
    garment_from: tuple[int, ...],
    rng: random.Random,
    named: bool | None,
    details: float,
    varied: bool,
) -> Caption:
    panels = [*references, target]
    if len(panels) > 3:
        details /= 2  # longer prompts would be cut
    related = [*(number - 1 for number in garment_from), len(panels) - 1]
    chance = rng.random()
    names: set[int] = set()
    if named or (named is None and chance < 0.12):
        names = set(range(len(panels)))
    elif named is None and chance < 0.35:
        names = {rng.choice(related)}
    captions = [
        panel_caption(
            *panel,
            rng,
            named=index in names or (index not in related and rng.random() < 0.3),
            details=details,
            article=rng.choice(("a", "the")) if index < len(panels) - 1 else "the",
            varied=varied,
        )
        for index, panel in enumerate(panels)
    ]
    count = COUNTS[len(panels)]
    summary = f"{count} matching pictures" if kind == "matching" else f"{count} pictures, an item and a copy"
    return join_captions(summary, captions, kind)
