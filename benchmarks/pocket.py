"""What the embedded model's LoRAs carry over, in tables: `python benchmarks/pocket.py --work FOLDER`.

Trains LoRAs on rendered triptychs with the product's own `embed` and `train`, and measures them with
`evaluate --pocket`. Every row is kept in FOLDER/results.json as soon as it is measured; run the command again
to go on. `--only main` does one group of rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageFilter

import pocket_outfits
import pocket_tables
from triptych.backbones.settings import model_settings, resolve_model
from triptych.evaluation.rendered import SCALE
from triptych.pictures.panels import concatenate
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import render
from triptych.pocket.world import NONE, sample_printed, sample_scene
from triptych.sampling.products import shown
from triptych.store.files import read_json, write_json, write_jsonl
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.evaluate import EvaluateConfig, evaluate
from triptych.verbs.train import TrainConfig, train

SAMPLING: dict[str, dict[str, Any]] = {
    "none": {"context_guidance_scale": 1.0, "true_cfg_scale": 1.0, "guidance_scale": 1.0},
    "text": {"context_guidance_scale": 1.0, "true_cfg_scale": 3.0, "guidance_scale": 1.0},
    "distilled": {"context_guidance_scale": 1.0, "true_cfg_scale": 1.0, "guidance_scale": 3.0},
    "context": {"context_guidance_scale": 5.0},
}
"""Guidance by name: none, on the words by a second pass, on the words by the guidance embedding, on the
product photos.
"""


RECIPE: dict[str, Any] = {
    "max_train_steps": 450,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "shift": 3.0,
    "caption_dropout": 0.1,
    "context": "clean",
    "context_lora": True,
    "gradient_checkpointing": False,
    "validation_steps": 0,
}
NOISY: dict[str, Any] = {"context": "noisy", "context_lora": False, "seed": 0}
"""The paper's way: nothing is shown clean, so there is no reading to adapt."""
SHORT: dict[str, Any] = {"batch_size": 4, "noise_levels": 2, "shift": None}
"""Half as many triptychs to a step, each at two noise levels: two thirds of the time; and noise levels
shifted as the model is.
"""
LONG: dict[str, Any] = SHORT | {"max_train_steps": 1000}
PRINTS: dict[str, Any] = SHORT | {"shift": 3.0, "printed": 0.5, "masks": True, "rank": 64}
"""Half of the triptychs are printed garments worn from behind, of which the print alone is learned."""


