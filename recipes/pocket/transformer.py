"""Stage `transformer`: rectified flow on the bank, from scratch, with frozen text encoders.

The schedule is that of `loop.py`. All panels of a board have the same noise level; the base never sees clean
context, nor a prompt without its panels.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from recipes.pocket.bank import Bank
from recipes.pocket.flux import MU, new_transformer, velocity
from recipes.pocket.loop import Course, Training, averaged, train
from recipes.pocket.state import autocast
from recipes.pocket.text import SINGLE_LENGTH, TRIPTYCH_LENGTH, TextEncoders
from triptych import flow
from triptych.pocket.prompts import board_caption, panel_caption

STEPS, LEARNING_RATE, SEED = 2993, 1e-3, 5
ATTENTION = "_native_math"
"""PyTorch's flash kernel for the CPU is slow for bfloat16 products; compiled, the plain formula is 1.7 times
as fast.
"""
BATCH = {"singles": 48, "boards": 20}
BOARD_SHARE, BOARD_SHARE_STEPS = (0.35, 0.75), 2000
"""Share of board batches at the start, and after the given number of steps."""
SILENT, ONE_NAMED = 0.48, 0.32
"""Shares for matching and copy boards: no text names the look; one panel does."""
EMPTY_PROMPTS = 0.1
STATE = "transformer.state.safetensors"


def sample_batch(
    bank: Bank, name: str, rng: random.Random, related: bool = True
) -> tuple[list[str], torch.Tensor]:
    """Draw prompts and latents_BCHW; without `related`, boards show only independent items."""
    prompts: list[str] = []
    latents: list[torch.Tensor] = []
    while len(prompts) < BATCH[name]:
        index = rng.randrange(len(bank.entries[name]))
        kind, panels = bank.entries[name][index]
        if not related and kind in ("matching", "copy"):
            continue
        if kind == "single":
            caption = panel_caption(*panels[0], rng, named=rng.random() < 0.85, varied=True)
        else:
            caption = board_caption(panels, kind, rng, silent=SILENT, one_named=ONE_NAMED, varied=True)
        prompts.append("" if rng.random() < EMPTY_PROMPTS else caption.text)
        latents.append(bank.latents[name][index])
    return prompts, torch.stack(latents).float()


def flow_loss(
    model: torch.nn.Module,
    latents: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    noise: torch.Generator,
) -> torch.Tensor:
    """Return the mean squared error of the velocity."""
    mixed, t, target = noised(latents, noise)
    with autocast():
        predicted = velocity(model, mixed, t, text)
    return F.mse_loss(predicted.float(), target)


def noised(
    data_BCHW: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noised latents, times (B,) and the target velocity; t is logit-normal, with the time shift."""
    noise = torch.randn(data_BCHW.shape, generator=generator)
    t = flow.shift_time(torch.sigmoid(torch.randn(len(data_BCHW), generator=generator)), MU)
    return flow.interpolate(data_BCHW, noise, t), t, flow.velocity_target(data_BCHW, noise)


def averaged_transformer(folder: Path) -> FluxTransformer2DModel:
    """Return the current moving average of a build folder's run."""
    model: FluxTransformer2DModel = averaged(folder / STATE, new_transformer())
    return model


def train_transformer(
    folder: Path,
    steps: int = STEPS,
    compile_model: bool = True,
    start_from: Path | None = None,
    related: bool = True,
) -> None:
    """Train until the decay is over; finally writes `transformer.done`. start_from: a pipeline whose
    transformer is the start. Without `related` boards: the ablation.
    """
    if (folder / "transformer.done").exists():
        return
    bank, encoders = Bank(folder), TextEncoders.trained(folder)
    torch.manual_seed(SEED)
    model = new_transformer()
    if start_from is not None and not (folder / STATE).exists():
        shipped = FluxTransformer2DModel.from_pretrained(
            start_from, subfolder="transformer", local_files_only=True
        )
        model.load_state_dict(shipped.state_dict())
    model.set_attention_backend(ATTENTION)
    lengths = {"singles": SINGLE_LENGTH, "boards": TRIPTYCH_LENGTH}

    def kind_of(step: int, rng: random.Random) -> str:
        share = BOARD_SHARE[0] + (BOARD_SHARE[1] - BOARD_SHARE[0]) * min(1.0, step / BOARD_SHARE_STEPS)
        return "boards" if rng.random() < share else "singles"

    def loss_of(model: Any, kind: str, rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        prompts, latents = sample_batch(bank, kind, rng, related)
        with torch.no_grad(), autocast():
            text = encoders(prompts, lengths[kind])
        return flow_loss(model, latents, text, noise)

    run = Training(folder / STATE, model, list(BATCH), LEARNING_RATE)
    train(
        folder, run, Course(kind_of, loss_of, BATCH, LEARNING_RATE, SEED), steps, compile_model=compile_model
    )
