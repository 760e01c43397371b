"""Stage `evaluate`: does the base follow every named attribute in single pictures, and do related boards
match?

Garments and people are held out from its training. `triptych evaluate --pocket --model FOLDER` measures the
effect of a LoRA.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from recipes.pocket.autoencoder import Codec
from recipes.pocket.flux import sample
from recipes.pocket.guidance import guided_transformer
from recipes.pocket.state import Log
from recipes.pocket.text import TextEncoders
from triptych.pocket.oracle import HEADS, Judgement, judge
from triptych.pocket.prompts import BOARD_SUMMARIES, Panel, join_captions, panel_caption, sample_board
from triptych.pocket.world import NONE, VIEWS, sample_garment, sample_printed, sample_scene

BATCH, SINGLES, BOARDS = 16, 300, 48
PRINTED = 0.2
"""Share of the single pictures with a back print."""
GUIDANCE: dict[str, dict[str, Any]] = {
    "true CFG 3": {"true_cfg_scale": 3.0},
    "distilled 3": {"guidance": 3.0},
    "none": {},
}


def save_grid(pictures: np.ndarray, columns: int, path: Path, scale: int = 2) -> None:
    """Write pictures as one contact sheet."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = divmod(index, columns)
        sheet[y * (height + 2) : y * (height + 2) + height, x * (width + 2) : x * (width + 2) + width] = (
            picture
        )
    image = Image.fromarray(sheet)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(
        path, optimize=True
    )


def share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 3)


def draw_single(rng: random.Random, view: str) -> Panel:
    """Draw a held-out panel; printed garments are seen from the side of the print."""
    if rng.random() < PRINTED and view != "front":
        return sample_printed(rng, held_out=True), sample_scene(rng, view, behind_share=1.0, held_out=True)
    return sample_garment(rng, held_out=True), sample_scene(rng, view, held_out=True)


def obeyed(
    panels: Sequence[Panel], said: Sequence[dict[str, str]], pictures: Sequence[Any]
) -> dict[str, float]:
    """Share of the pictures that show the attributes in their prompt, by attribute; `person`: one or none, as
    in the prompt.
    """
    seen = judge(pictures, [garment.type for garment, _ in panels])
    untold = judge(pictures)
    hits: dict[str, list[bool]] = {
        "person": [one.person == scene.worn for one, (_, scene) in zip(seen, panels, strict=True)]
    }
    for one, free, words in zip(seen, untold, said, strict=True):
        for name in HEADS:
            value = words.get(name, NONE)
            if value != NONE:
                hits.setdefault(name, []).append(getattr(free if name == "type" else one, name) == value)
    return {name: share(values) for name, values in hits.items()}


def looks_alike(seen: list[Judgement], truth: list[Judgement]) -> dict[str, float]:
    """Share of equal colours, of equal patterns, and of both."""
    colour = [a.colour == b.colour for a, b in zip(seen, truth, strict=True)]
    pattern = [a.pattern == b.pattern for a, b in zip(seen, truth, strict=True)]
    return {
        "colour": share(colour),
        "pattern": share(pattern),
        "both": share([a and b for a, b in zip(colour, pattern, strict=True)]),
    }


class Evaluation:
    """The transformer to be packaged, with its encoders and autoencoder."""

    def __init__(self, folder: Path, model: torch.nn.Module | None = None) -> None:
        """Use the build folder's transformer unless one is given."""
        self.model = model if model is not None else guided_transformer(folder)
        self.encoders, self.codec = TextEncoders.trained(folder), Codec(folder / "vae")

    def draw(self, prompts: list[str], panels: int, **options: Any) -> np.ndarray:
        """Draw pictures uint8 (B, 72, 48 per panel, 3), in batches."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            latents = sample(
                self.model, self.encoders, prompts[start : start + BATCH], panels, seed=start, **options
            )
            parts.append(self.codec.decode(latents))
        return np.concatenate(parts)

    def singles(
        self, count: int = SINGLES, steps: int = 16, seed: int = 909, **guidance: float
    ) -> tuple[dict[str, float], np.ndarray]:
        """Return how well single panels follow prompts with every attribute, and the pictures."""
        rng = random.Random(seed)
        panels = [draw_single(rng, VIEWS[index % 3]) for index in range(count)]
        captions = [panel_caption(*panel, rng, details=1.0, varied=True) for panel in panels]
        pictures = self.draw([caption.text for caption in captions], 1, steps=steps, **guidance)
        return obeyed(panels, [caption.said[0] for caption in captions], list(pictures)), pictures

    def boards(
        self, named: bool, count: int = BOARDS, steps: int = 16, seed: int = 910
    ) -> tuple[dict[str, float], np.ndarray]:
        """Return how often panels 2 and 3 of matching boards look like panel 1, and the pictures. named: the
        caption names panel 1's look; otherwise none.
        """
        rng = random.Random(seed)
        boards = [sample_board(rng, "matching") for _ in range(count)]
        prompts = []
        for board in boards:
            captions = [panel_caption(*panel, rng, named=named and not i) for i, panel in enumerate(board)]
            prompts.append(join_captions(BOARD_SUMMARIES["matching"][0], captions, "matching").text)
        pictures = self.draw(prompts, 3, steps=steps, true_cfg_scale=3.0)
        panels = np.split(pictures, 3, axis=2)
        seen = [
            judge(list(panel), [board[index][0].type for board in boards])
            for index, panel in enumerate(panels)
        ]
        return looks_alike(seen[1] + seen[2], seen[0] * 2), pictures


def evaluate(folder: Path, count: int = SINGLES) -> None:
    """Measure the current base; writes sheets and a line of `evaluate.jsonl`."""
    evaluation, log = Evaluation(folder), Log(folder, "evaluate")
    results = {}
    for name, guidance in GUIDANCE.items():
        results[f"singles, {name}"], pictures = evaluation.singles(count, **guidance)
        save_grid(pictures[:36], 12, folder / f"singles-{name.replace(' ', '-')}.png")
    for named in (True, False):
        results[f"boards, {'panel 1 named' if named else 'silent'}"], pictures = evaluation.boards(named)
        save_grid(pictures[:15], 3, folder / f"boards-{'named' if named else 'silent'}.png")
    log.write(**results)
