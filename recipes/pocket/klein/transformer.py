"""Stage `transformer`: rectified flow on single pictures, boards, and edits with references, from scratch.

References are clean, at the target's noise level, and only the target has a loss. Every kind of batch has one
shape, so that the compiled model knows a few lengths only: 54, 108, 162 or 216 tokens of pictures.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel

from recipes.pocket.klein.bank import KleinBank
from recipes.pocket.klein.captions import edit_caption
from recipes.pocket.klein.model import new_transformer, velocity
from recipes.pocket.klein.sets import LAYOUTS, draw_edit
from recipes.pocket.klein.text import TextEncoder
from recipes.pocket.loop import Course, Training, averaged, train
from recipes.pocket.state import autocast
from recipes.pocket.transformer import ATTENTION, ONE_NAMED, SILENT
from triptych import flow
from triptych.pocket.prompts import board_caption, panel_caption

STEPS, LEARNING_RATE, SEED = 2133, 1.5e-3, 15
MU = math.log(3.0)
"""Time shift in training. The pipeline's own in sampling is larger still: 6.7 at ten steps."""
SIZES = {"singles": 36, "boards": 20, "one": 26, "three": 16} | dict.fromkeys(
    ("two", "three small", "wide and small", "small and wide"), 20
)
SHARES = {
    "singles": 0.16,
    "boards": 0.27,
    "one": 0.17,
    "two": 0.24,
    "three": 0.05,
    "three small": 0.03,
    "wide and small": 0.04,
    "small and wide": 0.04,
}
SINGLES_FIRST, SINGLES_FIRST_STEPS = 0.5, 500
"""Share of single pictures at the start, and the steps until it is the one above."""
EMPTY_PROMPTS, EMA = 0.1, 0.996
STATE = "transformer.state.safetensors"

Batch = tuple[list[str], torch.Tensor, list[torch.Tensor]]
"""Prompts, latents_BCHW, references."""


def kind_of(step: int, rng: random.Random) -> str:
    """Draw the kind of a step's batch."""
    left = max(0.0, 1 - step / SINGLES_FIRST_STEPS)
    if rng.random() < left * SINGLES_FIRST:
        return "singles"
    return rng.choices(list(SHARES), list(SHARES.values()))[0]


def sample_batch(bank: KleinBank, kind: str, rng: random.Random) -> Batch:
    """Draw a batch of one kind: `singles`, `boards` or a layout of references."""
    prompts: list[str] = []
    latents: list[torch.Tensor] = []
    references: list[list[torch.Tensor]] = [[] for _ in LAYOUTS.get(kind, ())]
    whole = all(shape == "whole" for shape in LAYOUTS.get(kind, ()))
    sets = bank.sets if whole else bank.reshaped_sets()
    while len(prompts) < SIZES[kind]:
        if kind == "singles":
            part = "quad" if rng.random() < 0.6 else "look"
            place = (part, rng.randrange(len(sets[part])), rng.randrange(4))
            panel = sets[part][place[1]].panels[place[2]]
            text = panel_caption(*panel, rng, named=rng.random() < 0.88, varied=True).text
            latents.append(bank.latent(place))
        elif kind == "boards":
            number = rng.randrange(len(bank.boards))
            board, panels = bank.boards[number]
            text = board_caption(panels, board, rng, silent=SILENT, one_named=ONE_NAMED, varied=True).text
            latents.append(bank.latents["boards"]["whole"][number])
        else:
            edit = draw_edit(kind, sets, rng)
            target, *shown = (
                sets[part][number].panels[index] for part, number, index in (edit.target, *edit.references)
            )
            text = edit_caption(edit.kind, target, shown, edit.garment_from, edit.person_from, rng).text
            latents.append(bank.latent(edit.target))
            for column, place, shape in zip(references, edit.references, LAYOUTS[kind], strict=True):
                column.append(bank.latent(place, shape))
        prompts.append("" if rng.random() < EMPTY_PROMPTS else text)
    return prompts, torch.stack(latents).float(), [torch.stack(column).float() for column in references]


def flow_loss(model: Any, batch: Batch, encoder: TextEncoder, noise: torch.Generator) -> torch.Tensor:
    """Return the mean squared error of the target's velocity; noise levels of a batch are spread evenly."""
    prompts, data, references = batch
    with torch.no_grad():
        states = encoder(prompts)
    start = torch.randn(data.shape, generator=noise)
    t = stratified_time(len(data), noise)
    with autocast():
        predicted = velocity(model, flow.interpolate(data, start, t), t, states, references)
    return F.mse_loss(predicted.float(), flow.velocity_target(data, start))


def stratified_time(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return times (B,): logit-normal with the time shift, one in each of B equal parts of it."""
    part = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return flow.shift_time(torch.sigmoid(torch.special.ndtri(part.clamp(1e-4, 1 - 1e-4))), MU)


def train_transformer(
    folder: Path, steps: int = STEPS, compile_model: bool = True, start_from: Path | None = None
) -> None:
    """Train, or continue training, until the decay is over; finally writes `transformer.done`.

    start_from: a pipeline whose transformer is the start; its batches are others than those of a run from
    nothing.
    """
    if (folder / "transformer.done").exists():
        return
    bank, encoder = KleinBank(folder), TextEncoder.trained(folder)
    torch.manual_seed(SEED)
    model = new_transformer()
    if start_from is not None and not (folder / STATE).exists():
        trained = Flux2Transformer2DModel.from_pretrained(
            start_from, subfolder="transformer", local_files_only=True
        )
        model.load_state_dict(trained.float().state_dict())
    model.set_attention_backend(ATTENTION)
    run = Training(folder / STATE, model, list(SIZES), LEARNING_RATE, EMA)

    def loss_of(model: Any, kind: str, rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        return flow_loss(model, sample_batch(bank, kind, rng), encoder, noise)

    if compile_model:  # block by block: a fifth of the time of compiling the whole model, for each length
        model.compile_repeated_blocks(dynamic=False)
    seed = SEED if start_from is None else SEED + 1
    course = Course(kind_of, loss_of, SIZES, LEARNING_RATE, seed)
    train(folder, run, course, steps, compile_model=False)


def averaged_transformer(folder: Path) -> Flux2Transformer2DModel:
    """Return the current moving average of a build folder's run."""
    model: Flux2Transformer2DModel = averaged(folder / STATE, new_transformer())
    return model
