"""The embedded model through the product's own stages, on the card and on the CPU."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from gpu_parts.bench import Bench, Figures
from pocket import write_triptychs
from triptych.evaluation.rendered import Item, held_out_items, outline
from triptych.lora.adapter import FILE_NAME
from triptych.pictures import masks
from triptych.pictures.polygons import write_polygons
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.train import TrainConfig, train
from triptych.verbs.tryon import TryonConfig, tryon

RECIPES: dict[str, dict[str, Any]] = {
    "noisy": {"batch_size": 2},
    "clean": {
        "batch_size": 2,
        "context": "clean",
        "context_lora": True,
        "noise_levels": 2,
        "gradient_checkpointing": False,
    },
    "clean, products first": {
        "batch_size": 2,
        "context": "clean",
        "context_reading": "products",
    },
}
"""Their optimizer is AdamW. In 8 bits two devices may round a moment to neighbouring codes, and a tensor with
hardly any gradient then moves elsewhere: that is compared with AdamW on one device."""


def pocket(bench: Bench) -> None:
    """embed, train, a training that stops and goes on, generate and tryon of the pocket model, in float32,
    beside the CPU's results."""
    item, steps = held_out_items(1)[0], 2 if bench.tiny else 10
    places = ["cpu", str(bench.device)] if bench.card else ["cpu"]
    works = {place: bench.work / f"pocket-{place}" for place in places}
    here = works[places[-1]]
    for place, work in works.items():
        write_triptychs(work, 2 if bench.tiny else 16)
        bench.row(
            f"embed, {place}",
            lambda work=work, place=place: _timed(
                embed(EmbedConfig(work=work, model="pocket", columns=3, device=place, dtype="fp32"))
            ),
        )
    bench.row(
        "latents and text, card and CPU", lambda: _worst(*(_embeddings(work) for work in works.values()))
    )
    recipes = {"clean": RECIPES["clean"]} if bench.tiny else RECIPES
    for name, recipe in recipes.items():
        for place, work in works.items():
            options = _options(work, place, steps, recipe, work / name)
            bench.row(f"train {name}, {place}", lambda options=options: _trained(**options))
        bench.row(
            f"LoRA {name}, card and CPU",
            lambda name=name: _worst(*(_lora(work / name) for work in works.values())),
        )
    last, folder = list(recipes)[-1], here / "adamw8bit"
    eight = _options(here, places[-1], steps, recipes[last] | {"optimizer": "adamw8bit"}, folder)
    bench.row(f"train {last}, adamw8bit, {places[-1]}", lambda: _trained(**eight))
    bench.row(
        f"LoRA {last}, adamw8bit and adamw, {places[-1]}",
        lambda: _worst(_lora(folder), _lora(here / last)),
    )
    again = _options(here, places[-1], steps, RECIPES["clean"], here)
    del again["lora_folder"]
    bench.row("a training that stopped and went on", lambda: _resumed(bench, again))
    for name in recipes:
        bench.row(f"generate, {name}", lambda name=name: _generated(bench, works, name, item))
        bench.row(f"tryon, {name}", lambda name=name: _dressed(bench, works, name, item))


def _options(work: Path, place: str, steps: int, recipe: dict[str, Any], lora_folder: Path) -> dict[str, Any]:
    where = {"work": work, "device": place, "dtype": "fp32", "lora_folder": lora_folder}
    return {**where, "max_train_steps": steps, **recipe}


def _timed(run: Any) -> Figures:
    begun, summary = time.monotonic(), run.finish()
    return {
        "s": time.monotonic() - begun,
        **({"loss": summary["loss"]} if summary.get("loss") is not None else {}),
    }


def _trained(**options: Any) -> Figures:
    return _timed(
        train(
            TrainConfig(**{"model": "pocket", "num_validation_images": 0, "validation_steps": 0, **options})
        )
    )


