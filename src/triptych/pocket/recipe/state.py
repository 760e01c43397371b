"""What every training stage of the recipe shares: a log of JSON lines and training states in safetensors."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def autocast() -> torch.autocast:
    """bfloat16 where the processor computes it; elsewhere it would be many times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


class Log:
    """Appends JSON lines to ``<stage>.jsonl`` and prints them: the loss curves come from here."""

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
    """Write safetensors aside, then rename: a file under its final name is complete."""
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
    return {f"optimizer.{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of :func:`optimizer_tensors` back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set one learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
