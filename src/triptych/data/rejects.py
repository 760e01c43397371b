"""Why `concat` made no triptychs, for the stages that look for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from triptych.errors import WorkError
from triptych.store.files import read_jsonl

REJECTS = "concat.rejects.jsonl"
"""File in the folder of triptychs: items and photos that gave none, each with its reason."""


def no_triptychs(folder: Path, hint: str) -> WorkError:
    """The error of a stage that finds no pictures in the folder of triptychs, with the reasons that `concat`
    gave.

    `hint` is for a folder that `concat` has not written to.
    """
    rejects = folder / REJECTS
    try:
        rows = [row for row in read_jsonl(rejects) if not row.get("spare")] if rejects.exists() else []
    except WorkError:
        rows = []
    if not rows:
        return WorkError(f"There are no triptychs in {folder}.", hint)
    reasons = Counter(str(row.get("reason")) for row in rows).most_common(3)
    listed = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    mend = (
        "Mend the photos, or say what they show in overrides.txt; then run `triptych clean` and `triptych "
        "concat` again."
    )
    return WorkError(f"There are no triptychs in {folder}: `concat` could make none ({listed}).", mend)
