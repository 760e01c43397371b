"""Outfit: from product photos of several garments to a person who wears them all."""

from __future__ import annotations

from dataclasses import replace

from triptych.tasks.base import Panel, Task
from triptych.tasks.product_photos import DETAIL, PART
from triptych.tasks.tryon import BACK, FRONT, PANELS

_TOP_WORDS = """
top tops shirt shirts tshirt tee blouse sweater pullover hoodie cardigan jacket blazer coat vest oberteil
hemd bluse jacke haut chemise chemisier veste camisa camiseta blusa chaqueta maglia camicia giacca 上衣 上装
"""
_BOTTOM_WORDS = """
bottom bottoms trousers pants jeans leggings shorts skirt unterteil hose rock pantalon jupe bas pantalones
falda pantaloni gonna 下装 裤子 裙子
"""
_SHOES_WORDS = """
shoes shoe footwear sneakers sneaker boots boot sandals heels loafers schuhe schuh stiefel chaussures
chaussure bottes zapatos zapato botas scarpe scarpa 鞋 鞋子
"""
_BAG_WORDS = """
bag bags handbag purse tote clutch backpack tasche handtasche rucksack sac bolso bolsa mochila borsa 包 包包
"""


def _piece(role: str, asks: str, shows: str, words: str) -> Panel:
    """A panel that shows one piece of the outfit; its words count more than those for a side."""
    return Panel(role, asks, shows, "garment", (role,), frozenset(words.split()), over=1)


OUTFIT = Task(
    "outfit",
    (
        Panel(
            "front",
            "the front view: kind of garment, cut, colours, material, pattern, prints, closures",
            "the front of a garment",
            "garment",
            ("front",),
            FRONT,
        ),
        Panel("back", "the back view", "its back", "garment", ("back",), BACK),
        Panel(
            "detail",
            "the detail: what part it is, its material and make",
            "a detail of a garment",
            "garment",
            ("detail",),
            DETAIL,
            over=2,
        ),
        _piece(
            "top",
            "the top: kind of garment, cut, colours, material, pattern, prints, collar, sleeves, closures",
            "a top",
            _TOP_WORDS,
        ),
        _piece(
            "bottom",
            "the bottom: trousers, a skirt or another kind, cut, colours, material, pattern",
            "trousers, a skirt or another bottom",
            _BOTTOM_WORDS,
        ),
        _piece("shoes", "the shoes: kind, colours, material, soles", "shoes", _SHOES_WORDS),
        _piece("bag", "the bag: kind, size, colours, material, closure", "a bag", _BAG_WORDS),
        replace(
            PANELS[-1],
            asks="the person wearing it all: pose, fit, other clothing, background, light",
            shows="a person wearing it all",
        ),
    ),
    made=("worn",),
    columns=8,
    other_panels=(
        "they are no garments and who wears them",
        "Use a LoRA of some of front, back, detail, top, bottom, shoes and bag, and of worn.",
    ),
    part=PART - DETAIL,
    some=True,
    references=True,
)
"""An item has any of the given panels, at least one."""
