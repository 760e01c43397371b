"""Stage `prints`: a last phase of the transformer's training, in which most single pictures show a back
print.

A motif is smaller than two by two tokens, so its shape hardly affects the loss. After the long training a
print was drawn wherever the prompt named one, but with the right motif in only .46 of the pictures; colours
and patterns were right in .97 and more.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from recipes.pocket.bank import Bank
from recipes.pocket.flux import new_transformer
from recipes.pocket.state import autocast, load_tensors, save_tensors, train_steps
from recipes.pocket.text import SINGLE_LENGTH, TRIPTYCH_LENGTH, TextEncoders
from recipes.pocket.transformer import ATTENTION, BATCH, averaged_transformer, flow_loss, sample_batch
from triptych.pocket.prompts import panel_caption
from triptych.pocket.world import NONE

STEPS, SEED = 770, 77
FIRST_PART, LEARNING_RATES, WARMUP = 550, (7e-4, 5e-4), 40
"""Two cosine schedules, each with its own warm-up; the moving average restarts with each."""
SINGLES_SHARE, PRINTED_SHARE = 0.6, 0.85
"""Share of the batches that are single pictures, and share of those with a print."""
EMA, SAVE_EVERY = 0.98, 100


def part_of(step: int, steps: int) -> tuple[int, float]:
    """Return the number of steps done in the current schedule, and the learning rate."""
    begin, end, peak = (
        (0, min(steps, FIRST_PART), LEARNING_RATES[0])
        if step < FIRST_PART
        else (FIRST_PART, steps, LEARNING_RATES[1])
    )
    done = step - begin
    return done, peak * min(1, (done + 1) / WARMUP) * (
        0.02 + 0.49 * (1 + math.cos(math.pi * done / (end - begin)))
    )


def printed_singles(bank: Bank) -> list[int]:
    """Indices of the bank's single pictures with a visible print."""
    panels = [panels[0] for _, panels in bank.entries["singles"]]
    return [
        number for number, (garment, scene) in enumerate(panels) if garment.print != NONE and scene.shows_back
    ]


def sample_printed_batch(
    bank: Bank, printed: list[int], rng: random.Random
) -> tuple[list[str], torch.Tensor]:
    """Draw prompts and latents_BCHW of single pictures, most of them with a print."""
    prompts: list[str] = []
    latents: list[torch.Tensor] = []
    while len(prompts) < BATCH["singles"]:
        number = (
            rng.choice(printed)
            if rng.random() < PRINTED_SHARE
            else rng.randrange(len(bank.entries["singles"]))
        )
        caption = panel_caption(
            *bank.entries["singles"][number][1][0], rng, named=rng.random() < 0.93, varied=True
        )
        prompts.append("" if rng.random() < 0.05 else caption.text)
        latents.append(bank.latents["singles"][number])
    return prompts, torch.stack(latents).float()


def train_prints(folder: Path, steps: int = STEPS, compile_model: bool = True) -> None:
    """Train, or continue training, from the averaged transformer; writes `folder/prints.safetensors`."""
    result = folder / "prints.safetensors"
    if result.exists():
        return
    model = averaged_transformer(folder).train().requires_grad_(True)
    model.set_attention_backend(ATTENTION)
    compiled: Any = torch.compile(model, dynamic=False) if compile_model else model
    bank, encoders = Bank(folder), TextEncoders.trained(folder)
    printed = printed_singles(bank)

    def loss_of(rng: random.Random, noise: torch.Generator) -> tuple[str, torch.Tensor]:
        name = "printed" if rng.random() < SINGLES_SHARE else "boards"
        prompts, latents = (
            sample_printed_batch(bank, printed, rng)
            if name == "printed"
            else sample_batch(bank, "boards", rng)
        )
        with torch.no_grad(), autocast():
            text = encoders(prompts, SINGLE_LENGTH if name == "printed" else TRIPTYCH_LENGTH)
        return name, flow_loss(compiled, latents, text, noise)

    def rate(step: int) -> float:
        return part_of(step, steps)[1]

    def ema(step: int) -> float:
        return EMA if part_of(step, steps)[0] > WARMUP else 0.0

    average = train_steps(
        folder, "prints", model, steps, SEED, rate, loss_of, weight_decay=0.01, ema=ema, save_every=SAVE_EVERY
    )
    save_tensors(average, result, steps=steps)


def printed_transformer(folder: Path) -> FluxTransformer2DModel:
    """The current transformer of a build folder: after this stage if it ran, otherwise the averaged one."""
    path = folder / "prints.safetensors"
    if not path.exists():
        return averaged_transformer(folder)
    model = new_transformer()
    model.load_state_dict(load_tensors(path)[0])
    return model.eval().requires_grad_(False)
