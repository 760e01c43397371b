"""evaluate --pairs: measures made try-on pictures against true ones, on real clothes.

evaluation/pairs.json       every figure with n, interval, network and sha256; protocol and lists with hashes
evaluation/pairs.md         the same as tables
evaluation/pairs-items.csv  a row for each picture: passed or not, and all values
evaluation/worst-….png      the worst pictures of each folder and setting
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from triptych.config.marks import SHARED, marked
from triptych.config.stage import StageConfig
from triptych.errors import ConfigError
from triptych.events import Event, Run
from triptych.execution import PerWorker, execute
from triptych.store.files import write_json, write_text
from triptych.verbs.evaluate_config import EvaluateConfig, PairsConfig

if TYPE_CHECKING:  # they import torch, and `--help` must not
    import numpy as np

    from triptych.evaluation.pairs.items import Measured
    from triptych.evaluation.pairs.made import Made
    from triptych.evaluation.pairs.protocol import Protocol, Setting
    from triptych.evaluation.pairs.sets import Pair, PairSet

log = logging.getLogger(__name__)

PAIRS = frozenset(PairsConfig.model_fields) - frozenset(StageConfig.model_fields)
"""The options of this mode."""
BATCH = 4
"""Pictures of a piece of work."""


def check_options(config: EvaluateConfig) -> None:
    """Raise ConfigError for an option that has no effect in the mode asked for."""
    if config.pairs is None:
        if idle := sorted(config.model_fields_set & PAIRS):
            raise ConfigError(
                f"--{idle[0].replace('_', '-')} has no effect without --pairs.",
                "Give --pairs FOLDER as well.",
            )
        return
    common = PAIRS | {*StageConfig.model_fields, "out"} | marked(EvaluateConfig, SHARED)
    if idle := sorted(config.model_fields_set - common):
        raise ConfigError(
            f"--{idle[0].replace('_', '-')} has no effect with --pairs, which measures finished pictures.",
            "Leave it out, or give it to `triptych tryon --batch`.",
        )


def evaluate_pairs(config: EvaluateConfig) -> Run:
    """Measure the pictures of one or several folders against the true ones of a set.

    Raises:
        InputError: the set, a list or a folder is not what it should be, see `sets.read_set` and
            `made.find_made`. ConfigError: an option without effect, or a protocol that is none. ModelError: a
            network cannot be opened.
    """
    from triptych.evaluation.pairs import made as pictures
    from triptych.evaluation.pairs.protocol import read_protocol
    from triptych.evaluation.pairs.sets import locate, read_set

    assert config.pairs is not None
    layout, folder = locate(config.pairs, config.work)
    protocol = read_protocol(config.protocol, layout)
    settings: list[Setting] = ["paired", "unpaired"] if config.setting == "both" else [config.setting]
    if config.pair_list and len(settings) > 1:
        raise ConfigError("--pair-list is one list.", "Say whether it is --setting paired or unpaired.")
    sets = [read_set(layout, folder, setting, protocol, config.pair_list) for setting in settings]
    if config.write_batch:
        return _written(config, config.write_batch, sets)
    folders = pictures.read_names(config.made)
    both = len(settings) > 1
    made = {
        found.setting: [pictures.find_made(name, path, found, both=both) for name, path in folders.items()]
        for found in sets
    }
    warnings = [text for setting, own in made.items() if (text := pictures.seeds_differ(own, setting))]
    pieces = todo(sets, made)
    tools = PerWorker(Tools, config, protocol)
    tools()
    out = config.out or config.work / "evaluation"
    book = Book(protocol, layout, sets, made, warnings, allow_small=config.allow_small)
    total = sum(len(piece.pairs) for piece in pieces)
    names = ("pairs.json", "pairs.md", "pairs-items.csv")
    summary: dict[str, Any] = dict(
        zip(("results", "report", "items"), (str(out / one) for one in names), strict=True)
    )
    summary["warnings"] = warnings

    def work() -> Iterator[Event]:
        for piece in execute(make, pieces, tools):
            yield from record(book, piece)
        report = book.report(tools())
        write_json(out / names[0], report)
        _write_for_people(book, report, out)
        summary.update(_readable(report))

    return Run("evaluate", total, work(), summary)


def _written(config: EvaluateConfig, path: Path, sets: Sequence[PairSet]) -> Run:
    """A run that writes the file for `tryon --batch`."""
    from triptych.evaluation.pairs.batch import batch_file

    text = batch_file(sets)
    summary: dict[str, Any] = {"batch": str(path), "lines": text.count("\n") - 1}
    summary["next"] = f"triptych tryon --batch {path} --model MODEL --lora LORA --prompt '…' --out made/lora"

    def work() -> Iterator[Event]:
        write_text(path, text)
        yield Event(path.name, result=path)

    return Run("evaluate", 1, work(), summary)


# --- todo


class Piece(NamedTuple):
    """Some pictures of a folder, with their pairs."""

    name: str
    setting: Setting
    pairs: tuple[Pair, ...]
    pictures: tuple[Path, ...]


def todo(sets: Sequence[PairSet], made: dict[Setting, list[Made]]) -> list[Piece]:
    """The pictures to measure, a few at a time, folder by folder."""
    pieces = []
    for found in sets:
        for own in made[found.setting]:
            for start in range(0, len(found.pairs), BATCH):
                pairs = found.pairs[start : start + BATCH]
                paths = tuple(own.pictures[pair.id] for pair in pairs)
                pieces.append(Piece(own.name, found.setting, pairs, paths))
    return pieces


# --- make


class Tools:
    """What measures: networks and their files."""

    def __init__(self, config: EvaluateConfig, protocol: Protocol) -> None:
        from triptych.evaluation.metrics.features import open_features
        from triptych.evaluation.metrics.perceptual import open_dists, open_lpips
        from triptych.evaluation.metrics.reading import open_reader
        from triptych.evaluation.pairs.items import Instruments

        self.features = open_features(config.features or protocol.features)
        same = config.garment_features == self.features.name
        garment = self.features if same else open_features(config.garment_features)
        lpips = open_lpips(config.lpips_weights) if config.lpips_weights else None
        dists = open_dists(config.dists_weights) if config.dists_weights else None
        self.items = Instruments(protocol, garment, lpips, dists, open_reader())
        self.true = dict[Path, Any]()
        """Features of true pictures, which several folders share."""


@dataclass(frozen=True)
class MadePiece:
    """The values of some pictures, and the features of the made and the true ones, (N, D) each."""

    piece: Piece
    measured: list[Measured]
    made_ND: np.ndarray
    true_ND: np.ndarray


def make(piece: Piece, tools: Tools) -> MadePiece:
    """Measure some pictures."""
    import numpy as np

    from triptych.evaluation.pairs.items import measured

    rows = [measured(pair, path, tools.items) for pair, path in zip(piece.pairs, piece.pictures, strict=True)]
    made_ND = tools.features.features([row.made for row in rows if row.made])
    truths = [(pair.truth or pair.person, row.true) for pair, row in zip(piece.pairs, rows, strict=True)]
    for path, image in truths:
        if path not in tools.true and image is not None:
            tools.true[path] = tools.features.features([image])[0]
    return MadePiece(piece, rows, made_ND, np.stack([tools.true[path] for path, _ in truths]))


# --- record


@dataclass
class Book:
    """What `record` fills: values, reasons and features by setting and folder."""

    protocol: Protocol
    layout: str
    sets: Sequence[PairSet]
    made: dict[Setting, list[Made]]
    warnings: list[str]
    allow_small: bool
    values: dict[tuple[Setting, str], dict[str, dict[str, float | None]]] = field(default_factory=dict)
    why: dict[tuple[Setting, str], dict[str, str]] = field(default_factory=dict)
    features: dict[tuple[Setting, str], list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def report(self, tools: Tools) -> dict[str, Any]:
        """Every figure, and what it follows from."""
        lists = {
            found.setting: {
                "file": found.source.name,
                "sha256": found.list_sha256,
                "truth_sha256": found.truth_sha256,
                "n": len(found.pairs),
            }
            for found in self.sets
        }
        made: dict[str, dict[str, Any]] = {}
        notes: list[str] = []
        for found in self.sets:
            for own in self.made[found.setting]:
                part, note = self._figures((found.setting, own.name), tools)
                made.setdefault(own.name, {})[found.setting] = part
                notes += [note] if note and note not in notes else []
        return {
            "protocol": self.protocol.settings(),
            "set": {"layout": self.layout, "lists": lists},
            "made": made,
            "differences": {found.setting: self._differences(found.setting) for found in self.sets},
            "notes": notes,
            "warnings": self.warnings,
        }

    def _figures(self, key: tuple[Setting, str], tools: Tools) -> tuple[dict[str, Any], str]:
        import numpy as np

        from triptych.evaluation.pairs import figures

        made_ND, true_ND = (np.concatenate(parts) for parts in zip(*self.features[key], strict=True))
        rows = figures.item_figures(self.values[key], self.why[key], tools.items)
        rows += figures.distances(
            made_ND, true_ND, tools.features, self.protocol, allow_small=self.allow_small
        )
        beside, note = figures.published(self.protocol, key[0], tools.features, len(made_ND))
        counts = figures.counts(self.values[key], self.protocol)
        return {"figures": rows, "counts": counts, "published": beside}, note

    def _differences(self, setting: Setting) -> list[dict[str, Any]]:
        from triptych.evaluation.pairs import figures

        names = [own.name for own in self.made[setting]]
        first = names[0], self.values[setting, names[0]]
        others = [(name, self.values[setting, name]) for name in names[1:]]
        return [row for other in others for row in figures.differences(first, other, self.protocol)]


def record(book: Book, made: MadePiece) -> Iterator[Event]:
    """Note the values of some pictures."""
    piece = made.piece
    key = piece.setting, piece.name
    book.features.setdefault(key, []).append((made.made_ND, made.true_ND))
    for pair, row in zip(piece.pairs, made.measured, strict=True):
        book.values.setdefault(key, {})[pair.id] = row.values
        book.why.setdefault(key, {}).update(row.why)
        failed = book.protocol.failed(row.values)
        yield Event(f"{piece.name} {pair.id}", note=" ".join(failed) or "passes", result=row.values)


def _write_for_people(book: Book, report: dict[str, Any], out: Path) -> None:
    """The tables, the rows of the items, and a sheet of the worst for each folder and setting."""
    from triptych.evaluation.pairs.figures import worst
    from triptych.evaluation.pairs.report import WORST, item_rows, markdown, sheet
    from triptych.pictures.saving import save_png

    write_text(out / "pairs.md", markdown(report))
    rows = []
    for found in book.sets:
        pairs = {pair.id: pair for pair in found.pairs}
        for own in book.made[found.setting]:
            values = book.values[found.setting, own.name]
            same = {"made": own.name, "setting": found.setting}
            rows += [
                same | {"id": key, "values": row, "picture": own.pictures[key].name}
                for key, row in values.items()
            ]
            shown = [
                (pairs[key], own.pictures[key], values[key]) for key in worst(values, book.protocol, WORST)
            ]
            save_png(sheet(shown, book.protocol), out / f"worst-{own.name}-{found.setting}.png")
    write_text(out / "pairs-items.csv", item_rows(rows, book.protocol))


def _readable(report: dict[str, Any]) -> dict[str, Any]:
    """Figures for the summary, by folder and setting: `0.871 (0.866-0.876), n 2032`."""
    rows: dict[str, Any] = {}
    for name, settings in report["made"].items():
        for setting, part in settings.items():
            words = {}
            for figure in part["figures"]:
                if "not_measured" in figure:
                    words[figure["name"]] = f"not measured: {figure['not_measured']}"
                    continue
                low, high = figure["low"], figure["high"]
                interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
                words[figure["name"]] = f"{figure['value']:.3f}{interval}, n {figure['n']}"
            counts = part["counts"]
            rows[f"{name} {setting}"] = words | {"passed": f"{counts['passed']} of {counts['items']} items"}
    return rows
