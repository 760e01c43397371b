"""Outfits in the tables of `benchmarks/pocket.py`: their training set, their rows, how these are measured."""

from __future__ import annotations

import random
from pathlib import Path

from triptych.pictures.panels import concatenate
from triptych.pocket.outfits import (
    outfit_caption,
    product_scene,
    render_outfit,
    render_product,
    sample_outfit,
)
from triptych.pocket.world import sample_scene
from triptych.store.files import write_jsonl
from triptych.tasks.outfit import OUTFIT

MODES = ("one run", "runs in a row")
STRENGTH = 0.95
ROWS = 12
"""Outfits on a contact sheet."""


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
