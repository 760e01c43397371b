"""Try-on: from front and back of a garment to a person wearing it."""

from __future__ import annotations

from triptych.tasks.base import Panel, Task

PANELS = (
    Panel(
        "front",
        "the front view: kind of garment, cut, colours, material, pattern, prints, collar, sleeves, closures",
        "the front of a garment",
        "garment",
        ("front",),
    ),
    Panel("back", "the back view", "its back", "garment", ("back",)),
    Panel(
        "worn",
        "the person wearing it: pose, fit, other clothing, background, light",
        "a person wearing it",
        "person",
        ("worn", "person", "model", "wearer"),
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
