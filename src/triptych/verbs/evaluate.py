"""evaluate: measures how well a LoRA carries garments over, in the rendered world with its known truth."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from triptych import progress
from triptych.config.marks import RESULT, marked
from triptych.config.stage import seeds_from
from triptych.errors import ConfigError
from triptych.events import Event, Run
from triptych.pictures.images import save_png
from triptych.store.files import digest, read_json, sha256_file, write_json
from triptych.verbs.evaluate_config import EvaluateConfig

if TYPE_CHECKING:  # they import torch, and `--help` must not
    from PIL import Image

    from triptych.evaluation.rendered import Item
    from triptych.session import Session


def evaluate(config: EvaluateConfig) -> Run:
    """Write `evaluation.json` and a contact sheet per mode; measurements with the same settings are kept.

    Raises:
        ConfigError: without `pocket`, because the truth about other pictures is unknown. ModelError: model or
            LoRA cannot be loaded.
    """
    if not config.pocket:
        hint = "Give --pocket. For photos, look at the sheets of `triptych tryon --batch` instead."
        raise ConfigError("evaluate measures on the rendered world only.", hint)
    # Not at the top: these modules import torch, and `--help` must not.
    from triptych.evaluation.rendered import BATCH, held_out_items, round_trips, sheet, summary_of, verdicts
    from triptych.session import load_models

    out = config.out or config.work / "evaluation"
    modes = ("generate", "tryon") if config.mode == "both" else (config.mode,)
    subjects = [("base", config.without_lora())] if config.base or config.lora is None else []
    if config.lora is not None:
        subjects.append(("lora", config))
    seeds_from(config.seed, config.items)
    progress.doing("drawing garments")
    items = held_out_items(config.items, config.seed, back_prints=config.back_prints)
    summary: dict[str, Any] = {"items": len(items), "results": str(out / "evaluation.json")}
    batches = -(-len(items) // BATCH)

    def work() -> Iterator[Event]:
        path = out / "evaluation.json"
        results: dict[str, Any] = read_json(path) if path.exists() else {}
        made: dict[str, dict[str, Any]] = {mode: {} for mode in modes}
        measured = {"ceiling"}
        for name, one in subjects:
            models = None
            for mode in modes:
                measured.add(f"{mode}/{name}")
                key = digest(_settings(one, mode))
                if results.get(f"{mode}/{name}", {}).get("settings") == key:
                    yield from (Event(name, "kept", mode) for _ in range(batches))
                    continue
                models = models or load_models(**one.model_source(), prompts=[item.prompt for item in items])
                row, made[mode][name] = yield from _measured(models, one, mode, items, name)
                results[f"{mode}/{name}"] = {"settings": key} | row
                drawn = [config.items, config.seed, config.back_prints]
                if results.get("ceiling", {}).get("items") != drawn:
                    truth = summary_of(verdicts(round_trips(models, items), items))
                    results["ceiling"] = {"items": drawn, **truth}
                write_json(path, results)
        for mode, columns in made.items():
            if columns:
                save_png(
                    sheet(items, {**columns, "truth": [item.worn for item in items]}), out / f"{mode}.png"
                )
        summary.update(_readable({name: row for name, row in results.items() if name in measured}))

    return Run("evaluate", batches * len(modes) * len(subjects), work(), summary)


def _measured(
    models: Session, config: EvaluateConfig, mode: str, items: list[Item], name: str
) -> Generator[Event, None, tuple[dict[str, Any], list[Image.Image]]]:
    """Sample and judge the worn panels of all items. Returns the measured values and the panels. name: the
    subject in the events.
    """
    from triptych.evaluation.rendered import (
        BATCH,
        colour_distance,
        dressed,
        summary_of,
        verdicts,
        worn_panels,
    )

    sampling = models.resolved(config, config.strength if mode == "tryon" else 1.0)
    panels: list[Image.Image] = []
    extra: dict[str, Any] = {"outside": 0, "seam": 0.0}
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        if mode == "generate":
            panels += worn_panels(models, sampling, batch, config.seed + start)
        else:
            result = dressed(models, sampling, batch, config.seed + start)
            panels += result.panels
            extra["outside"] = max(extra["outside"], result.outside)
            extra["seam"] += result.seam * len(batch) / len(items)
        yield Event(name, note=mode)
    row = {**summary_of(verdicts(panels, items)), "colour_distance": colour_distance(panels, items)}
    return row | (extra if mode == "tryon" else {}), panels


def _settings(config: EvaluateConfig, mode: str) -> dict[str, Any]:
    """All settings that a measurement depends on."""
    decides = set(marked(EvaluateConfig, RESULT)) - ({"strength"} if mode != "tryon" else set())
    settings: dict[str, Any] = config.model_dump(mode="json", include=decides)
    if config.lora is not None:
        from triptych.lora.find import lora_file

        settings["lora"] = sha256_file(lora_file(config.lora))
    return settings


def _readable(results: dict[str, Any]) -> dict[str, Any]:
    """Shares by mode and model for the summary: `0.97 (0.94-0.98)`."""

    def words(row: dict[str, Any]) -> dict[str, Any]:
        shares = {
            k: f"{v['share']:.2f} ({v['low']:.2f}-{v['high']:.2f})"
            for k, v in row.items()
            if isinstance(v, dict)
        }
        return shares | {k: row[k] for k in ("colour_distance", "outside", "seam") if k in row}

    return {name: words(row) for name, row in results.items()}
