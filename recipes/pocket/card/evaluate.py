"""What the pocket of a card can do, beside today's: the same rows by the same code on the same items.

The judge and the items of the rows are the small world's. The richer one has rows of its own: people are
dressed from pictures, and of renders of the same person that differ in one attribute (motif, place, neckline,
hood, pockets) the drawn picture should be nearest to the true one. This needs no judge.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel

from recipes.pocket.card.bank import draw_sets, write_facts
from recipes.pocket.card.size import SCALE, Size
from recipes.pocket.card.stages import psnr
from recipes.pocket.evaluate import save_grid
from recipes.pocket.klein.captions import edit_caption
from recipes.pocket.klein.codec import KleinCodec
from recipes.pocket.klein.evaluate import Evaluation, evaluate
from recipes.pocket.klein.sets import draw_edit
from recipes.pocket.klein.text import TextEncoder
from triptych.pocket import checkpoint_path
from triptych.pocket.prompts import Panel
from triptych.pocket.render import render
from triptych.pocket.rich import HOODED, MOTIFS, NECKED, NECKLINES, POCKETED, RichGarment
from triptych.pocket.world import sample_garment, sample_scene

SHEET = 24
BATCH = 25


def evaluation_of(work: Path, model: Flux2Transformer2DModel, length: int) -> Evaluation:
    """Return the parts of a work folder, on the transformer's device."""
    encoder = TextEncoder.trained(work, length).to(model.device)
    codec = KleinCodec.trained(work)
    codec.model.to(model.device)
    evaluation = Evaluation(model, encoder, codec)
    evaluation.scale = SCALE
    return evaluation


def todays(device: torch.device) -> Evaluation:
    """Return the shipped klein pocket."""
    folder = checkpoint_path("pocket-klein")
    model = Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    evaluation = Evaluation.of(folder, model.to(device).eval())
    evaluation.encoder.to(device)
    evaluation.codec.model.to(device)
    return evaluation


def variants(panel: Panel) -> dict[str, list[RichGarment]]:
    """Return the true garment and those that differ in one visible attribute, by attribute."""
    garment, scene = panel
    if not isinstance(garment, RichGarment):
        return {}
    found: dict[str, list[RichGarment]] = {}
    if garment.shows_print(scene):
        found["motif"] = [replace(garment, print=one) for one in MOTIFS if one != garment.print]
        if not scene.shows_back:
            found["place"] = [replace(garment, place="hem" if garment.place == "chest" else "chest")]
    if not scene.shows_back and garment.type in NECKED and not garment.hood:
        found["neckline"] = [replace(garment, neckline=one) for one in NECKLINES if one != garment.neckline]
    if garment.type in HOODED and garment.neckline == "round":
        found["hood"] = [replace(garment, hood=not garment.hood)]
    if not scene.shows_back and garment.type in POCKETED and garment.place != "hem":
        found["pockets"] = [replace(garment, pockets=not garment.pockets)]
    return {name: [garment, *others] for name, others in found.items()}


def nearest_is_true(panel: Panel, seed: int, picture: np.ndarray) -> dict[str, bool]:
    """Say by attribute whether the true garment's render is the nearest of its variants."""
    right = {}
    for name, garments in variants(panel).items():
        renders = [np.asarray(render(one, panel[1], seed, SCALE).image, np.float32) for one in garments]
        right[name] = int(np.argmin([((one - picture) ** 2).mean() for one in renders])) == 0
    return right


