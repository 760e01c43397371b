"""The names of cards that `plan` knows, and suggestions for unknown names. Imports no torch."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files

import yaml

from triptych.errors import ConfigError

HERE = ("auto", "cpu")
"""Names that stand for this machine."""


@cache
def known_cards() -> dict[str, dict[str, float]]:
    """The rows of `cards.yaml` by name."""
    rows: dict[str, dict[str, float]] = yaml.safe_load(
        (files("triptych.planning") / "cards.yaml").read_text(encoding="utf-8")
    )
    return rows


def card_named(name: str) -> str:
    """The card of `cards.yaml` with this name, also without its memory (`rtx-3060`) if only one card is
    called so; or a name that stands for this machine.

    Raises:
        ConfigError: the name is unknown. The hint lists the cards that were probably meant, and all known
            ones.
    """
    if name in (*HERE, *known_cards()):
        return name
    sizes = [card for card in known_cards() if re.fullmatch(rf"{re.escape(name)}-\d+gb", card)]
    if len(sizes) != 1:
        raise ConfigError(
            f"The card '{name}' is not known.", f"{_meant(name)}Known: {', '.join((*HERE, *known_cards()))}."
        )
    return sizes[0]


def _meant(name: str) -> str:
    """The cards probably meant, in words: by memory (`12gb`), by a part of the name (`3060`, `RTX 4090`) or
    by similar spelling; empty if no card is similar.
    """
    cards = known_cards()
    memory = re.fullmatch(r"\s*(\d{1,3})\s*(?:gi?b?)?\s*", name, re.IGNORECASE | re.ASCII)
    same = [card for card, row in cards.items() if memory and row["memory"] == int(memory[1])]
    if memory and same:
        return f"For a card of {int(memory[1])} GB: {', '.join(same)}. "
    given = _letters(name)
    alike = [card for card in cards if given and (given in _letters(card) or _letters(card) in given)]
    if not alike:
        model = re.findall(r"[a-z]?\d+[a-z]?", given)
        alike = [
            card for card in cards if any(len(number) > 2 and number in _letters(card) for number in model)
        ]
    near = alike or difflib.get_close_matches(name.lower(), list(cards), n=2, cutoff=0.7)
    return f"Did you mean {' or '.join(near)}? " if 0 < len(near) <= 4 else ""


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
