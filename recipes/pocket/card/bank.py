"""Pictures rendered ahead by all cores, in shards; what is asked for with them; their latents on the card.

A shard is a pure function of its number. It holds 24 quads and 12 looks (four panels each) and 12 boards
(three), and the examples drawn among them. A file under its final name is complete: a run that was stopped
renders what is missing. Pictures never leave the work folder.

Shapes: panels (N, 144, 96, 3) uint8; latents_BCHW (N, C, 9, 6), cropped (N, C, 6, 6), padded (N, C, 9, 8),
boards (N, C, 9, 18), all normalised.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.pocket.bank import BOARD_SHARES, PATTERN_WEIGHTS, PRINTED
from recipes.pocket.card.size import SCALE
from recipes.pocket.klein.captions import edit_caption
from recipes.pocket.klein.codec import KleinCodec
from recipes.pocket.klein.sets import LAYOUTS, PictureSet, draw_edit, reshaped, sample_look, sample_quad
from recipes.pocket.klein.text import TextEncoder
from recipes.pocket.state import load_tensors, save_tensors
from recipes.pocket.transformer import ONE_NAMED, SILENT
from triptych.pocket.prompts import (
    Caption,
    Panel,
    board_caption,
    panel_caption,
    sample_board,
    sample_triptych,
    triptych_caption,
)
from triptych.pocket.rich import enriched

SETS = {"quad": 24, "look": 12, "board": 12}
SEED = 23
BOARDS_AT = 4 * (SETS["quad"] + SETS["look"])
"""Where a shard's boards begin; its sets of four stand before, quads first."""
PER_SHARD = {"one": 48, "two": 64, "three": 16} | dict.fromkeys(
    ("three small", "wide and small", "small and wide"), 24
)
"""Edits drawn in a shard, by layout of the references."""
SHAPES = ("whole", "cropped", "padded")
RESHAPED = 6
"""Every sixth shard is also encoded cropped and padded; only its sets have edits with such references."""

Example = tuple[Caption, int, list[int]]
"""Words (in a file: their text), the place of the target in the shard (of a board its number), the places of
the references.
"""


def draw_sets(number: int, held_out: bool = False) -> tuple[dict[str, list[PictureSet]], random.Random]:
    """Draw the quads and looks of a shard, and return the generator for what follows."""
    rng = random.Random(SEED * 10**7 + number)
    drawn: dict[str, list[PictureSet]] = {}
    for kind, sampler in (("quad", sample_quad), ("look", sample_look)):
        sets = [sampler(rng, held_out) for _ in range(SETS[kind])]
        drawn[kind] = [replace(one, panels=enriched(one.panels, rng)) for one in sets]
    return drawn, rng


def draw_board(rng: random.Random) -> tuple[str, list[Panel]]:
    """Draw a board of three panels."""
    kind = rng.choices(list(BOARD_SHARES), list(BOARD_SHARES.values()))[0]
    return kind, [*enriched(sample_board(rng, kind, PATTERN_WEIGHTS, print_share=PRINTED), rng)]


def draw_examples(number: int) -> tuple[dict[str, list[Example]], list[PictureSet]]:
    """Draw what a shard's pictures are asked for with, by kind of batch, and all its pictures, board by board
    at the end; nothing is rendered.
    """
    sets, rng = draw_sets(number)
    found: dict[str, list[Example]] = defaultdict(list)
    pictures = [*sets["quad"], *sets["look"]]
    panels = [panel for one in pictures for panel in one.panels]
    for at, panel in enumerate(panels):
        words = panel_caption(*panel, rng, named=rng.random() < 0.88, varied=True)
        found["singles"].append((words, at, []))
    for at in range(SETS["board"]):
        kind, board = draw_board(rng)
        pictures.append(PictureSet("board", tuple(board), tuple(rng.getrandbits(31) for _ in board)))
        for _ in range(2):
            words = board_caption(board, kind, rng, silent=SILENT, one_named=ONE_NAMED, varied=True)
            found["boards"].append((words, at, []))
    for layout, shapes in LAYOUTS.items():
        for _ in range(PER_SHARD[layout] if set(shapes) == {"whole"} or number % RESHAPED == 0 else 0):
            edit = draw_edit(layout, sets, rng)
            target, *places = (_at(kind, one, index) for kind, one, index in (edit.target, *edit.references))
            shown = [panels[place] for place in places]
            words = edit_caption(edit.kind, panels[target], shown, edit.garment_from, edit.person_from, rng)
            found[layout].append((words, target, places))
    return found, pictures


def _at(kind: str, number: int, index: int) -> int:
    return 4 * (number + (SETS["quad"] if kind == "look" else 0)) + index


def shard_path(work: Path, number: int) -> Path:
    """Return the file of a shard."""
    return work / "bank" / f"{number:05}.safetensors"


def render_shard(work: str, number: int) -> int:
    """Write a shard unless it is there; returns its number."""
    path = shard_path(Path(work), number)
    if not path.exists():
        examples, sets = draw_examples(number)
        pictures = [one.picture(index, SCALE) for one in sets for index in range(len(one.panels))]
        texts = {kind: [(w.text, *places) for w, *places in found] for kind, found in examples.items()}
        save_tensors({"pictures": torch.from_numpy(np.stack(pictures))}, path, examples=texts)
    return number


