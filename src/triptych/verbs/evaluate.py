"""evaluate: measures how well a LoRA carries garments over, in the rendered world with its known truth."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from triptych import progress
from triptych.backbones.settings import model_settings
from triptych.config.marks import RESULT, marked
from triptych.config.stage import seeds_from
from triptych.errors import ConfigError
from triptych.events import Event, Run
from triptych.execution import PerWorker, execute
from triptych.pictures.saving import save_png
from triptych.sampling.idle_options import asks_for_something
from triptych.store.files import digest, read_json, sha256_file, write_json
from triptych.verbs.evaluate_config import EvaluateConfig
from triptych.verbs.evaluate_pairs import check_options, evaluate_pairs

if TYPE_CHECKING:  # they import torch, and `--help` must not
    from PIL import Image

    from triptych.evaluation.rendered import Dressed, Item
    from triptych.sampling.options import Sampling

log = logging.getLogger(__name__)

Mode = Literal["generate", "tryon", "tryoff"]

ROWS = 12
"""Items on a contact sheet."""


def evaluate(config: EvaluateConfig) -> Run:
    """Write `evaluation.json` and a contact sheet per mode; measurements with the same settings are kept.
    With `pairs`, measure made pictures instead, see `evaluate_pairs`.

    Raises:
        ConfigError: neither `pocket` nor `pairs`, because the truth is unknown then; or an option that was
            given has no effect. ModelError: model or LoRA cannot be loaded.
    """
    check_options(config)
    if config.pairs is not None:
        return evaluate_pairs(config)
    if not config.pocket:
        hint = "Give --pocket, or for photos --pairs FOLDER with the pictures of `triptych tryon --batch`."
        raise ConfigError("evaluate measures on the rendered world, or on pairs of photos.", hint)
    if config.refine and "tryon" not in _modes(config):
        raise ConfigError(f"--refine has no effect in mode {config.mode}.", "Give --mode tryon as well.")
    seeds_from(config.seed, config.items)
    out = config.out or config.work / "evaluation"
    summary: dict[str, Any] = {"items": config.items, "results": str(out / "evaluation.json")}
    subjects = _subjects(config)
    summary["warnings"] = _checked(subjects, config)

    def work() -> Iterator[Event]:
        path, items = out / "evaluation.json", PerWorker(_items, config)
        book = Book(config.items, read_json(path) if path.exists() else {})
        for subject in subjects:
            tools = PerWorker(Tools, subject.config, items)
            for measurement in todo(subject, book.results):
                if measurement.kept:
                    yield from (Event(subject.name, "kept", measurement.mode) for _ in measurement.batches)
                    continue
                for judged in execute(make, measurement.batches, tools):
                    yield record(book, measurement, judged)
                for judged in execute(make_ceiling, todo_ceiling(config, book.results), tools):
                    record_ceiling(book, config, judged)
                write_json(path, book.results)
        for mode, columns in book.shown.items():
            save_png(_sheet(items()[:ROWS], mode, columns), out / f"{mode}.png")
        measured = {
            "ceiling",
            *(f"{mode}/{subject.name}" for subject in subjects for mode in _modes(config)),
        }
        summary.update(_readable({name: row for name, row in book.results.items() if name in measured}))

    total = len(_batches(config, "generate")) * len(_modes(config)) * len(subjects)
    return Run("evaluate", total, work(), summary)


class Subject(NamedTuple):
    """What is measured: the base model or the LoRA."""

    name: Literal["base", "lora"]
    config: EvaluateConfig


def _subjects(config: EvaluateConfig) -> list[Subject]:
    if config.lora is None:
        return [Subject("base", config)]
    return [*([Subject("base", config.without_lora())] if config.base else []), Subject("lora", config)]


def _checked(subjects: Sequence[Subject], config: EvaluateConfig) -> list[str]:
    """Raise ConfigError for an option without effect. Returns, and logs, a warning about those that the base
    model beside a LoRA does without.
    """
    from triptych.lora.file import read_about

    settings = model_settings(config.model)
    for subject in subjects:
        lora = subject.config.lora
        subject.config.resolve(settings, config.strength, read_about(lora) if lora else {})
    base = subjects[0].config
    left_out = [
        f"--{name.replace('_', '-')} {getattr(config, name)}"
        for name in sorted(config.model_fields_set - base.model_fields_set - {"lora", "lora_scale"})
        if asks_for_something(name, getattr(config, name), settings)
    ]
    warnings = [f"The base model is measured without {', '.join(left_out)}."] if left_out else []
    for warning in warnings:
        log.warning(warning)
    return warnings


def _modes(config: EvaluateConfig) -> tuple[Mode, ...]:
    return ("generate", "tryon") if config.mode == "both" else (config.mode,)


# --- todo


@dataclass(frozen=True)
class Batch:
    """The items from `start` to `stop`, without the latter, in one mode."""

    mode: Mode
    start: int
    stop: int


class Measurement(NamedTuple):
    """A row of evaluation.json to be. settings: digest of all that it depends on. kept: it is there."""

    name: str
    subject: str
    mode: Mode
    settings: str
    batches: list[Batch]
    kept: bool


def todo(subject: Subject, results: dict[str, Any]) -> list[Measurement]:
    """The measurements of a subject, compared with the `results` of evaluation.json."""
    rows = []
    for mode in _modes(subject.config):
        name, settings = f"{mode}/{subject.name}", digest(_settings(subject.config, mode))
        kept = results.get(name, {}).get("settings") == settings
        batches = _batches(subject.config, mode)
        rows.append(Measurement(name, subject.name, mode, settings, batches, kept))
    return rows


def todo_ceiling(config: EvaluateConfig, results: dict[str, Any]) -> list[Batch]:
    """The batches of which the ceiling is unknown: all, or none if it was measured on the same items."""
    known = results.get("ceiling", {}).get("items") == _drawn(config)
    return [] if known else _batches(config, "generate")


def _batches(config: EvaluateConfig, mode: Mode) -> list[Batch]:
    from triptych.evaluation.rendered import BATCH

    return [Batch(mode, start, min(start + BATCH, config.items)) for start in range(0, config.items, BATCH)]


def _drawn(config: EvaluateConfig) -> list[Any]:
    return [config.items, config.seed, config.back_prints]


def _settings(config: EvaluateConfig, mode: str) -> dict[str, Any]:
    """All settings that a measurement depends on."""
    decides = set(marked(EvaluateConfig, RESULT)) - (
        {"strength", "masks", "refine"} if mode != "tryon" else set()
    )
    settings: dict[str, Any] = config.model_dump(mode="json", include=decides)
    if config.lora is not None:
        from triptych.lora.find import lora_file

        settings["lora"] = sha256_file(lora_file(config.lora))
    return settings


# --- make


def _items(config: EvaluateConfig) -> list[Item]:
    from triptych.evaluation.rendered import held_out_items

    progress.doing("drawing garments")
    return held_out_items(config.items, config.seed, back_prints=config.back_prints)


class Tools:
    """The tools of a worker: a subject's model, and the garments with their truth."""

    def __init__(self, config: EvaluateConfig, items: PerWorker[list[Item]]) -> None:
        from triptych.evaluation.rendered import pointing_prompt, prompt_of
        from triptych.session import load_models
        from triptych.vision.parsing import open_parser

        self.config, self.items = config, items()
        prompts = [prompt_of(item, config.describes_panels) for item in self.items]
        if config.masks == "free":
            prompts = [pointing_prompt(item) for item in self.items]
        self.models = load_models(**config.model_source(), prompts=prompts)
        self.parser = open_parser() if config.masks == "auto" and config.mode in ("tryon", "both") else None


