"""Writes the file from which `tryon --batch` makes the pictures of a list of pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from triptych.errors import InputError
from triptych.evaluation.pairs.sets import PairSet
from triptych.vton.lines import MAX_LINES

COLUMNS = ("id", "person", "front", "mask")


def batch_file(sets: Sequence[PairSet]) -> str:
    """CSV with a line for each pair; its id is the name by which `--made` finds the picture. A pair without a
    mask has an empty cell: the command line's --mask is then taken.

    Raises:
        InputError: outfits of several garments, or more lines than a batch may have.
    """
    pairs = {pair.id: pair for found in sets for pair in found.pairs}
    if any(len(pair.garments) != 1 for pair in pairs.values()):
        raise InputError(
            "No batch can be written of outfits: the set does not say the roles of its garments.",
            "Write the lines yourself, with the ids of the outfits; docs/tryon.md has the columns.",
        )
    if len(pairs) > MAX_LINES:
        raise InputError(f"A batch has at most {MAX_LINES} lines.", "Give a shorter --pair-list.")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, pair in pairs.items():
        mask = str(pair.mask.resolve()) if pair.mask else ""
        writer.writerow([key, str(pair.person.resolve()), str(pair.garments[0].resolve()), mask])
    return table.getvalue()
