"""demo: no input at all. A rendered shop goes through every stage on the pocket model; a report shows what came out.

Reads like the story it tells: `_story` is the whole of it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from triptych import masks
from triptych.config import StageConfig
from triptych.inference import Models, Sampling, generate_triptych, load_models
from triptych.panels import PanelLayout, split
from triptych.pocket.oracle import judge
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.pocket.render import render
from triptych.pocket.world import Garment, Scene, sample_garment
from triptych.report import DemoPictures, write_report
from triptych.sampling import SamplingConfig
from triptych.stages.caption import CaptionConfig, caption
from triptych.stages.clean import CleanConfig, clean
from triptych.stages.concat import ConcatConfig, concat
from triptych.stages.embed import EmbedConfig, embed
from triptych.stages.generate import GenerateConfig, generate
from triptych.stages.train import TrainConfig, train
from triptych.stages.tryon import TryonConfig, tryon
from triptych.store import Event, Run, write_json

BATCH = 8
SCALE = 4  # the shop's photos are four times the size of a pocket panel


class DemoConfig(StageConfig):
    out: Path | None = None
    """Folder for the report, the pictures and the work folders, if not WORK; by default demo."""
    items: int = Field(default=40, ge=8, le=150)
    """Items in the rendered shop."""
    max_train_steps: int = Field(default=300, ge=1)
    """Training steps of the LoRA."""
    garments: int = Field(default=48, ge=24, le=500)
    """Unseen garments that base and LoRA are judged on."""
    seed: int = 0
    """Everything random follows from it."""


def demo(config: DemoConfig) -> Run:
    """Write `report.html` and `summary.json` to `out`; what an earlier run finished is kept."""
    out = config.out or (config.work if "work" in config.model_fields_set else Path("demo"))
    summary: dict[str, Any] = {"report": str(out / "report.html"), "seconds": {}}
    return Run("demo", 0, _story(config, out, summary), summary)


def _story(config: DemoConfig, out: Path, summary: dict[str, Any]) -> Iterator[Event]:
    shop, work = out / "shop", {"work": out, "model": "pocket"}
    begun = time.monotonic()

    with _clock(summary, "render"):
        yield Event(f"{config.items} items", stage="render", of=1)
        write_raw_catalogue(shop, items=config.items, seed=config.seed)

    labels = {"human": shop / "labels" / "human", "garment": shop / "labels" / "garment"}
    yield from _stage(clean(CleanConfig(work=out, photos=shop / "photos", **labels)), summary)
    yield from _stage(concat(ConcatConfig(**work, max_concat_n=1, seed=config.seed)), summary)
    yield from _stage(caption(CaptionConfig(**work)), summary)
    yield from _stage(embed(EmbedConfig(**work, batch_size=BATCH)), summary)
    recipe = {"batch_size": BATCH, "learning_rate": 1e-3, "caption_dropout": 0.1, "context": "clean", "gradient_checkpointing": False}
    recipe["validation_steps"] = 100
    yield from _stage(train(TrainConfig(**work, **recipe, max_train_steps=config.max_train_steps, seed=config.seed)), summary)

    unseen = unseen_garments(shop / "truth.json", config.garments, config.seed)
    match: dict[str, Any] = {}
    made: dict[str, list[Image.Image]] = {}
    with _clock(summary, "evaluate"):
        for name, lora in (("base", None), ("lora", out / "lora")):
            models = load_models("pocket", [item.prompt for item in unseen], lora)
            # Guidance on the product photos would help the LoRA alone: both are judged with the model's ordinary guidance.
            sampling = SamplingConfig(model="pocket", lora=lora, context_guidance_scale=1.0).sampling(models.backbone.settings)
            made[name] = []
            for start in range(0, len(unseen), BATCH):
                made[name] += worn_panels(models, sampling, unseen[start : start + BATCH], config.seed + start)
                yield Event(name, stage="evaluate", of=2 * -(-len(unseen) // BATCH))
            match[name] = garment_match(made[name], unseen)

    with _clock(summary, "pictures"):
        yield from _generate_pictures(out, unseen[:3], config.seed).nested()
        pairs = [_tryon_inputs(out / "tryon", number, item, config.seed) for number, item in enumerate(unseen[3:6])]
        for number, inputs in enumerate(pairs):
            for name, lora in (("base", None), ("lora", out / "lora")):
                options = {**inputs, "lora": lora, "seed": config.seed + number, "out": out / "tryon" / f"{number}-{name}.png"}
                yield from tryon(TryonConfig(work=out, crop="none", strength=0.95, feather=4, **options)).nested()

    summary.update(
        photos=summary["clean"]["photos"],
        triptychs=summary["embed"]["triptychs"],
        train_steps=summary["train"]["train_steps"],
        garment_match={name: match[name]["colour"] for name in match},
        pattern_match={name: match[name]["pattern"] for name in match},
        garments=len(unseen),
    )
    summary["seconds"]["total"] = round(time.monotonic() - begun, 1)
    pictures = DemoPictures(
        compared=[
            (item.front, item.back, base, lora, item.worn) for item, base, lora in zip(unseen, made["base"], made["lora"], strict=True)
        ][:12],
        verdicts=[(match["base"]["hits"][n], match["lora"]["hits"][n]) for n in range(min(12, len(unseen)))],
        tryons=[{k: Path(v) for k, v in inputs.items() if k != "prompt"} for inputs in pairs],
    )
    write_json(out / "summary.json", summary)
    write_report(out, summary, pictures)
    yield Event("report.html", stage="report", of=1)


def _stage(run: Run, summary: dict[str, Any]) -> Iterator[Event]:
    with _clock(summary, run.name):
        yield from run.nested()
    summary[run.name] = run.summary


@contextmanager
def _clock(summary: dict[str, Any], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    summary["seconds"][name] = round(time.monotonic() - start, 1)


class Unseen:
    """A garment that no training picture shows: its true panels, and a caption that is silent about colour and pattern."""

    def __init__(self, garment: Garment, scenes: tuple[Scene, Scene, Scene], seed: int) -> None:
        self.garment, self.scenes, self.seed = garment, scenes, seed
        self.front, self.back, self.worn = (render(garment, scene, seed + n, SCALE).image for n, scene in enumerate(scenes))
        self.prompt = triptych_caption(garment, scenes, named=False).text


def unseen_garments(truth: Path, count: int, seed: int) -> list[Unseen]:
    """Garments (type, colour, pattern, second colour) that the shop does not have."""
    known = {Garment(**item) for item in _garments(json.loads(truth.read_text(encoding="utf-8")))}
    rng = random.Random(f"unseen {seed}")
    found: list[Unseen] = []
    while len(found) < count:
        garment, scenes = sample_triptych(rng)
        if garment not in known:
            found.append(Unseen(garment, scenes, rng.getrandbits(30)))
    return found


def _garments(value: Any) -> Iterator[dict[str, str]]:
    """Every garment named anywhere in the shop's truth."""
    if isinstance(value, dict):
        if set(value) == {"type", "colour", "pattern", "colour2"}:
            yield value
        for part in value.values():
            yield from _garments(part)
    elif isinstance(value, list):
        for part in value:
            yield from _garments(part)


