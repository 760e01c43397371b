"""The long training of a pocket's transformer, whatever its family: warm-up, stable rate, decay on request.

The learning rate is constant until the decay begins (after `steps` steps, or when a file `decay-now` appears
in the build folder). Then a cosine reduces it over a fixed share of the steps done so far, so the run can be
ended at any time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.pocket.state import (
    Log,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
    set_learning_rate,
)

EMA, EMA_EVERY, SAVE_SECONDS = 0.999, 4, 300
DECAY = 0.6
"""Length of the decay, as a fraction of the steps before it."""


def learning_rate_factor(step: int, decay_start: int | None, decay: float = DECAY) -> float:
    """Return the factor of a warmup - stable - decay schedule; 0 when the decay is over."""
    if decay_start is None or step < decay_start:
        return min(1.0, (step + 1) / 100)
    part = (step - decay_start) / max(1, round(decay * decay_start))
    return 0.0 if part >= 1 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part))


def adam(parameters: Sequence[torch.Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of both pockets."""
    return torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


class Training:
    """Parameters, optimizer, moving average and position of a run, all in one safetensors file."""

    def __init__(
        self,
        path: Path,
        model: torch.nn.Module,
        kinds: Sequence[str],
        learning_rate: float,
        ema: float = EMA,
    ) -> None:
        """Start with the model as it is, or continue from the state at `path`."""
        self.path, self.model, self.ema = path, model, ema
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = adam(self.parameters, learning_rate)
        self.step = 0
        self.decay_start: int | None = None
        self.seen = dict.fromkeys(kinds, 0)
        if path.exists():
            tensors, metadata = load_tensors(path)
            model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
            self.average = [tensors[f"ema.{name}"] for name, _ in model.named_parameters()]
            restore_optimizer(self.optimizer, tensors)
            self.step, self.decay_start = metadata["step"], metadata["decay_start"]
            self.seen |= metadata["seen"]

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
            decay = min(self.ema, (1 + self.step) / (10 + self.step)) ** EMA_EVERY
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)


@dataclass(frozen=True)
class Course:
    """What a family brings to the loop.

    kind_of: the kind of batch of a step. loss_of: its loss, given the (compiled) model, the kind and the
    step's random generators. sizes: examples in a batch, by kind.
    """

    kind_of: Callable[[int, random.Random], str]
    loss_of: Callable[[Any, str, random.Random, torch.Generator], torch.Tensor]
    sizes: dict[str, int]
    learning_rate: float
    seed: int
    decay: float = DECAY


def averaged(path: Path, model: torch.nn.Module) -> torch.nn.Module:
    """Load the current moving average of a run into a model."""
    tensors, _ = load_tensors(path)
    model.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("ema.")})
    return model.eval().requires_grad_(False)


def train(folder: Path, run: Training, course: Course, steps: int, *, compile_model: bool = True) -> None:
    """Train until the decay is over, or a file `stop-now` appears; finally writes `transformer.done`."""
    log = Log(folder, "transformer")
    model: Any = torch.compile(run.model, dynamic=False) if compile_model else run.model
    losses: dict[str, list[float]] = {kind: [] for kind in course.sizes}
    seconds = dict.fromkeys(course.sizes, 0.0)
    saved = time.monotonic()
    while True:
        if run.decay_start is None and (run.step >= steps or (folder / "decay-now").exists()):
            run.decay_start = run.step
            log.write(decay_start=run.step, ends=run.step + round(course.decay * run.step))
        factor = learning_rate_factor(run.step, run.decay_start, course.decay)
        if factor == 0 or (folder / "stop-now").exists():
            break
        set_learning_rate(run.optimizer, course.learning_rate * factor)
        rng = random.Random(course.seed * 10**8 + run.step)
        noise = torch.Generator().manual_seed(course.seed * 10**8 + run.step)
        kind = course.kind_of(run.step, rng)
        started = time.monotonic()
        loss = course.loss_of(model, kind, rng, noise)
        loss.backward()
        run.update()
        run.step += 1
        run.seen[kind] += course.sizes[kind]
        losses[kind].append(loss.item())
        seconds[kind] += time.monotonic() - started
        if run.step % 100 == 0:
            means = {f"loss_{k}": sum(v) / len(v) for k, v in losses.items() if v}
            speed = {
                f"{k}_per_second": len(v) * course.sizes[k] / (seconds[k] + 1e-9)
                for k, v in losses.items()
                if v
            }
            log.write(
                step=run.step, learning_rate=course.learning_rate * factor, **means, **speed, **run.seen
            )
            losses, seconds = {k: [] for k in losses}, dict.fromkeys(seconds, 0.0)
        if time.monotonic() - saved > SAVE_SECONDS:
            run.save()
            saved = time.monotonic()
    run.save()
    if factor == 0:
        (folder / "transformer.done").write_text(f"{run.step} steps, seen {run.seen}\n", encoding="utf-8")
