"""What the embedded model's LoRAs carry over, in tables: `python benchmarks/pocket.py --work FOLDER`.

Trains LoRAs on rendered triptychs with the product's own `embed` and `train`, and measures them with `evaluate --pocket`.
Every row is kept in FOLDER/results.json as soon as it is measured; run the command again to go on. `--only main` does one
group of rows. On two cores without bfloat16 all of it takes hours, `main` about one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from triptych.panels import PanelLayout, concatenate
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import render
from triptych.stages.embed import EmbedConfig, embed
from triptych.stages.evaluate import EvaluateConfig, evaluate
from triptych.stages.train import TrainConfig, train
from triptych.store import read_json, write_json

SAMPLING = {"none": {"context_guidance_scale": 1.0, "true_cfg_scale": 1.0}, "text": {"context_guidance_scale": 1.0}, "context": {}}
"""Guidance by name: none, on the words (true CFG 3), on the product photos (3, the model's own recommendation)."""


def rows() -> list[dict[str, Any]]:
    """Every row of the tables: its group, the LoRA (triptychs, rank, context, seed), how it is sampled, and how many items."""
    table: list[dict[str, Any]] = []

    def add(group: str, n: int, sampling: dict[str, Any], mode: str = "generate", **lora: Any) -> None:
        table.append({"group": group, "n": n, "mode": mode, "lora": lora, "sampling": sampling})

    for guidance in ("text", "none"):
        add("main", 300, SAMPLING[guidance])
    for seed in range(3):
        add("main", 300, SAMPLING["context"], seed=seed)
    add("main", 300, SAMPLING["text"], seed=0)
    for guidance in ("text", "none"):
        add("contexts", 300, SAMPLING[guidance], context="noisy")
    add("contexts", 300, SAMPLING["none"], seed=0)
    add("tryon", 150, SAMPLING["text"], mode="tryon")
    add("tryon", 150, SAMPLING["context"], mode="tryon", seed=0)
    add("tryon", 150, SAMPLING["text"], mode="tryon", context="noisy")
    for triptychs in (10, 20, 80):
        add("triptychs", 150, SAMPLING["context"], triptychs=triptychs)
    for rank in (4, 64):
        add("rank", 150, SAMPLING["context"], rank=rank)
    for scale in (0.5, 0.75, 1.0):
        add("strength", 150, {"lora_scale": scale}, seed=0)
    for scale in (1.5, 2.0, 5.0):
        add("guidance", 150, {"context_guidance_scale": scale}, seed=0)
    for steps in (8, 28):
        add("steps", 150, {"num_inference_steps": steps}, seed=0)
    return table


def write_triptychs(folder: Path, count: int) -> None:
    """Rendered triptychs with truthful captions, half of which name the look; held-out garments are not among them."""
    folder.mkdir(parents=True, exist_ok=True)
    layout, rng = PanelLayout(48, 72), random.Random(3)
    for number in range(count):
        garment, scenes = sample_triptych(rng)
        panels = [render(garment, scene, rng.getrandbits(30)).image for scene in scenes]
        concatenate(panels, layout).save(folder / f"item-{number:03}.png")
        (folder / f"item-{number:03}.txt").write_text(triptych_caption(garment, scenes, named=number % 2 == 0).text)


def trained(work: Path, triptychs: int = 40, rank: int = 16, context: str = "clean", seed: int = 0, steps: int = 300) -> Path:
    """The LoRA folder of these settings, trained if it is not there yet: batch 8, learning rate 1e-3, 10 % empty captions."""
    data = work / f"items-{triptychs}"
    if not (data / "triptychs").exists():
        write_triptychs(data / "triptychs.part", triptychs)
        (data / "triptychs.part").rename(data / "triptychs")
    embed(EmbedConfig(work=data, batch_size=8)).finish()
    folder = work / f"lora-{triptychs}-r{rank}-{context}-{seed}"
    options: dict[str, Any] = {"rank": rank, "alpha": rank, "context": context, "seed": seed, "max_train_steps": steps}
    recipe = {"batch_size": 8, "learning_rate": 1e-3, "caption_dropout": 0.1, "gradient_checkpointing": False, "validation_steps": 0}
    run = train(TrainConfig(work=data, lora_folder=folder, **recipe, **options))
    for number, event in enumerate(run):
        if number % 50 == 49:
            print(f"  {folder.name}: {event.id} {event.note}", file=sys.stderr, flush=True)
    return folder


def measured(work: Path, row: dict[str, Any]) -> dict[str, Any]:
    """One row's result."""
    folder = trained(work, **row["lora"]) if row["lora"] else None
    out = work / "evaluations" / row["key"]
    config = EvaluateConfig(pocket=True, items=row["n"], mode=row["mode"], lora=folder, base=folder is None, out=out, **row["sampling"])
    evaluate(config).finish()
    results = read_json(out / "evaluation.json")
    name = "base" if folder is None else "lora"
    return {"result": results[f"{row['mode']}/{name}"], "ceiling": results["ceiling"]}


def cell(value: dict[str, Any]) -> str:
    return f"{value['share']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def table(results: dict[str, Any]) -> str:
    """All measured rows as a markdown table."""
    head = ["group", "LoRA", "sampling", "n", "type", "colour", "pattern", "both", "named", "ceiling colour / pattern", "ΔE"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in results.values():
        made, ceiling = row["result"], row["ceiling"]
        lora = ", ".join(f"{k} {v}" for k, v in row["lora"].items()) or "base"
        how = ", ".join([row["mode"], *(f"{k} {v:g}" for k, v in row["sampling"].items())])
        shares = [cell(made[name]) for name in ("type", "colour", "pattern", "both", "named")]
        top = f"{ceiling['colour']['share']:.2f} / {ceiling['pattern']['share']:.2f}"
        lines.append("| " + " | ".join([row["group"], lora, how, str(row["n"]), *shares, top, f"{made['colour_distance']:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/pocket-benchmark"))
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
            results[row["key"]] = row | measured(options.work, row) | {"seconds": round(time.monotonic() - started)}
            options.work.mkdir(parents=True, exist_ok=True)
            write_json(path, results)
    print(table(results))


if __name__ == "__main__":
    main()
