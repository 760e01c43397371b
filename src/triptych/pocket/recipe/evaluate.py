"""Stage ``evaluate``: does the base obey words, do boards agree, and is the garment of panels 1 and 2 carried to panel 3?

``clamp_scores`` is the test a LoRA has to win: panels 1 and 2 are given, the prompt is silent about the look, panel 3 is
drawn; the judge compares it with the true garment.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from triptych.pocket.oracle import Judgement, judge
from triptych.pocket.prompts import (
    BOARD_SUMMARIES,
    TRIPTYCH_SUMMARY,
    join_captions,
    panel_caption,
    sample_board,
    sample_triptych,
    triptych_caption,
)
from triptych.pocket.recipe.autoencoder import Codec
from triptych.pocket.recipe.flux import COLUMNS, ROWS, sample
from triptych.pocket.recipe.state import Log
from triptych.pocket.recipe.text import TextEncoders
from triptych.pocket.recipe.transformer import averaged_transformer
from triptych.pocket.render import render
from triptych.pocket.world import VIEWS, Garment, Scene, sample_garment, sample_scene

BATCH = 16


@dataclass(frozen=True)
class Triptych:
    """One item of the rendered world: garment, its three scenes and the wide picture uint8 (72, 144, 3)."""

    garment: Garment
    scenes: tuple[Scene, Scene, Scene]
    picture: np.ndarray


def draw_triptychs(count: int, seed: int, exclude: set[Garment] | None = None) -> list[Triptych]:
    """Draw items in front, back and worn views, none of the garments in ``exclude``."""
    rng = random.Random(seed)
    drawn: list[Triptych] = []
    while len(drawn) < count:
        garment, scenes = sample_triptych(rng)
        if exclude and garment in exclude:
            continue
        panels = [np.asarray(render(garment, scene, rng.getrandbits(31)).image) for scene in scenes]
        drawn.append(Triptych(garment, scenes, np.concatenate(panels, 1)))
    return drawn


def split_panels(pictures: np.ndarray) -> list[np.ndarray]:
    """Return panel 1, 2 and 3 of wide pictures (B, 72, 144, 3)."""
    return np.split(pictures, 3, axis=2)


def save_grid(pictures: np.ndarray, columns: int, path: Path, scale: int = 2) -> None:
    """Write pictures as one contact sheet."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = divmod(index, columns)
        sheet[y * (height + 2) : y * (height + 2) + height, x * (width + 2) : x * (width + 2) + width] = picture
    image = Image.fromarray(sheet)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path, optimize=True)


def _share(hits: list[bool]) -> float:
    return round(sum(hits) / len(hits), 3)


def look_scores(seen: list[Judgement], truth: Sequence[Garment | Judgement]) -> dict[str, float]:
    """Return the share of equal colours, patterns, and both."""
    colour = [a.colour == b.colour for a, b in zip(seen, truth, strict=True)]
    pattern = [a.pattern == b.pattern for a, b in zip(seen, truth, strict=True)]
    both = [a and b for a, b in zip(colour, pattern, strict=True)]
    return {"colour": _share(colour), "pattern": _share(pattern), "both": _share(both)}