def worn_panels(models: Models, sampling: Sampling, items: list[Unseen], seed: int) -> list[Image.Image]:
    """The worn panel of each item, generated beside its two product photos from the silent caption."""
    settings = models.backbone.settings
    layout = PanelLayout(settings.panel_width, settings.panel_height)
    products = [{"front": item.front, "back": item.back} for item in items]
    seeds = [seed + n for n in range(len(items))]
    canvases = generate_triptych(models, [item.prompt for item in items], layout, seeds, sampling, products)
    return [split(canvas, layout)[2] for canvas in canvases]


def garment_match(panels: list[Image.Image], items: list[Unseen]) -> dict[str, Any]:
    """Shares of worn panels whose garment has the true colour and the true pattern, by the oracle of the rendered world."""
    seen = judge(panels, [item.garment.type for item in items])
    hits = [one.colour == item.garment.colour for one, item in zip(seen, items, strict=True)]
    patterns = [one.pattern == item.garment.pattern for one, item in zip(seen, items, strict=True)]
    return {"colour": round(float(np.mean(hits)), 3), "pattern": round(float(np.mean(patterns)), 3), "hits": hits}


def _generate_pictures(out: Path, items: list[Unseen], seed: int) -> Run:
    """Mode (a) through the verb itself, one picture per item."""
    folder = out / "generated"
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> Iterator[Event]:
        for number, item in enumerate(items):
            item.front.save(folder / f"{number}-front.png")
            item.back.save(folder / f"{number}-back.png")
            options = {"front": folder / f"{number}-front.png", "back": folder / f"{number}-back.png", "prompt": item.prompt}
            yield from generate(GenerateConfig(work=out, out=folder / str(number), lora=out / "lora", seed=seed, **options))

    return Run("generate", len(items), work(), {})


def _tryon_inputs(folder: Path, number: int, item: Unseen, seed: int) -> dict[str, Any]:
    """A person who wears another garment of the same type, and a polygon around it, as a user would draw it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"tryon {seed} {number}")
    old = next(g for g in iter(lambda: sample_garment(rng, type=item.garment.type), None) if g.colour != item.garment.colour)
    worn = render(old, item.scenes[2], item.seed + 2, SCALE)
    paths = {name: folder / f"{number}-{name}.png" for name in ("front", "back", "person")}
    for name, image in (("front", item.front), ("back", item.back), ("person", worn.image)):
        image.save(paths[name])
    polygon = folder / f"{number}-polygon.json"
    masks.write_polygons(polygon, [outline(np.asarray(worn.mask) > 127, margin=6)])
    return {**paths, "polygon": polygon, "prompt": item.prompt}


def outline(mask: np.ndarray, margin: int) -> list[tuple[float, float]]:
    """A generous polygon around a (H, W) bool mask: its left and right edge every few rows, `margin` pixels away."""
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)
    left, right = [], []
    for row in [*range(top, bottom, 12), bottom]:
        band = np.flatnonzero(mask[max(0, row - 12) : row + 12].any(axis=0))
        if len(band):
            left.append((float(max(0, band[0] - margin)), float(row)))
            right.append((float(min(width, band[-1] + 1 + margin)), float(row)))
    return [*left, *reversed(right)]
