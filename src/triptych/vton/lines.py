"""The lines of a batch file: a CSV with one try-on per line. A mistake in a line fails only that line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from triptych.config.marks import ASKED, FOLDER, OUTPUT, RUNNING, marked
from triptych.config.role_photos import pair
from triptych.config.stage import unknown_key, validated
from triptych.errors import ConfigError, InputError, TriptychError
from triptych.sampling.options import LOADED
from triptych.store.files import read_text
from triptych.vton.config import TryonConfig, is_proposed
from triptych.vton.files import check

SHARED = LOADED | marked(TryonConfig, FOLDER, ASKED, OUTPUT, RUNNING) | {"batch"}
"""Settings that are the same for all lines."""
COLUMNS = sorted({"id", *TryonConfig.model_fields} - SHARED)
"""Settings that a line may give."""
MAX_LINES = 100_000
MAX_BYTES = 64 << 20
_SPAN = 50  # most file lines of one row, since quoted cells may contain line breaks


@dataclass(frozen=True)
class Line:
    """One line of the file: a try-on, or the reason why it is none."""

    id: str
    config: TryonConfig | None
    reason: str = ""

    @property
    def product(self) -> tuple[Path, ...]:
        """The photos of its garments, sorted by role; none for a line that is no try-on."""
        garments = self.config.garments() if self.config else {}
        return tuple(garments[role] for role in sorted(garments, key=lambda role: (role != "front", role)))


def read_lines(path: Path, base: TryonConfig, out: Path) -> list[Line]:
    """The try-ons of a CSV file (UTF-8, with a header; commas, semicolons or tabs). Its paths are relative to
    its folder; empty cells take the value in `base`.

    Raises:
        InputError: no such file. ConfigError: an unknown column. A mistake in a line fails only that line.
    """
    text = read_text(path, MAX_BYTES, "The batch file", hint="Check the path given to --batch.", nul=True)
    header, *body = list(_rows(text)) or [[]]
    if isinstance(header, str) or "\0" in "".join(header):
        raise InputError(
            f"The header of {path} cannot be read.",
            "Save it as CSV in UTF-8, the names of the columns in its first line.",
        )
    header = [name.strip().lower().removeprefix("--").replace("-", "_") for name in header]
    header, body = _without_empty_columns(header, body)
    for name in header:
        if name in SHARED:
            raise ConfigError(
                f"{path} has a column '{name}', which is the same for all lines.",
                "Give it on the command line instead.",
            )
        if name not in COLUMNS:
            raise unknown_key(name, COLUMNS, str(path))
        if header.count(name) > 1:
            raise InputError(f"{path} has the column '{name}' twice.", "Keep one of the two.")
    if not body:
        raise InputError(f"{path} has no line below its header.", "Write one try-on per line.")
    if len(body) > MAX_LINES:
        raise InputError(
            f"{path} has {len(body)} lines, at most {MAX_LINES} are read.", "Cut it into several files."
        )
    return _apart(
        [_line(header, row, f"{number:03d}", path, base, out) for number, row in enumerate(body, 1)]
    )


def _without_empty_columns(
    header: list[str], body: list[list[str] | str]
) -> tuple[list[str], list[list[str] | str]]:
    """Header and rows without empty columns at the end, which spreadsheets save if they once had content."""
    named = max((number for number, name in enumerate(header, 1) if name), default=0)
    if any(isinstance(row, list) and any(cell.strip() for cell in row[named : len(header)]) for row in body):
        return header, body
    return header[:named], [
        row[:named] + row[len(header) :] if isinstance(row, list) else row for row in body
    ]


def _rows(text: str) -> Iterator[list[str] | str]:
    """The non-empty rows of a CSV; for an unreadable row, the reason instead. Reading continues at the next
    line.
    """
    lines = text.split("\n")
    start = 0
    if told := re.fullmatch(r"sep=([,;\t])\s*", lines[0], re.IGNORECASE):  # a hint to Excel
        start = 1
    first = next((line for line in lines[start:] if line.strip()), "")
    delimiter = told[1] if told else max(",;\t", key=first.count)
    while start < len(lines):
        part = lines[start : start + _SPAN]
        reader = csv.reader([f"{line}\n" for line in part[:-1]] + part[-1:], delimiter=delimiter, strict=True)
        try:
            row = next(reader, [])
        except csv.Error as error:
            reason = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            yield f"line {start + 1} of the file cannot be read: {reason}"
            start += 1
            continue
        start += max(1, reader.line_num)
        if any(cell.strip() for cell in row):
            yield row


def _line(
    header: Sequence[str], row: Sequence[str] | str, number: str, path: Path, base: TryonConfig, out: Path
) -> Line:
    if isinstance(row, str):
        return Line(number, None, row)
    given: dict[str, Any] = {
        name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()
    }
    name = given.pop("id", number)
    if not re.fullmatch(r"\w[\w.-]{0,79}", name):
        return Line(number, None, "its id is no name for a file: use letters, digits, - and _")
    if len(row) > len(header):
        return Line(name, None, f"it has {len(row)} cells, the header has {len(header)}")
    if any("\0" in cell for cell in row):
        return Line(name, None, "it holds a NUL character")
    if "caption" in given and "prompt" not in given:
        given["prompt"] = ""
    try:
        for key in ("front", "back", "person", "polygon", "mask", "caption"):
            if key in given and not (key == "mask" and is_proposed(given[key])):
                given[key] = path.parent / Path(given[key]).expanduser()
        if "garment" in given:
            pairs = [pair(one, "garment", "top=shirt.jpg") for one in given["garment"].split("|")]
            given["garment"] = [f"{role}={path.parent / file}" for role, file in pairs]
        if "reference" in given:
            paths = [Path(one.strip()).expanduser() for one in given["reference"].split("|")]
            given["reference"] = [path.parent / one for one in paths]
        chosen = given.keys() & {"polygon", "mask"}
        own = {"batch": None, "out": out / f"{name}.png"} | dict.fromkeys(
            {"polygon", "mask"} - chosen if chosen else ()
        )
        if base.mask_out:
            own["mask_out"] = base.mask_out / f"{name}.json"
        values: Mapping[str, Any] = {**base.model_dump(), **given, **own}
        return Line(name, check(validated(TryonConfig, values, "tryon")))
    except (
        TriptychError,
        ValueError,
        RuntimeError,
        OSError,
    ) as error:  # an impossible path, or the home folder of an unknown user
        return Line(name, None, shortened(str(error)))


def shortened(text: str) -> str:
    """A reason on one line of a table. The middle of a long one is cut out, because the sentence may quote a
    whole cell.
    """
    text = " ".join(text.split())
    return text if len(text) <= 600 else f"{text[:200]} … {text[-300:]}"


def _files(line: Line) -> set[Path]:
    """The files that a line would write."""
    config = cast(TryonConfig, line.config)
    others = {config.preview} | ({config.mask_out} if config.mask_out else set())
    return {*others, *(file for seed in config.seeds for file in config.files(seed))}


def _apart(lines: list[Line]) -> list[Line]:
    """The lines; a line fails here if it would write the same file as an earlier one, or overwrite a photo of
    the batch.
    """
    inputs = {
        photo.resolve() for line in lines if line.config for photo in line.config.photos().values() if photo
    }
    written: dict[Path, str] = {}
    for number, line in enumerate(lines):
        if line.config is None:
            continue
        files = _files(line)
        before = next((written[file] for file in files if file in written), None)
        if before is not None:
            lines[number] = replace(
                line,
                config=None,
                reason=f"it would write the same picture as line {before}: give it an id of its own",
            )
        elif inputs & {file.resolve() for file in files}:
            lines[number] = replace(
                line, config=None, reason="it would overwrite a photo of the batch: give another --out or id"
            )
        else:
            written |= dict.fromkeys(files, line.id)
    return lines