@dataclass(frozen=True)
class Judged:
    """The worn panels of a batch, judged.

    hits: by attribute, whether each panel is right. distances: from the true colour, by panel (ΔE*ab).
    shown: columns of panels for the contact sheet. result: of mode tryon.
    """

    batch: Batch
    hits: dict[str, list[bool]]
    distances: list[float] = field(default_factory=list)
    shown: list[list[Image.Image]] = field(default_factory=list)
    result: Dressed | None = None


def make(batch: Batch, tools: Tools) -> Judged:
    """Sample the made panels of a batch and judge them."""
    from triptych.evaluation.rendered import colour_distances, dressed, verdicts, worn_panels

    config, items = tools.config, tools.items[batch.start : batch.stop]
    sampling = tools.models.resolved(config, config.strength if batch.mode == "tryon" else 1.0)
    seed, result = config.seed + batch.start, None
    if batch.mode == "tryoff":
        return _undressed(batch, tools, sampling, items)
    if batch.mode == "generate":
        panels = worn_panels(tools.models, sampling, items, seed)
    else:
        free = config.masks == "free"
        result = dressed(
            tools.models, sampling, items, seed, parser=tools.parser, mask_free=free, refine=config.refine
        )
        panels = result.panels
    distances, shown = colour_distances(panels, items), [panels[: max(0, ROWS - batch.start)]]
    return Judged(batch, verdicts(panels, items), distances, shown, result)


