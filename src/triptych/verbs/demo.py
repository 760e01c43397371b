"""demo: needs no input. A rendered shop goes through every stage on the pocket model; a report shows the
results.

`_story` is the whole demo, in order.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.config.stage import seeds_from
from triptych.evaluation.rendered import (
    BATCH,
    Item,
    held_out_items,
    prompt_of,
    verdicts,
    worn_panels,
)
from triptych.events import Event, Run
from triptych.pages.demo import DRESSED, SUBJECTS, DemoPictures, write_report
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.session import load_models
from triptych.store.files import write_json
from triptych.verbs.caption import CaptionConfig, caption
from triptych.verbs.clean import CleanConfig, clean
from triptych.verbs.concat import ConcatConfig, concat
from triptych.verbs.demo_config import DemoConfig
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.train import TrainConfig, train
from triptych.verbs.tryon import TryonConfig, tryon


def demo(config: DemoConfig) -> Run:
    """Write `report.html` and `summary.json` to `out`; finished work of an earlier run is kept."""
    seeds_from(config.seed, config.garments)
    out = config.out or (config.work if "work" in config.model_fields_set else Path("demo"))
    summary: dict[str, Any] = {"report": str(out / "report.html"), "seconds": {}}
    return Run("demo", 0, _story(config, out, summary), summary)


def _story(config: DemoConfig, out: Path, summary: dict[str, Any]) -> Iterator[Event]:
    begun = time.monotonic()
    yield from _train(config, out, summary)
    unseen = held_out_items(config.garments, config.seed)
    with _clock(summary, "evaluate"):
        made = yield from _judged_panels(config, out, unseen)
        match = {name: verdicts(panels, unseen) for name, panels in made.items()}
    with _clock(summary, "pictures"):
        yield from _generate_pictures(out, unseen[:3], config.seed).nested()
        dressed = unseen[3:6]
        tryons = [_tryon_inputs(out / "tryon", number, item) for number, item in enumerate(dressed)]
        yield from _dress(config, out, dressed, tryons)
    summary.update(
        photos=summary["clean"]["photos"],
        triptychs=summary["embed"]["triptychs"],
        train_steps=summary["train"]["train_steps"],
        garment_match={name: round(float(np.mean(hits["colour"])), 3) for name, hits in match.items()},
        pattern_match={name: round(float(np.mean(hits["pattern"])), 3) for name, hits in match.items()},
        garments=len(unseen),
    )
    summary["seconds"]["total"] = round(time.monotonic() - begun, 1)
    pictures = DemoPictures(
        compared=[
            (item.front, item.back, *(made[name][n] for name in SUBJECTS), item.worn)
            for n, item in enumerate(unseen[:12])
        ],
        verdicts=[
            [(match[name]["colour"][n], match[name]["pattern"][n]) for name in SUBJECTS]
            for n in range(min(12, len(unseen)))
        ],
        tryons=tryons,
    )
    write_json(out / "summary.json", summary)
    write_report(out, summary, pictures)
    yield Event("report.html", stage="report", of=1, result=out / "report.html")


def _train(config: DemoConfig, out: Path, summary: dict[str, Any]) -> Iterator[Event]:
    """From the rendered shop to a trained LoRA."""
    shop, work = out / "shop", {"work": out, "model": "pocket"}
    with _clock(summary, "render"):
        yield Event(f"{config.items} items", stage="render", of=1)
        write_raw_catalogue(shop, items=config.items, seed=config.seed)

    labels = {"human": shop / "labels" / "human", "garment": shop / "labels" / "garment"}
    yield from _stage(clean(CleanConfig(work=out, photos=shop / "photos", **labels)), summary)
    yield from _stage(concat(ConcatConfig(**work, max_concat_n=1, seed=config.seed)), summary)
    yield from _stage(caption(CaptionConfig(**work, vlm_model="pocket")), summary)
    yield from _stage(embed(EmbedConfig(**work, batch_size=8)), summary)
    recipe: dict[str, Any] = {
        "batch_size": 4,
        "noise_levels": 2,
        "learning_rate": 3e-3,
        "shift": 3.0,
        "caption_dropout": 0.1,
    }
    recipe |= {"context": "clean", "context_lora": True, "gradient_checkpointing": False}
    recipe |= {"lr_warmup_steps": 10, "ema_decay": 0.95}  # adapted to fewer steps than usual
    recipe["validation_steps"] = config.max_train_steps
    yield from _stage(
        train(TrainConfig(**work, **recipe, max_train_steps=config.max_train_steps, seed=config.seed)),
        summary,
    )


def _judged_panels(
    config: DemoConfig, out: Path, unseen: list[Item]
) -> Generator[Event, None, dict[str, list[Image.Image]]]:
    """Worn panels of unseen garments, by subject: base, LoRA, LoRA guided by the product photos, and a base
    that reads references.

    Guidance on the product photos helps only the LoRA, so base and LoRA are also judged with the model's
    ordinary guidance.
    """
    made: dict[str, list[Image.Image]] = {}
    ordinary = {"context_guidance_scale": 1.0}
    subjects: dict[str, tuple[str, Path | None, dict[str, float]]] = {
        "base": ("pocket", None, ordinary),
        "lora": ("pocket", out / "lora", ordinary),
        "guided": ("pocket", out / "lora", {}),
        "references": ("pocket-klein", None, {}),
    }
    for name, (model, lora, guidance) in subjects.items():
        if name != "guided":
            prompts = [prompt_of(item, describes_panels=model == "pocket") for item in unseen]
            session = load_models(model, prompts, lora)
        sampling = session.sampling(**guidance)
        made[name] = []
        for start in range(0, len(unseen), BATCH):
            batch = unseen[start : start + BATCH]
            made[name] += worn_panels(session, sampling, batch, config.seed + start)
            yield Event(name, stage="evaluate", of=len(SUBJECTS) * -(-len(unseen) // BATCH))
    return made


def _dress(
    config: DemoConfig, out: Path, items: list[Item], tryons: list[dict[str, Path]]
) -> Iterator[Event]:
    """Try-ons with base, with LoRA, and with a base that reads references."""
    for number, (item, inputs) in enumerate(zip(items, tryons, strict=True)):
        for name in DRESSED:
            model = "pocket-klein" if name == "references" else "pocket"
            options: dict[str, Any] = {
                **inputs,
                "mask": Path("auto"),  # of the kind that the prompt names
                "prompt": prompt_of(item, describes_panels=model == "pocket"),
                "lora": out / "lora" if name == "lora" else None,
                "seed": config.seed + number,
                "out": out / "tryon" / f"{number}-{name}.png",
            }
            dressed = tryon(
                TryonConfig(work=out, model=model, crop="none", strength=0.95, feather=4, **options)
            )
            yield from (replace(event, stage="tryon", of=len(DRESSED) * len(items)) for event in dressed)


def _stage(run: Run, summary: dict[str, Any]) -> Iterator[Event]:
    with _clock(summary, run.name):
        yield from run.nested()
    summary[run.name] = run.summary


@contextmanager
def _clock(summary: dict[str, Any], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    summary["seconds"][name] = round(time.monotonic() - start, 1)


def _generate_pictures(out: Path, items: list[Item], seed: int) -> Run:
    """Generate one picture per item with the verb itself."""
    folder = out / "generated"
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> Iterator[Event]:
        for number, item in enumerate(items):
            item.front.save(folder / f"{number}-front.png")
            item.back.save(folder / f"{number}-back.png")
            options = {
                "front": folder / f"{number}-front.png",
                "back": folder / f"{number}-back.png",
                "prompt": item.prompt,
            }
            yield from generate(
                GenerateConfig(
                    work=out,
                    model="pocket",
                    out=folder / str(number),
                    lora=out / "lora",
                    seed=seed,
                    **options,
                )
            )

    return Run("generate", len(items), work(), {})


def _tryon_inputs(folder: Path, number: int, item: Item) -> dict[str, Path]:
    """Files of a try-on: front, back, and a person who wears another garment of the same type."""
    folder.mkdir(parents=True, exist_ok=True)
    worn = item.view(2, item.other())
    paths = {name: folder / f"{number}-{name}.png" for name in ("front", "back", "person")}
    for name, image in (("front", item.front), ("back", item.back), ("person", worn.image)):
        image.save(paths[name])
    return paths
