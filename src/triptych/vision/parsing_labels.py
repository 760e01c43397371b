"""Parts of a person, and the names that the label maps of published parsers have for them."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.errors import ModelError
from triptych.pocket.parts import PARTS as DRAWN

PARTS = (*DRAWN, "hat", "bag", "accessory")
"""What a parser tells apart, first what the rendered world draws. The value of a part in a label map is its
place here. `neck` is all bare skin of the trunk; `top` is every garment on it that is no dress, coats
included; `accessory` is worn, and no garment.
"""
PART = {name: number for number, name in enumerate(PARTS)}

LABELS = {name: name for name in PARTS} | {
    # ATR: 18 classes, as mattmdjaga/segformer_b2_clothes and sayeed99/segformer_b3_clothes name them
    "sunglasses": "face",
    "upper clothes": "top",
    "pants": "trousers",
    "belt": "trousers",
    "scarf": "accessory",
    # LIP: 20 classes, and what CIHP adds
    "glove": "hand",
    "coat": "top",
    "socks": "leg",
    "jumpsuits": "dress",
    "torso skin": "neck",
    # fashn-ai/fashn-human-parser: 18 classes
    "glasses": "face",
    "arms": "arm",
    "hands": "hand",
    "legs": "leg",
    "feet": "shoe",
    "torso": "neck",
    "jewelry": "accessory",
}
"""The part that a label means. Labels are compared in small letters, without left, right, `_` and `-`."""
LICENCE_NOTES = {
    "segformer": (
        "SegFormers are nearly all fine-tuned from NVIDIA's mit-b weights, whose licence forbids commercial "
        "use, whatever the model's own card says"
    ),
}
"""What is to be known of weights beyond their card, by the model type in their config."""


def parts_of(labels: Mapping[int, str], name: str) -> list[int]:
    """The part that each of a model's labels means, in the order of its numbers.

    Args:
        labels: the model's `id2label`. name: of the model, for messages.

    Raises:
        ModelError: it has labels that are no parts of a person, or names no clothes.
    """
    plain = [_plain(labels[number]) for number in sorted(labels)]
    unknown = [label for label in plain if label not in LABELS]
    if unknown or not {"top", "dress", "trousers"} & {LABELS[label] for label in plain}:
        which = f"its label '{unknown[0][:40]}' is no part of a person" if unknown else "it names no clothes"
        raise ModelError(
            f"{name} is no parser of people and clothes: {which}.",
            "Give a --parser with the labels of ATR, LIP or fashn-human-parser, such as "
            "mattmdjaga/segformer_b2_clothes.",
        )
    return [PART[LABELS[label]] for label in plain]


def _plain(label: str) -> str:
    words = label.lower().replace("_", " ").replace("-", " ").split()
    return " ".join(word for word in words if word not in ("left", "right"))
