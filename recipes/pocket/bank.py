"""Stage `bank`: the latents the transformer is trained on, encoded once.

It contains no held-out garment or person. Singles are encoded alone, boards as one wide picture (the
transformer sees them at that width). A board is NEVER front, back and worn of one item: a LoRA has to add
that relation later. `bank_panels.jsonl` lists the content of every picture.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

from recipes.pocket.autoencoder import VIEW_MIX, Codec
from recipes.pocket.state import Log, load_tensors, save_tensors
from triptych.pocket.prompts import Panel, sample_board
from triptych.pocket.render import render
from triptych.pocket.world import Garment, Scene, as_json, sample_garment, sample_printed, sample_scene

SINGLES, BOARDS, SEED = 14_000, 20_000, 7
BOARD_SHARES = {"independent": 0.27, "matching": 0.50, "copy": 0.23}
PATTERN_WEIGHTS = (0.19, 0.23, 0.29, 0.29)
"""Plain, stripes, dots, check: the hard ones are more frequent."""
PRINTED = 0.18
"""Share of the singles and boards with back prints, for the same reason."""


def draw_entry(index: int, single: bool) -> tuple[str, list[Panel], np.ndarray]:
    """Draw one entry of the bank: its kind, its panels and the picture."""
    rng = random.Random(SEED * 10**7 + (0 if single else 10**6) + index)
    if single and rng.random() < PRINTED:
        scene = (
            sample_scene(rng, "worn", behind_share=0.8) if rng.random() < 0.6 else sample_scene(rng, "back")
        )
        kind, panels = "single", [(sample_printed(rng), scene)]
    elif single:
        garment = sample_garment(rng, pattern_weights=PATTERN_WEIGHTS)
        kind, panels = "single", [(garment, sample_scene(rng, rng.choice(VIEW_MIX)))]
    else:
        kind = rng.choices(list(BOARD_SHARES), list(BOARD_SHARES.values()))[0]
        panels = sample_board(rng, kind, PATTERN_WEIGHTS, print_share=PRINTED)
    pictures = [np.asarray(render(garment, scene, rng.getrandbits(31)).image) for garment, scene in panels]
    return kind, panels, np.concatenate(pictures, 1)


def make_bank(folder: Path, singles: int = SINGLES, boards: int = BOARDS) -> None:
    """Render and encode; writes `bank.safetensors` and `bank_panels.jsonl`."""
    if (folder / "bank.safetensors").exists():
        return
    codec, log, lines, latents = Codec(folder / "vae"), Log(folder, "bank"), [], {}
    for name, count in (("singles", singles), ("boards", boards)):
        parts = []
        for start in range(0, count, 48):
            drawn = [draw_entry(index, name == "singles") for index in range(start, min(count, start + 48))]
            parts.append(codec.encode(np.stack([picture for _, _, picture in drawn])).half())
            for kind, panels, _ in drawn:
                lines.append(
                    json.dumps({"kind": kind, "panels": [[as_json(g), as_json(s)] for g, s in panels]})
                )
            if start % 4800 == 0:
                log.write(part=name, done=start)
        latents[name] = torch.cat(parts)
    (folder / "bank_panels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_tensors(latents, folder / "bank.safetensors")
    log.write(part="all", singles=singles, boards=boards)


class Bank:
    """The encoded pictures in memory: `latents[name]` (N, C, H, W) and `entries[name]` (kind, panels)."""

    def __init__(self, folder: Path) -> None:
        """Read the bank of a build folder."""
        self.latents, _ = load_tensors(folder / "bank.safetensors")
        self.entries: dict[str, list[tuple[str, list[Panel]]]] = {"singles": [], "boards": []}
        for line in (folder / "bank_panels.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            panels = [(Garment(**garment), Scene(**scene)) for garment, scene in entry["panels"]]
            self.entries["singles" if entry["kind"] == "single" else "boards"].append((entry["kind"], panels))