class Renderers:
    """Processes that render the shards in order while the card trains; `with` ends them."""

    def __init__(self, work: Path, shards: int, processes: int) -> None:
        """Start them; `processes` 0 renders in this process, when a shard is waited for."""
        (work / "bank").mkdir(parents=True, exist_ok=True)
        self.work, self.shards = work, shards
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started now
        self.pool = multiprocessing.get_context("spawn").Pool(processes) if processes else None
        missing = [number for number in range(shards) if not shard_path(work, number).exists()]
        self.made = (
            [self.pool.apply_async(render_shard, (str(work), n)) for n in missing] if self.pool else []
        )

    def __enter__(self) -> Renderers:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        if self.pool:
            self.pool.terminate()
            self.pool.join()

    def wait(self, count: int) -> None:
        """Wait until the first shards are there. Raises what a process could not render for."""
        if self.pool is None:
            for number in range(count):
                render_shard(str(self.work), number)
        for one in self.made[: max(0, count - (self.shards - len(self.made)))]:
            one.get()

    def ready(self) -> int:
        """Return how many of the first shards are there."""
        paths = (shard_path(self.work, number) for number in range(self.shards))
        return next((n for n, path in enumerate(paths) if not path.exists()), self.shards)


def pictures_of(work: Path, shards: Sequence[int]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Read shards: panels and examples."""
    for number in shards:
        tensors, metadata = load_tensors(shard_path(work, number))
        yield tensors["pictures"], metadata["examples"]


def wide(panels: np.ndarray) -> np.ndarray:
    """Put each three panels (3 N, H, W, 3) side by side, (N, H, 3 W, 3)."""
    return np.concatenate([panels[0::3], panels[1::3], panels[2::3]], 2)


class CardBank:
    """All latents, prompts' states and examples, on the device.

    `examples[kind]`: (N, 2 + references) rows of the prompt, the target and the references, as places in
    `states` and `latents[shape]`.
    """

    def __init__(self, work: Path, shards: int, codec: KleinCodec, encoder: TextEncoder, batch: int) -> None:
        """Encode the first shards of a work folder."""
        device = codec.model.device
        latents: dict[str, list[torch.Tensor]] = {shape: [] for shape in (*SHAPES, "boards")}
        rows: dict[str, list[list[int]]] = defaultdict(list)
        prompts: dict[str, int] = {"": 0}
        small = 0
        for number, (pictures, examples) in enumerate(pictures_of(work, range(shards))):
            panels = pictures.numpy()
            latents["whole"].append(codec.encode(panels[:BOARDS_AT]).half())
            latents["boards"].append(codec.encode(wide(panels[BOARDS_AT:])).half())
            if number % RESHAPED == 0:
                sets, _ = draw_sets(number)
                drawn = [panel for kind in ("quad", "look") for one in sets[kind] for panel in one.panels]
                for shape in SHAPES[1:]:
                    cut = [reshaped(*pair, shape) for pair in zip(panels, drawn, strict=False)]
                    latents[shape].append(codec.encode(np.stack(cut)).half())
            starts = {"whole": number * BOARDS_AT, "boards": number * SETS["board"]}
            starts |= dict.fromkeys(SHAPES[1:], small * BOARDS_AT)
            for kind, found in examples.items():
                first = starts["boards" if kind == "boards" else "whole"]
                for words, target, places in found:
                    prompt = prompts.setdefault(words, len(prompts))
                    shapes = LAYOUTS.get(kind, ())
                    shown = [starts[shape] + place for shape, place in zip(shapes, places, strict=True)]
                    rows[kind].append([prompt, first + target, *shown])
            small += number % RESHAPED == 0
        self.latents = {shape: torch.cat(parts) for shape, parts in latents.items()}
        self.examples = {kind: torch.tensor(found, device=device) for kind, found in rows.items()}
        words = list(prompts)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        parts = []
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            for start in range(0, len(words), 8 * batch):
                parts.append(encoder(words[start : start + 8 * batch]).to(dtype))
        self.states = torch.cat(parts)

    def batch(self, kind: str, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return the prompts' places (B,), the targets' latents_BCHW and the references of some examples."""
        rows = self.examples[kind][index.to(self.states.device) % len(self.examples[kind])]
        data = self.latents["boards" if kind == "boards" else "whole"][rows[:, 1]].float()
        shapes = LAYOUTS.get(kind, ())
        shown = [self.latents[shape][rows[:, 2 + n]].float() for n, shape in enumerate(shapes)]
        return rows[:, 0], data, shown


def draw_captions(number: int) -> list[Caption]:
    """Draw some hundred captions for the text encoder, one in five of them of a triptych; in no shard."""
    examples, _ = draw_examples(10**6 + number)
    captions = [words for found in examples.values() for words, _, _ in found]
    rng = random.Random(number)
    for _ in range(len(captions) // 4):
        garment, scenes = sample_triptych(rng)
        panels = enriched([(garment, scene) for scene in scenes], rng)
        shown = [scene for _, scene in panels]
        captions.append(triptych_caption(panels[0][0], shown, rng, named=rng.random() < 0.6, varied=True))
    rng.shuffle(captions)
    return captions


def write_facts(path: Path, **facts: Any) -> None:
    """Write JSON under its final name when it is complete."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