def rows() -> list[dict[str, Any]]:
    """Every row of the tables: its group, the LoRA (triptychs, and options of `train`), how it is sampled,
    and how many items.
    """
    table: list[dict[str, Any]] = []

    def add(
        group: str,
        n: int,
        guidance: str,
        mode: str = "generate",
        sampling: dict[str, Any] | None = None,
        **lora: Any,
    ) -> None:
        how = {"guidance": guidance, **(sampling or {})}
        table.append({"group": group, "n": n, "mode": mode, "lora": lora, "sampling": how})

    add("base", 300, "text")
    for seed in range(3):
        add("seeds" if seed else "clean", 300, "context", seed=seed)
    add("noisy", 300, "text", **NOISY)
    for guidance, lora in (("text", {}), ("text", NOISY), ("text", {"seed": 0}), ("context", {"seed": 0})):
        add("tryon", 300, guidance, mode="tryon", **lora)
    add("tryon", 300, "context", mode="tryon", sampling={"guidance_stop": 0.5}, seed=0)
    for triptychs in (10, 20, 40, 80):
        add("triptychs", 150, "context", triptychs=triptychs, **SHORT)
    for rank in (4, 64):
        add("rank", 150, "context", rank=rank, **SHORT)
    add("recipe", 150, "context", context_lora=False, **SHORT)
    for triptychs in (40, 80):
        add("recipe", 300, "context", triptychs=triptychs, **LONG, seed=0)
    for seed in range(3):
        add("recipe", 300, "context", shift=None, seed=seed)
    for scale in (0.5, 0.75, 1.0):
        add("strength", 150, "context", sampling={"lora_scale": scale}, seed=0)
    for steps in (16, 28):
        add("steps", 150, "context", sampling={"num_inference_steps": steps}, seed=0)
        add("steps", 150, "text", sampling={"num_inference_steps": steps})
    for guidance in ("text", "none"):
        add("guidance", 150, guidance, seed=0)
    for scale in (2.0, 3.0):
        add("guidance scale", 150, "context", sampling={"context_guidance_scale": scale}, seed=0)
    for stop in (0.25, 0.5):
        add("guidance stop", 150, "context", sampling={"guidance_stop": stop}, seed=0)
    few, many = (
        PRINTS | {"triptychs": 80, "max_train_steps": 1000},
        PRINTS | {"triptychs": 320, "max_train_steps": 3000},
    )
    for guidance, lora in (("text", {}), ("context", {"seed": 0}), ("context", few), ("context", many)):
        add("back prints", 150, guidance, sampling={"back_prints": True}, **lora)
    add("back prints", 150, "context", mode="tryon", sampling={"back_prints": True}, **many)
    add("back prints", 300, "context", **many)
    add("back prints trim", 150, "context", sampling={"back_prints": True}, **few, trim=0.05)
    for shift in ("panel", "canvas"):
        add("time shift", 150, "text", sampling={"time_shift": shift}, **NOISY, shift=None)
        add("time shift", 150, "context", sampling={"time_shift": shift}, seed=0, shift=None)
    for strength in (0.0, 0.1, 0.2, 0.35, 0.5):
        add("refine", 150, "context", mode="tryon", sampling={"refine": strength}, seed=0)
    add("distilled", 150, "distilled")
    for guidance, lora in (("text", {}), ("text", {"seed": 0}), ("context", {"seed": 0})):
        add("tryoff", 300, guidance, mode="tryoff", **lora | ({"task": "try-off"} if lora else {}))
    klein_rows(add)
    pocket_outfits.outfit_rows(add, klein_ways())
    return table


def klein_ways() -> dict[str, dict[str, Any]]:
    """The ways in which a model that knows references can be trained; `noisy` is the paper's. The base has
    learned to copy, and needs fewer steps.
    """
    steps = {"max_train_steps": 300}
    clean = steps | {"batch_size": 4, "noise_levels": 2}
    ways: dict[str, dict[str, Any]] = {
        "noisy": {"context": "noisy", "context_lora": False} | steps,
        "canvas": {"context": "clean", "context_placement": "canvas"} | clean,
        "references": {"context": "clean", "context_placement": "reference"} | clean,
        "native": {"context": "native", "context_lora": False} | clean,
    }
    return ways


def klein_rows(add: Callable[..., None]) -> None:
    """How a model that knows references (`--model pocket-klein`) is best shown the products: without a LoRA,
    and with LoRAs of the same steps that were trained in each of the ways.
    """
    ways = klein_ways()
    for mode, seeds in (("generate", range(3)), ("tryon", range(1))):
        for guidance in ("text", "context"):
            add("klein untrained", 300, guidance, mode=mode)
        for seed in seeds:
            for way, lora in ways.items():
                group, guidance = f"klein {way}", "text" if way == "noisy" else "context"
                add(group, 300, guidance, mode=mode, **lora | {"seed": seed})
    for way, lora in ways.items():
        if way != "noisy":
            add(f"klein {way}", 300, "text", **lora | {"seed": 0})
    add("klein reading", 300, "context", **ways["references"] | {"context_lora": False, "seed": 0})
    add("klein trim", 300, "context", **ways["canvas"] | {"seed": 0, "trim": 0.05})
    add("klein prints", 150, "text", sampling={"back_prints": True})
    for way in ("references", "canvas"):
        prints = ways[way] | PRINTS | {"triptychs": 80, "max_train_steps": 1000}
        add("klein prints", 150, "context", sampling={"back_prints": True}, **prints)