def _undressed(batch: Batch, tools: Tools, sampling: Sampling, items: list[Item]) -> Judged:
    from triptych.evaluation.rendered import (
        BACK,
        FRONT,
        colour_distances,
        product_panels,
        product_verdicts,
    )

    fronts, backs = product_panels(tools.models, sampling, items, tools.config.seed + batch.start)
    distances = colour_distances(fronts, items, FRONT) + colour_distances(backs, items, BACK)
    shown = [panels[: max(0, ROWS - batch.start)] for panels in (fronts, backs)]
    return Judged(batch, product_verdicts(fronts, backs, items), distances, shown=shown)


def make_ceiling(batch: Batch, tools: Tools) -> Judged:
    """Judge the true panels after the autoencoder's round trip."""
    from triptych.evaluation.rendered import product_verdicts, round_trips, verdicts

    items = tools.items[batch.start : batch.stop]
    fronts, backs, worn = zip(*round_trips(tools.models, items), strict=True)
    return Judged(batch, verdicts(worn, items) | product_verdicts(fronts, backs, items))


# --- record


@dataclass
class Book:
    """What the `record` functions fill. items: number of items. results: the rows of evaluation.json. shown:
    the panels of the contact sheets, by mode and subject. judged: the batches of the row that is measured.
    """

    items: int
    results: dict[str, Any]
    shown: dict[str, dict[str, list[list[Image.Image]]]] = field(default_factory=dict)
    judged: list[Judged] = field(default_factory=list)

    def is_complete(self, judged: Judged) -> bool:
        """Note a batch; whether it was the row's last one."""
        self.judged.append(judged)
        return judged.batch.stop == self.items

    def hits(self) -> dict[str, list[bool]]:
        return {
            name: [hit for judged in self.judged for hit in judged.hits[name]] for name in self.judged[0].hits
        }


def record(book: Book, measurement: Measurement, judged: Judged) -> Event:
    """Note a batch; with the last one the measurement becomes a row of the results."""
    from triptych.evaluation.rendered import mean_distance, summary_of, together

    name, mode = measurement.subject, measurement.mode
    columns = book.shown.setdefault(mode, {}).setdefault(name, [[] for _ in judged.shown])
    for column, panels in zip(columns, judged.shown, strict=True):
        column.extend(panels)
    if book.is_complete(judged):
        distances = [distance for part in book.judged for distance in part.distances]
        row = {**summary_of(book.hits()), "colour_distance": mean_distance(distances)}
        row |= together([part.result for part in book.judged if part.result])
        book.results[measurement.name] = {"settings": measurement.settings} | row
        book.judged.clear()
    return Event(name, note=mode)


def record_ceiling(book: Book, config: EvaluateConfig, judged: Judged) -> None:
    """Note a batch; with the last one the ceiling becomes a row of the results."""
    from triptych.evaluation.rendered import summary_of

    if book.is_complete(judged):
        book.results["ceiling"] = {"items": _drawn(config), **summary_of(book.hits())}
        book.judged.clear()


def _sheet(items: Sequence[Item], mode: str, columns: dict[str, list[list[Image.Image]]]) -> Image.Image:
    """What is given, the panels made by each subject, and the truth."""
    from triptych.evaluation.rendered import sheet

    products, worn = (
        [[item.front for item in items], [item.back for item in items]],
        [[i.worn for i in items]],
    )
    given, truth = (worn, products) if mode == "tryoff" else (products, worn)
    return sheet([*given, *(column for made in columns.values() for column in made), *truth])


MEASURES = ("colour_distance", "outside", "seam", "left", "sharpness", "difference")


def _readable(results: dict[str, Any]) -> dict[str, Any]:
    """Shares by mode and model for the summary: `0.97 (0.94-0.98)`."""

    def words(row: dict[str, Any]) -> dict[str, Any]:
        shares = {
            k: f"{v['share']:.2f} ({v['low']:.2f}-{v['high']:.2f})"
            for k, v in row.items()
            if isinstance(v, dict)
        }
        return shares | {k: row[k] for k in MEASURES if k in row}

    return {name: words(row) for name, row in results.items()}
