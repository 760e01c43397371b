"""Stage `transformer`: rectified flow on the bank, from scratch, with frozen text encoders.

The learning rate is constant until the decay begins (after `steps` steps, or when a file `decay-now` appears
in the build folder). Then a cosine reduces it over 60 % as many steps as were done so far, so the run can be
ended at any time. All panels of a board have the same noise level; the base never sees clean context, nor a
prompt without its panels.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from recipes.pocket.bank import Bank
from recipes.pocket.flux import MU, new_transformer, velocity
from recipes.pocket.state import (
    Log,
    autocast,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
    set_learning_rate,
)
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
DECAY = 0.6
"""Length of the decay, as a fraction of the steps before it."""
SILENT, ONE_NAMED = 0.48, 0.32
"""Shares for matching and copy boards: no text names the look; one panel does."""
EMPTY_PROMPTS, EMA, EMA_EVERY, SAVE_SECONDS = 0.1, 0.999, 4, 300


def learning_rate_factor(step: int, decay_start: int | None) -> float:
    """Return the factor of a warmup - stable - decay schedule; 0 when the decay is over."""
    if decay_start is None or step < decay_start:
        return min(1.0, (step + 1) / 100)
    part = (step - decay_start) / max(1, round(DECAY * decay_start))
    return 0.0 if part >= 1 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part))


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


class Training:
    """Parameters, optimizer, moving average and position of the run, all in one safetensors file."""

    def __init__(self, folder: Path, start_from: Path | None = None) -> None:
        """Start from scratch or from a pipeline's transformer, or continue from the last state."""
        torch.manual_seed(SEED)
        self.path = folder / "transformer.state.safetensors"
        self.model = new_transformer()
        if start_from is not None and not self.path.exists():
            shipped = FluxTransformer2DModel.from_pretrained(
                start_from, subfolder="transformer", local_files_only=True
            )
            self.model.load_state_dict(shipped.state_dict())
        self.model.set_attention_backend(ATTENTION)
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.step, self.decay_start, self.seen = 0, None, {"singles": 0, "boards": 0}
        if self.path.exists():
            tensors, metadata = load_tensors(self.path)
            self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
            names = [name for name, _ in self.model.named_parameters()]
            self.average = [tensors[f"ema.{name}"] for name in names]
            restore_optimizer(self.optimizer, tensors)
            self.step, self.decay_start, self.seen = (
                metadata["step"],
                metadata["decay_start"],
                metadata["seen"],
            )

    def save(self) -> None:
        """Write the complete state, then give it its final name."""
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in zip(names, self.average, strict=True)}
        tensors |= optimizer_tensors(self.optimizer)
        save_tensors(tensors, self.path, step=self.step, decay_start=self.decay_start, seen=self.seen)

    @torch.no_grad()
    def update(self) -> None:
        """Make one optimizer step from the gradients, and update the moving average."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.step % EMA_EVERY == 0:
            decay = min(EMA, (1 + self.step) / (10 + self.step)) ** EMA_EVERY
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)


def averaged_transformer(folder: Path) -> FluxTransformer2DModel:
    """Return the current moving average of a build folder's run."""
    tensors, _ = load_tensors(folder / "transformer.state.safetensors")
    model = new_transformer()
    model.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("ema.")})
    return model.eval().requires_grad_(False)


def train_transformer(
    folder: Path,
    steps: int = STEPS,
    compile_model: bool = True,
    start_from: Path | None = None,
    related: bool = True,
) -> None:
    """Train until the decay is over; finally writes `transformer.done`. Without `related` boards: the
    ablation.
    """
    if (folder / "transformer.done").exists():
        return
    bank, encoders, run = Bank(folder), TextEncoders.trained(folder), Training(folder, start_from)
    log = Log(folder, "transformer")
    model: Any = torch.compile(run.model, dynamic=False) if compile_model else run.model
    lengths = {"singles": SINGLE_LENGTH, "boards": TRIPTYCH_LENGTH}
    losses: dict[str, list[float]] = {"singles": [], "boards": []}
    seconds = {"singles": 0.0, "boards": 0.0}
    saved = time.monotonic()
    while True:
        if run.decay_start is None and (run.step >= steps or (folder / "decay-now").exists()):
            run.decay_start = run.step
            log.write(decay_start=run.step, ends=run.step + round(DECAY * run.step))
        factor = learning_rate_factor(run.step, run.decay_start)
        if factor == 0 or (folder / "stop-now").exists():
            break
        set_learning_rate(run.optimizer, LEARNING_RATE * factor)
        rng = random.Random(SEED * 10**8 + run.step)
        noise = torch.Generator().manual_seed(SEED * 10**8 + run.step)
        share = BOARD_SHARE[0] + (BOARD_SHARE[1] - BOARD_SHARE[0]) * min(1.0, run.step / BOARD_SHARE_STEPS)
        name = "boards" if rng.random() < share else "singles"
        started = time.monotonic()
        prompts, latents = sample_batch(bank, name, rng, related)
        with torch.no_grad(), autocast():
            text = encoders(prompts, lengths[name])
        loss = flow_loss(model, latents, text, noise)
        loss.backward()
        run.update()
        run.step += 1
        run.seen[name] += BATCH[name]
        losses[name].append(loss.item())
        seconds[name] += time.monotonic() - started
        if run.step % 100 == 0:
            speed = {f"{k}_per_second": len(v) * BATCH[k] / (seconds[k] + 1e-9) for k, v in losses.items()}
            means = {f"loss_{k}": sum(v) / len(v) for k, v in losses.items() if v}
            log.write(step=run.step, learning_rate=LEARNING_RATE * factor, **means, **speed, **run.seen)
            losses, seconds = {"singles": [], "boards": []}, {"singles": 0.0, "boards": 0.0}
        if time.monotonic() - saved > SAVE_SECONDS:
            run.save()
            saved = time.monotonic()
    run.save()
    if factor == 0:
        (folder / "transformer.done").write_text(f"{run.step} steps, seen {run.seen}\n", encoding="utf-8")
