"""The report of `evaluate --pairs`: Markdown, a row for each item, and a sheet of the worst."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.pairs.protocol import Protocol
from triptych.evaluation.pairs.sets import Pair
from triptych.pictures.images import load_image
from triptych.pictures.sheets import Cell, contact_sheet

THUMB = 176
WORST = 12
"""Items on a sheet."""
_PASSED, _FAILED = "#3a8f4d", "#c2362b"


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people; a table for each setting, with a column for each folder."""
    protocol, of = report["protocol"], report["set"]
    size = (
        f"{protocol['width']}×{protocol['height']} px" if protocol["width"] else "the true pictures' own size"
    )
    lines = [
        f"# {of['layout']}: {', '.join(report['made'])}",
        "",
        f"Protocol {protocol['file']} ({protocol['name']}, sha256 {protocol['sha256'][:16]}): compared at "
        f"{size}, {protocol['filter']} filter. An interval holds 95 %.",
        "",
    ]
    for setting, about in of["lists"].items():
        lines += [f"## {setting.capitalize()}, n = {about['n']}", ""]
        lines += [
            f"List {about['file']}, sha256 {about['sha256'][:16]}; people {about['truth_sha256'][:16]}.",
            "",
        ]
        lines += _table(report, setting)
    for text in (*report["notes"], *report["warnings"]):
        lines += [f"- {text}"]
    return "\n".join(lines).rstrip() + "\n"


def _table(report: Mapping[str, Any], setting: str) -> list[str]:
    made = report["made"]
    less = report["differences"].get(setting, [])
    pairs = list(dict.fromkeys((row["of"], row["less"]) for row in less))
    head = ["", *made, *(f"{of} - {other}" for of, other in pairs)]
    lines = [_row(head), _row(["---"] * len(head))]
    first = next(iter(made.values()))[setting]
    for number, figure in enumerate(first["figures"]):
        own = [rows[setting]["figures"][number] for rows in made.values()]
        if all("not_measured" in one for one in own):
            continue
        change = {(row["of"], row["less"]): row for row in less if row["measure"] == figure["measure"]}
        cells = [f"{figure['name']}{_network(figure)}", *map(_cell, own)]
        lines.append(_row([*cells, *(_cell(change[pair]) if pair in change else "" for pair in pairs)]))
    passed = [
        f"{rows[setting]['counts']['passed']} of {rows[setting]['counts']['items']}" for rows in made.values()
    ]
    lines += [_row(["items that pass", *passed, *("" for _ in pairs)]), ""]
    for name, rows in made.items():
        failed = rows[setting]["counts"]["failed"]
        said = ", ".join(f"{measure} {count}" for measure, count in failed.items())
        lines += [f"{name} fails in: {said}." if said else f"{name} fails in nothing.", ""]
    absent = [one for one in first["figures"] if "not_measured" in one]
    lines += [f"- {one['name']}: {one['not_measured'].rstrip('.')}." for one in absent]
    lines += [""] * bool(absent)
    if beside := first["published"]:
        lines += ["Published FID on the same list:", "", _row(["", "FID", "source"]), _row(["---"] * 3)]
        lines += [_row([one["name"], f"{one['fid']:.2f}", one["source"]]) for one in beside] + [""]
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _network(figure: Mapping[str, Any]) -> str:
    parts = [figure["network"]] if "network" in figure and figure["network"] not in figure["name"] else []
    parts += [f"sha256 {figure['sha256'][:12]}"] if "sha256" in figure else []
    return f" ({', '.join(parts)})" if parts else ""


def _cell(figure: Mapping[str, Any]) -> str:
    if "not_measured" in figure:
        return "-"
    value = f"{figure['value']:.3f}" if abs(figure["value"]) < 100 else f"{figure['value']:.0f}"
    low, high = figure["low"], figure["high"]
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{value}{interval}, n {figure['n']}"


def item_rows(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> str:
    """The items as CSV: folder, setting, id, passed, the measures that fail, and all values."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["made", "setting", "id", "passed", "fails", *protocol.passes, "picture"])
    for row in rows:
        values = row["values"]
        failed = protocol.failed(values)
        cells = ["" if values.get(name) is None else f"{values[name]:.5g}" for name in protocol.passes]
        passed = "no" if failed else "yes"
        writer.writerow(
            [row["made"], row["setting"], row["id"], passed, " ".join(failed), *cells, row["picture"]]
        )
    return table.getvalue()


def sheet(items: Sequence[tuple[Pair, Path, Mapping[str, float | None]]], protocol: Protocol) -> Image.Image:
    """A contact sheet, two items in a row, each with the garment, the true photo (or the person) and the made
    picture, whose label says what fails.
    """
    cells = []
    for pair, path, values in items:
        failed = protocol.failed(dict(values))
        said = [f"{name} {values[name]:.3g} ({protocol.passes[name]})" for name in failed]
        label = "\n".join([*said[:4], *([f"and {len(said) - 4} more"] if len(said) > 4 else [])]) or "passes"
        colour = _FAILED if failed else _PASSED
        photos = [pair.garments[0]] if pair.garments else []
        cells += [Cell(load_image(photo, longest=2 * THUMB), f"garment\n{photo.stem}") for photo in photos]
        other = pair.truth or pair.person
        word = "true photo" if pair.truth else "person"
        cells.append(Cell(load_image(other, longest=2 * THUMB), f"{word}\n{other.stem}"))
        cells.append(Cell(load_image(path, longest=2 * THUMB), label, colour))
    return contact_sheet(cells, columns=6, thumb=THUMB)
