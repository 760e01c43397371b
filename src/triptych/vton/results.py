"""What a batch of try-ons leaves beside its pictures: results.csv, and index.html."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from triptych.errors import InputError
from triptych.pages.tryon import HEAD, Shown, tryon_page
from triptych.store.files import write_text
from triptych.vton.lines import Line

WRITE_EVERY = 10.0  # seconds between two writes of results.csv


@dataclass
class Result:
    """One line of results.csv. `picture` is a name in the same folder; `reason` is why it failed, or a
    warning.
    """

    id: str
    seed: int | None
    status: Literal["made", "kept", "failed"]
    picture: str = ""
    reason: str = ""


HEADER = [field.name for field in fields(Result)]


class Results:
    """results.csv, written at the end and from time to time before. After a kill, the pictures themselves
    show what is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[int, int | None], Result] = {}
        self._written = time.monotonic()

    def add(self, number: int, result: Result) -> None:
        self.rows[number, result.seed] = result
        if time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(HEADER)
        for key in sorted(self.rows, key=lambda key: (key[0], key[1] or 0)):
            writer.writerow([getattr(self.rows[key], name) for name in HEADER])
        write_text(self.path, table.getvalue())
        self._written = time.monotonic()


def check_results(out: Path, batch: Path) -> None:
    """Raise InputError if results.csv or index.html in `out` were not written by triptych, or one is the
    batch file itself.
    """
    for name, beginning in (("results.csv", ",".join(HEADER)), ("index.html", HEAD.split("\n", 1)[0])):
        path = out / name
        if not path.exists():
            continue
        if path.resolve() == batch.resolve():
            raise InputError(
                f"The batch file {batch} would be overwritten by the results.",
                "Give another folder with --out.",
            )
        if not path.is_file() or (
            path.stat().st_size and not path.read_bytes()[: len(beginning)] == beginning.encode()
        ):
            raise InputError(
                f"{path} is there already, and triptych did not write it.", "Give another folder with --out."
            )


def page_of(lines: Sequence[Line], results: Mapping[tuple[int, int | None], Result], out: Path) -> str:
    """One self-contained page without scripts: every result beside its product."""
    rows = list(results.values())
    counts = ", ".join(
        f"{sum(row.status == status for row in rows)} {status}" for status in ("made", "kept", "failed")
    )
    groups: dict[Any, set[int]] = {}
    for number, line in enumerate(lines):
        groups.setdefault(line.product, set()).add(number)
    ordered = sorted(results, key=lambda key: (key[0], key[1] or 0))
    products = [
        (product[0] if product else None, [_shown(results[key], out) for key in ordered if key[0] in numbers])
        for product, numbers in groups.items()
    ]
    return tryon_page(counts, products)


def _shown(result: Result, out: Path) -> Shown:
    name = result.id if result.seed is None else f"{result.id}, seed {result.seed}"
    return Shown(name, None if result.status == "failed" else out / result.picture, result.reason)
