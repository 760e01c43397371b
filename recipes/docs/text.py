"""Texts of the product as markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    """A text as markdown: nothing in it is markup but what stands in backticks. It may be a table's cell."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces = ["'".join(pieces)]
    pieces[::2] = [re.sub(r"([\\*_\[\]<>|])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[1::2] = [piece.replace("|", r"\|") for piece in pieces[1::2]]
    return "`".join(pieces)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table of markdown, and an empty one."""
    cells = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


__all__ = ["plain", "table"]
