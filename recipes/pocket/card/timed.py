"""Stages that share a budget of seconds: how long each may take, and a loop that stops and goes on.

Seconds spent are kept in `clock.json` of the work folder, so that a stopped run has what was left.
Every step draws from generators made of (seed, step): batches and noise are those of an unbroken run, and
with steps in place of seconds the weights are too. By seconds the learning rate follows the clock instead.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recipes.pocket.card.bank import write_facts
from recipes.pocket.loop import adam
from recipes.pocket.state import Log, load_tensors, optimizer_tensors, restore_optimizer, save_tensors

SHARES = {"text": 0.1, "autoencoder": 0.23, "bank": 0.07, "transformer": 0.45, "evaluate": 0.15}
"""Share of the time by stage. What one leaves goes to those after it, by their shares."""
SAVE_SECONDS, LOG_EVERY, EMA_EVERY = 20, 100, 4


class Clock:
    """Seconds spent on a work folder, over all runs."""

    def __init__(self, work: Path, budget: float, begun: float) -> None:
        """Go on counting; `begun`: when this run began, by `time.monotonic`."""
        self.path, self.budget, self.begun = work / "clock.json", budget, begun
        self.before = json.loads(self.path.read_text())["spent"] if self.path.exists() else 0.0

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.begun

    def save(self) -> None:
        """Keep them."""
        write_facts(self.path, spent=self.spent)

    def allot(self, stage: str) -> float:
        """Return how many seconds a stage may take: its share of what is left."""
        stages = list(SHARES)
        left = sum(SHARES[name] for name in stages[stages.index(stage) :])
        return max(0.0, self.budget - self.spent) * SHARES[stage] / left


def rate_factor(part: float, step: int, warmup: int = 100) -> float:
    """Return the factor of the learning rate: a short warm-up, constant to .4 of the stage, then a cosine."""
    decay = 1.0 if part < 0.4 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (part - 0.4) / 0.6))
    return min(1.0, (step + 1) / warmup) * decay


@dataclass
class Stage:
    """A training stage. `loss_of`: a step's loss, given its generators; `ema` averages the weights."""

    name: str
    module: torch.nn.Module
    learning_rate: float
    seed: int
    loss_of: Callable[[random.Random, torch.Generator], torch.Tensor]
    ema: float = 0.0
    on_save: Callable[[], None] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)
    """More for the log, by whoever knows it."""


class TimedRun:
    """The state of a stage in one file: weights, moving average, optimizer, step, seconds."""

    def __init__(self, work: Path, stage: Stage) -> None:
        """Start, or continue from `<stage>.state.safetensors`."""
        self.stage, self.path = stage, work / f"{stage.name}.state.safetensors"
        self.parameters = dict(stage.module.named_parameters())
        self.optimizer = adam([*self.parameters.values()], stage.learning_rate)
        self.average = [one.detach().clone() for one in self.parameters.values()]
        self.step, self.spent = 0, 0.0
        if self.path.exists():
            tensors, metadata = load_tensors(self.path)
            weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
            stage.module.load_state_dict(weights, strict=False)  # tied tensors are kept once
            for name, value in zip(self.parameters, self.average, strict=True):
                value.copy_(tensors[f"ema.{name}"])
            restore_optimizer(self.optimizer, tensors)
            self.step, self.spent = metadata["step"], metadata["spent"]

    def save(self) -> None:
        """Write the whole state."""
        whole = self.parameters | dict(self.stage.module.named_buffers())
        tensors = {f"model.{k}": v.detach() for k, v in whole.items()}
        tensors |= {f"ema.{k}": v for k, v in zip(self.parameters, self.average, strict=True)}
        save_tensors(tensors | optimizer_tensors(self.optimizer), self.path, step=self.step, spent=self.spent)
        self.stage.on_save()

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return the module's tensors, its parameters by their moving average where the stage has one."""
        average = dict(zip(self.parameters, self.average, strict=True)) if self.stage.ema else {}
        return {**self.stage.module.state_dict(), **average}

    def go(self, work: Path, clock: Clock, seconds: float, steps: int | None) -> None:
        """Train until the stage's seconds are over, those of earlier runs included; or for `steps` steps."""
        log, stage, began, saved = Log(work, stage_name := self.stage.name), self.stage, time.monotonic(), 0.0
        before, losses = self.spent, list[torch.Tensor]()
        seconds += before
        while (part := self.step / steps if steps else self.spent / max(seconds, 1e-9)) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate_factor(part, self.step, 100 if steps is None else 2)
            seed = stage.seed * 10**8 + self.step
            loss = stage.loss_of(random.Random(seed), torch.Generator().manual_seed(seed))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if stage.ema and self.step % EMA_EVERY == 0:
                keep = min(stage.ema, (1 + self.step) / (10 + self.step)) ** EMA_EVERY
                torch._foreach_lerp_(self.average, [one.data for one in self.parameters.values()], 1 - keep)
            self.step += 1
            losses.append(loss.detach())
            if self.step % 10 == 0:
                loss.item()  # wait for the card now and then: the clock counts what is done
            self.spent = before + time.monotonic() - began
            if self.step % LOG_EVERY == 0 or steps:
                mean = torch.stack(losses).mean().item()
                log.write(stage=stage_name, step=self.step, part=part, loss=mean, **stage.facts)
                losses.clear()
            if self.spent - before - saved > SAVE_SECONDS or steps:
                saved = self.spent - before
                self.save()
                clock.save()
        self.save()
        clock.save()
