"""Many try-ons from one CSV file, with models loaded once. Finished pictures are kept; failures are noted and
do not stop the batch.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from triptych.errors import InputError, ModelError, TriptychError
from triptych.events import Event, Run
from triptych.pages.tryon import HEAD, Shown, tryon_page
from triptych.store.files import write_text
from triptych.tasks.tryon import TRY_ON
from triptych.vton.files import (
    SUFFIXES,
    Inputs,
    TryonConfig,
    alike,
    finished,
    make,
    read,
    write_preview,
)
from triptych.vton.lines import Line, read_lines, shortened
from triptych.vton.prompt import PromptWriter

if TYPE_CHECKING:  # it imports torch
    from triptych.sampling.opened import OpenedModel

log = logging.getLogger(__name__)

EVENTS: dict[str, Literal["done", "kept", "rejected"]] = {
    "made": "done",
    "kept": "kept",
    "failed": "rejected",
}
WRITE_EVERY = 10.0  # seconds between two writes of results.csv
THUMB = 240  # pixels


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


def run_batch(config: TryonConfig, model: OpenedModel) -> Run:
    """Make the pictures of the lines in `config.batch`; the folder `out` also gets results.csv and
    index.html.

    Lines with the same product are processed together. An existing picture with the same settings is kept.

    Raises:
        InputError: the file is unusable as a whole, or files that triptych did not write have the names of
            results.
        ModelError: the captioner cannot be loaded; or, during the batch, it fails for every line, or the
            model cannot be loaded.
    """
    assert config.batch
    out = config.out or config.work / "tryon"
    if not out.is_dir() and (out.exists() or out.suffix.lower() in SUFFIXES):
        raise InputError(
            f"{out} is {'a file' if out.exists() else 'the name of a picture'}.",
            "With --batch, give a folder with --out.",
        )
    _check_results(out, config.batch)
    lines = read_lines(config.batch, config, out)
    _ = model.backbone  # an unusable device is reported now; no weights are read yet
    TRY_ON.trained(model.layout(config.panel_width, config.panel_height))
    batch = _Batch(config, model, out, lines, PromptWriter(config, out))
    total = sum(len(line.config.seeds) if line.config else 1 for line in lines)
    batch.run = Run("tryon", total, batch.events(), batch.summary)
    return batch.run


class _Batch:
    """A batch in progress."""

    run: Run

    def __init__(
        self, config: TryonConfig, model: OpenedModel, out: Path, lines: list[Line], writer: PromptWriter
    ) -> None:
        self.config, self.model, self.out, self.lines, self.writer = config, model, out, lines, writer
        self.results = Results(out / "results.csv")
        self.summary: dict[str, Any] = {
            "made": 0,
            "kept": 0,
            "failed": 0,
            "results": str(out / "results.csv"),
            "index": str(out / "index.html"),
        }

    def events(self) -> Iterator[Event]:
        """All the work; the table is written even if the batch is stopped."""
        try:
            pending: dict[int, list[int]] = {}
            for number in range(len(self.lines)):
                yield from self._look_at(number, pending)
            self.writer.close()  # its captioner may hold memory that the model needs
            if pending:
                self.model.encode([_prompt(self.lines[number]) for number in pending])
                self.model.load()
            yield from self._make(pending)
            write_text(self.out / "index.html", _page(self.lines, self.results.rows, self.out))
        finally:
            self.results.write()

    def _look_at(self, number: int, pending: dict[int, list[int]]) -> Iterator[Event]:
        """Examine a line before any picture is made; seeds left to do go into `pending`."""
        line = self.lines[number]
        if line.config is None:
            yield self._note(number, Result(line.id, None, "failed", reason=line.reason))
            return
        try:
            config, kept = self._looked_at(line.config)
        except ModelError:  # the captioner fails for every line
            raise
        except Exception as error:
            for seed in line.config.seeds:
                yield self._note(number, Result(line.id, seed, "failed", reason=_reason(error)))
            return
        self.lines[number] = replace(line, config=config)
        for seed in (seed for seed in config.seeds if seed in kept):
            yield self._note(number, Result(line.id, seed, "kept", config.files(seed)[0].name))
        if left := [seed for seed in config.seeds if seed not in kept]:
            pending[number] = left

    def _looked_at(self, config: TryonConfig) -> tuple[TryonConfig, set[int]]:
        """A line's config with its prompt, and the seeds whose picture exists.

        Its inputs are read now, and again when its turn comes. The first reading finds all mistakes and shows
        all masks in advance. Raises the errors of the inputs.
        """
        inputs = None
        if not config.prompt.strip():
            inputs = self._read(config)  # before the captioner is asked, which may cost money
            limit = self.model.settings.max_sequence_length
            config = self.writer.fill(config, inputs.layout, limit)
        kept = finished(config, self.model)
        if inputs is None and kept != {*config.seeds}:
            self._read(config)
        return config, kept

    def _read(self, config: TryonConfig) -> Inputs:
        inputs = read(config, self.model)
        write_preview(inputs)
        return inputs

    def _make(self, pending: Mapping[int, Sequence[int]]) -> Iterator[Event]:
        """Make the remaining pictures, in batches."""
        done: dict[int, Inputs] = {}
        for batch in _batches(self.lines, pending, self.config.batch_size):
            for number, result in self._made(batch, done):
                cut = self.model.warnings.get(_prompt(self.lines[number]))
                if result.status == "made" and cut:
                    result.reason = f"{result.reason} {cut}".strip()
                yield self._note(number, result)
            if self.model.contexts.limit_bytes and self.model.contexts.misses:
                self.summary["context_cache"] = self.model.contexts.summary()

    def _made(
        self, batch: Sequence[tuple[int, int]], read_before: dict[int, Inputs]
    ) -> Iterator[tuple[int, Result]]:
        """(line, result) of each picture of a batch. If a batch fails as a whole, its pictures are tried one
        by one, so that only the faulty ones fail.

        read_before: the inputs of the previous batch, which this one may share; on return, those of this
        batch.
        """
        seeds: dict[int, list[int]] = {}
        for number, seed in batch:
            seeds.setdefault(number, []).append(seed)
        try:
            inputs = {
                number: read_before.get(number)
                or read(cast(TryonConfig, self.lines[number].config), self.model)
                for number in seeds
            }
            read_before.clear()
            read_before.update(inputs)
            make([(inputs[number], own) for number, own in seeds.items()], self.model)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    yield from self._made([one], read_before)
                return
            ((number, seed),) = batch
            yield number, Result(self.lines[number].id, seed, "failed", reason=_reason(error))
            return
        for number, seed in batch:
            picture, words = inputs[number].config.files(seed)[0].name, " ".join(inputs[number].warnings)
            yield number, Result(self.lines[number].id, seed, "made", picture, words)

    def _note(self, number: int, result: Result) -> Event:
        self.results.add(number, result)
        self.summary[result.status] += 1
        self.run.failed = self.summary["failed"]
        path = self.out / result.picture if result.picture else None
        return Event(result.picture or result.id, EVENTS[result.status], result.reason, result=path)


def _prompt(line: Line) -> str:
    return cast(TryonConfig, line.config).prompt


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


def _check_results(out: Path, batch: Path) -> None:
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


def _batches(
    lines: Sequence[Line], pending: Mapping[int, Sequence[int]], size: int
) -> list[list[tuple[int, int]]]:
    """(line, seed) of the pictures to make, in batches of up to `size` that can be sampled together, product
    by product.
    """
    batches: list[list[tuple[int, int]]] = []
    for number in _by_product(lines, pending):
        for seed in pending[number]:
            last = batches[-1] if batches else []
            if last and len(last) < size and _alike(lines[last[0][0]]) == _alike(lines[number]):
                last.append((number, seed))
            else:
                batches.append([(number, seed)])
    return batches


def _alike(line: Line) -> Any:
    return alike(cast(TryonConfig, line.config))


def _by_product(lines: Sequence[Line], numbers: Mapping[int, Any]) -> list[int]:
    """Line numbers grouped by product, products in the order of their first line."""
    first: dict[Any, int] = {}
    return sorted(numbers, key=lambda number: (first.setdefault(_product(lines[number]), number), number))


def _product(line: Line) -> tuple[Path | None, Path | None]:
    return (line.config.front, line.config.back) if line.config else (None, None)


def _reason(error: Exception) -> str:
    if not isinstance(error, TriptychError | OSError):
        log.warning("A try-on failed: %s", error, exc_info=error)
    return shortened(f"{error}") or type(error).__name__


def _page(lines: Sequence[Line], results: Mapping[tuple[int, int | None], Result], out: Path) -> str:
    """One self-contained page without scripts: every result beside its product."""
    rows = list(results.values())
    counts = ", ".join(
        f"{sum(one.status == status for one in rows)} {status}" for status in ("made", "kept", "failed")
    )
    groups: dict[Any, set[int]] = {}
    for number, line in enumerate(lines):
        groups.setdefault(_product(line), set()).add(number)
    ordered = sorted(results, key=lambda key: (key[0], key[1] or 0))
    products = [
        (front, [_shown(results[key], out) for key in ordered if key[0] in numbers])
        for (front, _), numbers in groups.items()
    ]
    return tryon_page(counts, products)


def _shown(result: Result, out: Path) -> Shown:
    name = result.id if result.seed is None else f"{result.id}, seed {result.seed}"
    return Shown(name, None if result.status == "failed" else out / result.picture, result.reason)