def rich_rows(evaluation: Evaluation, count: int, sheet: Path) -> dict[str, dict[str, float]]:
    """Dress held-out people of the richer world; the shares by attribute, drawn and after the autoencoder
    alone (the ceiling), guessing, and how many. The sheet shows references, the true picture, the drawn one.
    """
    rng, number = random.Random(77), 0
    prompts, columns, truths = list[str](), list[list[np.ndarray]](), list[tuple[Panel, int, np.ndarray]]()
    while len(prompts) < count:
        sets, _ = draw_sets(2 * 10**6 + number, held_out=True)
        number += 1
        for _ in range(8):
            edit = draw_edit("two", sets, rng, "dress")
            target, *shown = ((sets[kind][n], index) for kind, n, index in (edit.target, *edit.references))
            panel, references = target[0].panels[target[1]], [one.panels[index] for one, index in shown]
            if not variants(panel):
                continue
            words = edit_caption(
                "dress",
                panel,
                references,
                edit.garment_from,
                edit.person_from,
                rng,
                named=False,
                varied=False,
            )
            prompts.append(words.text)
            columns.append([one.picture(index, SCALE) for one, index in shown])
            truths.append((panel, target[0].seeds[target[1]], target[0].picture(target[1], SCALE)))
    prompts, columns, truths = prompts[:count], columns[:count], truths[:count]
    drawn = evaluation.draw(prompts, list(zip(*columns, strict=True)))
    codec, pictures = evaluation.codec, np.stack([picture for _, _, picture in truths])
    passed = np.concatenate(
        [codec.decode(codec.encode(pictures[start : start + BATCH])) for start in range(0, count, BATCH)]
    )
    hits: dict[str, dict[str, list[float]]] = defaultdict(
        lambda: {"drawn": [], "ceiling": [], "guessing": []}
    )
    for (panel, seed, _), one, other in zip(truths, drawn, passed, strict=True):
        ceiling = nearest_is_true(panel, seed, other)
        for name, right in nearest_is_true(panel, seed, one).items():
            hits[name]["drawn"].append(right)
            hits[name]["ceiling"].append(ceiling[name])
            hits[name]["guessing"].append(1 / len(variants(panel)[name]))
    rows = zip(columns[:SHEET], truths, drawn, strict=False)
    save_grid(np.concatenate([np.stack([*shown, t[2], d]) for shown, t, d in rows]), 12, sheet, scale=1)
    shares = {
        name: {key: round(float(np.mean(values)), 3) for key, values in found.items()}
        for name, found in hits.items()
    }
    return {name: found | {"n": len(hits[name]["drawn"])} for name, found in sorted(shares.items())}


def measure(work: Path, out: Path, evaluation: Evaluation, size: Size) -> dict[str, Any]:
    """Write `results.json`, `results.md` and the sheets; kept after each part, so that a run that is stopped
    brings what there is.
    """
    facts: dict[str, Any] = {}
    rng = random.Random(999)
    panels = [
        np.asarray(
            render(
                sample_garment(rng, held_out=True),
                sample_scene(rng, rng.choice(("front", "back", "worn", "worn")), held_out=True),
                rng.getrandbits(31),
                SCALE,
            ).image
        )
        for _ in range(24)
    ]
    facts["autoencoder, dB"] = psnr(evaluation.codec.model, np.stack(panels))
    parts = {
        "richer world": lambda: rich_rows(evaluation, size.items, out / "tryons.png"),
        "card": lambda: evaluate(work, evaluation, size.items, out),
        "today": lambda: evaluate(work, todays(evaluation.model.device), size.items, work / "today"),
    }
    for name, part in parts.items():
        facts[name] = part()
        write_facts(out / "results.json", **facts)
        (out / "results.md").write_text(table(facts), encoding="utf-8")
    return facts


def table(facts: dict[str, Any]) -> str:
    """Return the results as Markdown: every row of today's pocket beside the card's."""
    lines = [f"Autoencoder: {facts['autoencoder, dB']} dB on held-out panels.", ""]
    lines += ["| what | attribute | today's | this one | at least as good |", "|---|---|---|---|---|"]
    for what, found in facts.get("card", {}).items():
        for name, value in found.items():
            before = facts.get("today", {}).get(what, {}).get(name)
            if name == "with a print":
                continue
            better = "" if before is None else "yes" if value >= before else "NO"
            lines.append(f"| {what} | {name} | {'' if before is None else before} | {value} | {better} |")
    lines += ["", "| richer world, dressed | drawn | ceiling | guessing | n |", "|---|---|---|---|---|"]
    for name, one in facts["richer world"].items():
        lines.append(f"| {name} | {one['drawn']} | {one['ceiling']} | {one['guessing']} | {one['n']} |")
    return "\n".join(lines) + "\n"