def write_triptychs(
    folder: Path, count: int, printed: float = 0.0, trim: float | None = None, size: int = 1
) -> None:
    """Rendered triptychs with truthful captions, half of which name the look (of printed ones a quarter);
    held-out garments are not among them.

    printed: part of them that is a garment with a back print, worn by a person seen from behind; otherwise
    about one in fifty is. Each of these has a loss mask, `masks/<id>.png`: of the worn panel, the print and
    what is close to it. trim: product photos, larger than their panels, are cut to the garment as `concat
    --trim` does. size: panels of so many times 48 x 72 pixels.
    """
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    (folder / "triptychs").mkdir(exist_ok=True)
    layout, rng, rows = replace(TRY_ON.layout(48 * size, 72 * size), trim=trim), random.Random(3), []
    for number in range(count):
        garment, scenes = sample_triptych(rng)
        chosen = number < count * printed
        if chosen:
            garment, scenes = sample_printed(rng), (*scenes[:2], sample_scene(rng, "worn", facing="behind"))
        seeds = [rng.getrandbits(30) for _ in scenes]
        scale = size if trim is None else SCALE * size
        views = [render(garment, scene, seed, scale).image for scene, seed in zip(scenes, seeds, strict=True)]
        panels = [*shown(dict(zip(layout.roles, views, strict=True)), layout).values()]
        concatenate(panels, layout).save(folder / "triptychs" / f"item-{number:03}.png")
        rows.append({"file_name": f"item-{number:03}.png", "layout": layout.to_dict()})
        named = number % (4 if chosen else 2) == 0
        (folder / "triptychs" / f"item-{number:03}.txt").write_text(
            triptych_caption(garment, scenes, named=named).text
        )
        if chosen:
            plain = render(replace(garment, print=NONE), scenes[2], seeds[2], size).image
            moved = (
                ImageChops.difference(panels[2], plain).convert("L").point(lambda value: 255 * (value > 8))
            )
            mask = Image.new("L", layout.size)
            mask.paste(moved.filter(ImageFilter.MaxFilter(8 * size + 1)), layout.box("worn")[:2])
            mask.save(folder / "masks" / f"item-{number:03}.png")
    if trim is not None:
        write_jsonl(folder / "triptychs" / "metadata.jsonl", rows)


