"""Outfits in the tables of `benchmarks/pocket.py`: their training set, their rows, how these are measured."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from triptych.evaluation.outfits import (
    GARMENTS,
    OutfitItem,
    clothed,
    held_out_outfits,
    outfit_verdicts,
    round_trips,
    shares,
)
from triptych.evaluation.rendered import sheet
from triptych.pictures.panels import concatenate
from triptych.pictures.saving import save_png
from triptych.pocket.outfits import (
    outfit_caption,
    product_scene,
    render_outfit,
    render_product,
    sample_outfit,
)
from triptych.pocket.world import sample_scene
from triptych.session import load_models
from triptych.store.files import write_jsonl
from triptych.tasks.outfit import OUTFIT
from triptych.verbs.evaluate import EvaluateConfig

MODES = {"outfit": False, "outfit in a row": True}
"""Ways to give somebody an outfit: all pieces in one run, or the top and then the bottom."""
STRENGTH = 0.95
ROWS = 12
"""Outfits on a contact sheet."""


def outfit_rows(add: Callable[..., None], ways: Mapping[str, dict[str, Any]]) -> None:
    """What a model that knows references (`--model pocket-klein`) does with outfits: untrained, with a LoRA
    of the task in one run, and with a LoRA of try-on in two runs.
    """
    task = {"task": "outfit", "triptychs": 80, "max_train_steps": 400, "seed": 0}
    add("outfits", 300, "context", mode="outfit", **ways["references"] | task)
    add("outfits in a row", 300, "context", mode="outfit in a row", **ways["canvas"] | {"seed": 0})
    for mode in MODES:
        add("outfits untrained", 150, "context", mode=mode)
    add("outfits canvas", 150, "context", mode="outfit", **ways["canvas"] | task)
    each = {"context_reading": "each"}
    add("outfits each", 300, "context", mode="outfit", **ways["references"] | task | each)
    add("outfits each", 300, "context", mode="outfit", sampling=each, **ways["references"] | task)
    for lora in (ways["references"] | task, {}):
        add("outfits bags", 150, "context", mode="outfit", sampling={"bags": True}, **lora)


def write_outfits(folder: Path, count: int) -> None:
    """Rendered canvases of the task `outfit` with truthful captions: top, bottom, in every second one a bag,
    and the person. Half of those without a bag name the looks; with one there is no room for it among the
    model's tokens. Held-out garments and people are not among them.
    """
    (folder / "triptychs").mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(4), []
    for number in range(count):
        outfit, scene = sample_outfit(rng, bag_share=float(number % 2)), sample_scene(rng, "worn")
        layout = OUTFIT.layout(48, 72).among([*outfit.roles, "worn"])
        panels = [
            render_product(outfit, role, product_scene(rng), rng.getrandbits(30)) for role in outfit.roles
        ]
        panels.append(render_outfit(outfit, scene, rng.getrandbits(30)).image)
        name = f"outfit-{number:03}"
        concatenate(panels, layout).save(folder / "triptychs" / f"{name}.png")
        text = outfit_caption(outfit, scene, named=number % 4 == 0)
        rows.append({"file_name": f"{name}.png", "text": text, "item": name, "layout": layout.to_dict()})
    write_jsonl(folder / "triptychs" / "metadata.jsonl", rows)


def measured(
    model: str, lora: Path | None, row: dict[str, Any], sampling: dict[str, Any], out: Path
) -> dict[str, Any]:
    """One row's result, and the judge's ceiling on the same outfits. Writes a contact sheet: product photos,
    the photo before, what was made, the true photo.
    """
    items = held_out_outfits(row["n"], bags=row["sampling"].get("bags", False))
    in_a_row, made = MODES[row["mode"]], []
    config = EvaluateConfig(pocket=True, mode="tryon", model=model, lora=lora, **sampling)
    prompts = [prompt for item in items for prompt in _prompts(item, in_a_row, config.describes_panels)]
    models = load_models(**config.model_source(), prompts=prompts)
    numbers = models.resolved(config, STRENGTH)
    for number, one in enumerate(clothed(models, numbers, items, 0, in_a_row=in_a_row), 1):
        made.append(one)
        if number % 50 == 0:
            print(f"  {row['group']}: {number} of {len(items)}", file=sys.stderr, flush=True)
    pictures = [one.image for one in made]
    photos = [[item.photos[role] for item in items[:ROWS]] for role in items[0].photos]
    columns = [[item.before.image for item in items[:ROWS]], pictures[:ROWS]]
    truth = [item.truth.image for item in items]
    save_png(sheet([*photos, *columns, truth[:ROWS]]), out / "outfits.png")
    result = {
        **shares(outfit_verdicts(pictures, items)),
        "outside": max(one.outside for one in made),
        "seam": round(sum(one.seam for one in made) / len(made), 2),
        "picture_seconds": round(median(one.seconds for one in made), 3),
    }
    ceiling = {
        "drawn": shares(outfit_verdicts(truth, items)),
        "decoded": shares(outfit_verdicts(round_trips(models, items), items)),
    }
    return {"result": result, "ceiling": ceiling}


def _prompts(item: OutfitItem, in_a_row: bool, describes_panels: bool) -> list[str]:
    if in_a_row:
        return [item.prompt_of_one(role, describes_panels) for role in GARMENTS]
    return [item.prompt(describes_panels)]