def _resumed(bench: Bench, options: dict[str, Any]) -> Figures:
    """Half of a training, the rest in a second run; beside it, twice the whole: what the card's kernels do
    not repeat."""
    half = options["max_train_steps"] // 2
    options |= {
        "model": "pocket",
        "num_validation_images": 0,
        "validation_steps": 0,
        "checkpointing_steps": half,
    }
    folders = {name: Path(options["work"]) / f"resume-{name}" for name in ("whole", "again", "parts")}
    for name in ("whole", "again"):
        train(TrainConfig(**options, lora_folder=folders[name])).finish()
    with train(TrainConfig(**options, lora_folder=folders["parts"])) as begun:
        for event in begun:
            if event.id == f"step {half}":
                break
    summary = train(TrainConfig(**options, lora_folder=folders["parts"])).finish()
    whole, again, parts = (_lora(folder) for folder in folders.values())
    apart, unsteady = _worst(whole, parts)["apart"], _worst(whole, again)["apart"]
    good = summary["resumed_at"] == half and apart <= 3 * unsteady + 1e-6
    return {"apart": apart, "two whole ones apart": unsteady, "equal": good}


def _generated(bench: Bench, works: dict[str, Path], lora: str, item: Item) -> Figures:
    made = []
    for place, work in works.items():
        folder = work / "made" / lora
        options = _photos(work, item) | {
            "lora": work / lora,
            "out": folder,
            "device": place,
            "dtype": "fp32",
            "num_inference_steps": 2 if bench.tiny else 8,
        }
        generate(GenerateConfig(work=work, model="pocket", prompt=item.prompt, **options)).finish()
        made += [np.asarray(Image.open(next(folder.glob("*.png"))).convert("RGB"), int)]
    return {"of 255": int(np.abs(made[0] - made[-1]).max())}


def _dressed(bench: Bench, works: dict[str, Path], lora: str, item: Item) -> Figures:
    """Outside the polygon every pixel is the photo's."""
    before, made = item.view(2, item.other()), []
    area = outline(np.asarray(before.mask) > 127, margin=6)
    for place, work in works.items():
        before.image.save(work / "person.png")
        write_polygons(work / "person.json", [area])
        options = _photos(work, item) | {
            "person": work / "person.png",
            "polygon": work / "person.json",
            "feather": 4,
            "crop": "none",
        }
        options |= {
            "lora": work / lora,
            "out": work / "worn.png",
            "device": place,
            "dtype": "fp32",
            "num_inference_steps": 2 if bench.tiny else 8,
        }
        tryon(TryonConfig(work=work, model="pocket", prompt=item.prompt, **options)).finish()
        made.append(np.asarray(Image.open(work / "worn.png").convert("RGB"), int))
    kept = masks.feather(masks.polygon_mask([area], before.image.size), 4) == 0
    moved = max(int(np.abs(one - np.asarray(before.image.convert("RGB"), int))[kept].max()) for one in made)
    return {"of 255": int(np.abs(made[0] - made[-1]).max()), "outside, of 255": moved, "equal": moved == 0}


def _photos(work: Path, item: Item) -> dict[str, Path]:
    paths = {name: work / f"{name}.png" for name in ("front", "back")}
    item.front.save(paths["front"])
    item.back.save(paths["back"])
    return paths


def _lora(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / FILE_NAME)


def _embeddings(work: Path) -> dict[str, torch.Tensor]:
    files = sorted((work / "embeddings").rglob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def _worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor] | None = None) -> Figures:
    """The relative difference of two sets of tensors: of the tensor in which it is largest, and of all
    together. Of one set alone, 0."""
    other = one if other is None else other
    assert one.keys() == other.keys()
    differences = {key: float((one[key] - other[key]).norm()) for key in one}
    sizes = {key: float(other[key].norm()) for key in one}
    worst = max(one, key=lambda key: differences[key] / max(sizes[key], 1e-12))
    all_apart, size = (math.hypot(*each.values()) for each in (differences, sizes))
    apart = differences[worst] / max(sizes[worst], 1e-12)
    return {"apart": apart, "in all": all_apart / max(size, 1e-12), "tensor": worst if apart > 0.01 else None}