class Evaluation:
    """The base or an adapted transformer with frozen encoders and autoencoder."""

    def __init__(self, folder: Path, model: torch.nn.Module | None = None) -> None:
        """Take the moving average of the build folder unless a transformer is given."""
        self.model = model if model is not None else averaged_transformer(folder)
        self.encoders, self.codec = TextEncoders.trained(folder), Codec(folder / "vae")

    def draw(self, prompts: list[str], panels: int, **options: Any) -> np.ndarray:
        """Draw pictures in batches; tensors among the options are cut along with the prompts."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            cut = slice(start, start + BATCH)
            here: dict[str, Any] = {k: v[cut] if isinstance(v, torch.Tensor) and len(v) > 1 else v for k, v in options.items()}
            parts.append(self.codec.decode(sample(self.model, self.encoders, prompts[cut], panels, **here)))
        return np.concatenate(parts)

    def singles(self, count: int = 96, steps: int = 12, seed: int = 909) -> tuple[dict[str, float], np.ndarray]:
        """Return how well named single panels are obeyed, and the pictures."""
        rng = random.Random(seed)
        panels = [(sample_garment(rng), sample_scene(rng, VIEWS[index % 3])) for index in range(count)]
        prompts = [panel_caption(*panel, rng).text for panel in panels]
        pictures = self.draw(prompts, 1, steps=steps)
        seen = judge(list(pictures), [garment.type for garment, _ in panels])
        scores = look_scores(seen, [garment for garment, _ in panels])
        scores["type"] = _share([a.type == garment.type for a, (garment, _) in zip(seen, panels, strict=True)])
        scores["person"] = _share([a.person == scene.worn for a, (_, scene) in zip(seen, panels, strict=True)])
        return scores, pictures

    def boards(self, named: bool, count: int = 32, steps: int = 12, seed: int = 910) -> tuple[dict[str, float], np.ndarray]:
        """Return how often panels 2 and 3 of matching boards look like panel 1 (panel 1 named or nothing named)."""
        rng = random.Random(seed)
        boards = [sample_board(rng, "matching") for _ in range(count)]
        prompts = []
        for board in boards:
            captions = [panel_caption(*panel, rng, named=named and not i) for i, panel in enumerate(board)]
            prompts.append(join_captions(BOARD_SUMMARIES["matching"][0], captions, "matching").text)
        pictures = self.draw(prompts, 3, steps=steps)
        seen = [judge(list(panel), [board[index][0].type for board in boards]) for index, panel in enumerate(split_panels(pictures))]
        return look_scores(seen[1] + seen[2], seen[0] * 2), pictures

    def clamp(
        self, items: list[Triptych], *, steps: int = 16, true_cfg_scale: float = 3.0, seed: int = 0, summary: str = TRIPTYCH_SUMMARY
    ) -> tuple[dict[str, float], np.ndarray]:
        """Return how often panel 3 shows the garment of the given panels 1 and 2, prompt silent about the look."""
        rng = random.Random(77)
        prompts = [triptych_caption(one.garment, one.scenes, rng, named=False, summary=summary).text for one in items]
        known = torch.cat(
            [self.codec.encode(np.stack([one.picture for one in items[start : start + BATCH]])) for start in range(0, len(items), BATCH)]
        )
        repaint = torch.zeros(1, 1, ROWS, COLUMNS * 3)
        repaint[..., COLUMNS * 2 :] = 1
        pictures = self.draw(prompts, 3, steps=steps, true_cfg_scale=true_cfg_scale, seed=seed, known=known, repaint=repaint)
        seen = judge(list(split_panels(pictures)[2]), [one.garment.type for one in items])
        scores = look_scores(seen, [one.garment for one in items])
        scores["person"] = _share([one.person for one in seen])
        patterned = [i for i, one in enumerate(items) if one.garment.pattern != "plain"]
        scores["pattern_if_patterned"] = _share([seen[i].pattern == items[i].garment.pattern for i in patterned])
        return scores, pictures


def evaluate(folder: Path) -> None:
    """Measure the base as it stands; writes sheets and a line of ``evaluate.jsonl``."""
    evaluation, log = Evaluation(folder), Log(folder, "evaluate")
    results = {}
    results["singles"], pictures = evaluation.singles()
    save_grid(pictures[:36], 12, folder / "singles.png")
    results["boards_named"], pictures = evaluation.boards(True)
    save_grid(pictures[:15], 3, folder / "boards.png")
    results["boards_silent"], _ = evaluation.boards(False)
    results["clamp"], pictures = evaluation.clamp(draw_triptychs(48, 4242))
    save_grid(pictures[:15], 3, folder / "clamp.png")
    log.write(**results)
