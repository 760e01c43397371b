"""The parts of a person that a rendered picture shows: the values of its label map."""

from __future__ import annotations

PARTS = (
    "background",
    "hair",
    "face",
    "neck",
    "arm",
    "hand",
    "leg",
    "shoe",
    "top",
    "dress",
    "skirt",
    "trousers",
)
"""The value of a part in a label map is its place in this tuple."""
PART = {name: number for number, name in enumerate(PARTS)}
PART_OF = {name: PART[name if name in PART else "top"] for name in ("t-shirt", "sweater", "jacket", "dress")}
PART_OF |= {name: PART[name] for name in ("skirt", "trousers")}
"""The part that a garment of each type is."""
ACCESSORIES = {name: len(PARTS) + number for number, name in enumerate(("hat", "bag"))}
"""Values of what only people in an outfit have; the parser was trained without them."""
