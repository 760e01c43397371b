"""Shared by all training stages of the recipe: a log of JSON lines, and training states in safetensors."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def autocast(device: torch.device | str = "cpu") -> torch.autocast:
    """bfloat16 on a card, and on a processor if it computes it natively; otherwise it would be many times
    slower than float32.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, kind != "cpu" or torch.cpu._is_avx512_bf16_supported())


class Log:
    """Appends JSON lines to `<stage>.jsonl` and prints them, for loss curves."""

    def __init__(self, folder: Path, stage: str) -> None:
        """Open the log of one stage."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stage}.jsonl"
        self._start = time.monotonic()

    def write(self, **values: Any) -> None:
        """Write one line; floats are shortened, the seconds since the (re)start are added."""
        line = {"seconds": round(time.monotonic() - self._start, 1), **values}
        text = json.dumps({key: round(v, 5) if isinstance(v, float) else v for key, v in line.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, **metadata: Any) -> None:
    """Write safetensors under a temporary name, then rename: a file under its final name is complete."""
    aside = path.with_name(path.name + ".part")
    text = {key: json.dumps(value) for key, value in metadata.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, aside, metadata=text)
    os.replace(aside, path)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors`: tensors and metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return tensors, {key: json.loads(value) for key, value in (file.metadata() or {}).items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the state of an Adam optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": value for index, values in state.items() for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restore the tensors of :func:`optimizer_tensors`, laid out in memory as their parameters are: a fused
    optimizer goes through both as they lie.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set one learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def train_steps(
    folder: Path,
    stage: str,
    module: torch.nn.Module,
    steps: int,
    seed: int,
    rate: Callable[[int], float],
    loss_of: Callable[[random.Random, torch.Generator], tuple[str, torch.Tensor]],
    *,
    weight_decay: float,
    ema: Callable[[int], float] = lambda step: 0.0,
    log_every: int = 50,
    save_every: int = 100,
) -> dict[str, torch.Tensor]:
    """Train a module for `steps` steps, or continue from `<stage>.state.safetensors`; returns its moving
    average.

    rate: learning rate of a step. loss_of: returns the kind of batch and its loss, given that step's random
    generators. ema: share of the average that a step keeps; 0 makes the average equal to the parameters.
    """
    state_path, parameters = folder / f"{stage}.state.safetensors", dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), rate(0), betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
    )
    average = {name: value.detach().clone() for name, value in parameters.items()}
    first = 0
    if state_path.exists():
        tensors, metadata = load_tensors(state_path)
        module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
        restore_optimizer(optimizer, tensors)
        first = metadata["step"]
    log, losses = Log(folder, stage), dict[str, list[float]]()
    for step in range(first, steps):
        set_learning_rate(optimizer, rate(step))
        name, loss = loss_of(
            random.Random(seed * 10**8 + step), torch.Generator().manual_seed(seed * 10**8 + step)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for key, value in parameters.items():
                average[key].lerp_(value, 1 - ema(step))
        losses.setdefault(name, []).append(loss.item())
        if (step + 1) % log_every == 0:
            log.write(step=step + 1, **{f"loss_{k}": sum(v) / len(v) for k, v in losses.items()})
            losses.clear()
        if (step + 1) % save_every == 0:
            tensors = {f"model.{k}": v for k, v in module.state_dict().items()} | {
                f"ema.{k}": v for k, v in average.items()
            }
            save_tensors(tensors | optimizer_tensors(optimizer), state_path, step=step + 1)
    return average