def trained(
    work: Path,
    model: str,
    triptychs: int = 40,
    printed: float = 0.0,
    masks: bool = False,
    trim: float | None = None,
    **options: Any,
) -> Path:
    """The LoRA folder of these training options, trained if it is not there yet; `RECIPE` where they say
    nothing.

    masks: learn printed garments by the loss masks of `write_triptychs`.
    """
    outfits = options.get("task") == "outfit"
    name = f"{'outfits' if outfits else 'items'}-{triptychs}" + (f"-printed-{printed}" if printed else "")
    name += f"-trim-{trim}" if trim is not None else ""
    data = work / name
    if not data.exists():
        part = work / f"{data.name}.part"
        if outfits:
            pocket_outfits.write_outfits(part, triptychs)
        else:
            write_triptychs(part, triptychs, printed, trim, model_settings(model).panel_width // 48)
        part.rename(data)
    options |= {"loss_masks": data / "masks"} if masks else {}
    embed(EmbedConfig(work=data, model=model, batch_size=8, columns=3)).finish()
    options = RECIPE | options | ({"alpha": options["rank"]} if "rank" in options else {})
    own = {
        key: options[key]
        for key in sorted(options)
        if options[key] != RECIPE.get(key) and key != "loss_masks"
    }
    name = "-".join(
        ["lora", data.name, *(["masks"] if masks else []), *(f"{key}-{value}" for key, value in own.items())]
    )
    run = train(TrainConfig(work=data, model=model, lora_folder=work / name, **options))
    for number, event in enumerate(run):
        if number % 50 == 49:
            print(f"  {name}: {event.id} {event.note}", file=sys.stderr, flush=True)
    return work / name


def with_flux_shift(work: Path, model: str) -> str:
    """A copy of the model with the time shift that FLUX.1-dev has for three panels of 576 × 768: e^0.58 times
    as far for the canvas as for a panel. A canvas of the embedded model has so few tokens that its own shift
    hardly depends on them.
    """
    folder = work / "flux-shift"
    if not folder.exists():
        part = work / "flux-shift.part"
        shutil.copytree(resolve_model(model), part, dirs_exist_ok=True)
        scheduler = part / "scheduler" / "scheduler_config.json"
        mu, more = math.log(1.6), (5184 - 1728) * (1.15 - 0.5) / (4096 - 256)
        ours = {"base_image_seq_len": 54, "max_image_seq_len": 162, "base_shift": mu, "max_shift": mu + more}
        write_json(scheduler, read_json(scheduler) | ours)
        part.rename(folder)
    return str(folder)


def sampling_of(model: str, row: dict[str, Any]) -> dict[str, Any]:
    """The options of `evaluate` that a row is sampled with."""
    sampling = {k: v for k, v in row["sampling"].items() if k != "guidance"}
    sampling = SAMPLING[row["sampling"]["guidance"]] | sampling
    if model_settings(model).guidance_scale is None:
        sampling.pop("guidance_scale", None)
    return sampling


def measured(work: Path, model: str, row: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """One row's result; the ceiling is taken from a row `before` that has it of the same items."""
    folder = trained(work, model, **row["lora"]) if row["lora"] else None
    if "time_shift" in row["sampling"]:
        model = with_flux_shift(work, model)
    out, sampling = work / "evaluations" / row["key"], sampling_of(model, row)
    if row["mode"] in pocket_outfits.MODES:
        sampling.pop("bags", None)
        return pocket_outfits.measured(model, folder, row, sampling, out)
    items = [row["n"], 0, row["sampling"].get("back_prints", False)]
    ceiling = next((one["ceiling"] for one in before.values() if one["ceiling"].get("items") == items), None)
    if ceiling and not (out / "evaluation.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "evaluation.json", {"ceiling": ceiling})
    what = {"items": row["n"], "mode": row["mode"], "model": model, "lora": folder, "base": folder is None}
    config = EvaluateConfig(pocket=True, out=out, **what, **sampling)
    evaluate(config).finish()
    results = read_json(out / "evaluation.json")
    name = "base" if folder is None else "lora"
    return {"result": results[f"{row['mode']}/{name}"], "ceiling": results["ceiling"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("work/pocket-benchmark"))
    parser.add_argument(
        "--model", default="pocket", help="another base, such as an ablation's checkpoint folder"
    )
    parser.add_argument("--only", action="append", help="only this group of rows; may be repeated")
    parser.add_argument("--items", type=int, help="garments per row, in place of 300 and 150")
    options = parser.parse_args()
    path = options.work / "results.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    for row in rows():
        if options.only and row["group"] not in options.only:
            continue
        row["n"] = options.items or row["n"]
        row["key"] = json.dumps({k: row[k] for k in ("mode", "n", "lora", "sampling")}, sort_keys=True)
        for sign in '{}" :,':
            row["key"] = row["key"].replace(sign, "_" if sign == "," else "")
        if row["key"] not in results:
            started = time.monotonic()
            print(row["group"], row["key"], file=sys.stderr, flush=True)
            made = (
                row
                | measured(options.work, options.model, row, results)
                | {"seconds": round(time.monotonic() - started)}
            )
            options.work.mkdir(parents=True, exist_ok=True)
            results = {
                **(read_json(path) if path.exists() else {}),
                row["key"]: made,
            }  # another process may do other groups
            write_json(path, results)
    outfits = {key: row for key, row in results.items() if row["mode"] in pocket_outfits.MODES}
    if garments := {key: row for key, row in results.items() if key not in outfits}:
        print(pocket_tables.garments_table(garments))
    if outfits:
        print(pocket_tables.outfits_table(outfits))


if __name__ == "__main__":
    main()
