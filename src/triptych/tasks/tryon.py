"""Try-on: from front and back of a garment to a person wearing it."""

from __future__ import annotations

from triptych.tasks.base import Panel, Task

_FRONT_WORDS = """
front frontside frontview vorne vorderseite devant avant frente main hauptbild recto davanti 正面 前面 正面图
"""
_BACK_WORDS = """
back backside backview rear rearview hinten rückseite rueckseite dos arriere arrière espalda trasera
retro dietro verso 背面 后面 後面 背面图
"""

FRONT, BACK = frozenset(_FRONT_WORDS.split()), frozenset(_BACK_WORDS.split())

PANELS = (
    Panel(
        "front",
        "the front view: kind of garment, cut, colours, material, pattern, prints, collar, sleeves, closures",
        "the front of a garment",
        "garment",
        ("front",),
        FRONT,
        frozenset({"f", "1"}),
    ),
    Panel("back", "the back view", "its back", "garment", ("back",), BACK, frozenset({"b", "2"})),
    Panel(
        "worn",
        "the person wearing it: pose, fit, other clothing, background, light",
        "a person wearing it",
        "person",
        ("worn", "person", "model", "wearer"),
        frozenset({"worn", "getragen"}),
    ),
)

OTHER_PANELS = ("they are no garment and who wears it", "Use a LoRA of front, back and worn.")

TRY_ON = Task(
    "try-on",
    PANELS,
    made=("worn",),
    columns=3,
    stand_ins={"back": "front"},
    other_panels=OTHER_PANELS,
)
"""A single product photo is used twice, as front and as back."""
