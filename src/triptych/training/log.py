"""The training log: `train.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from triptych.pictures.saving import save_png
from triptych.store.files import explained, read_jsonl, write_jsonl


class TrainLog:
    """Rows of numbers by step. When a run resumes from a checkpoint, rows of later steps are dropped.

    start: number of steps done. ends_here: no more steps follow; rows of later checkpoints then stay, because
    a longer training would continue from those. writes: False keeps rows in memory only, for all processes
    except the first.
    """

    def __init__(
        self, folder: Path, tensorboard: Path, start: int, writes: bool = True, ends_here: bool = False
    ) -> None:
        path = self._path = folder / "train.jsonl"
        before = read_jsonl(path) if path.exists() else []
        self._rows = [row for row in before if row["step"] <= start]
        self._writes, self._tensorboard = writes, tensorboard
        if writes:
            from torch.utils.tensorboard import SummaryWriter

            self._hook, threading.excepthook = (
                threading.excepthook,
                _quiet_about_tensorboard(threading.excepthook),
            )
            write_jsonl(path, before if ends_here else self._rows)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
            self._board = SummaryWriter(
                str(tensorboard), purge_step=start + 1 if start and not ends_here else None
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row."""
        row = {"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        self._rows.append(row)
        if self._writes:
            with explained(self._path):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
            self.draw(step, values)

    def draw(self, step: int, values: Mapping[str, float]) -> None:
        """Write to TensorBoard only. Names without a group get the group `train/`."""
        if self._writes:
            with explained(self._tensorboard):
                for name, value in values.items():
                    self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def picture(self, step: int, sheet: Image.Image) -> None:
        """Save the validation pictures of a step in `samples/` and TensorBoard."""
        if self._writes:
            save_png(sheet, self._path.parent / "samples" / f"step-{step:06d}.png")
            with explained(self._tensorboard):
                self._board.add_image("validation/pictures", np.asarray(sheet), step, dataformats="HWC")

    def mean_loss(self) -> float | None:
        return mean_loss(self._rows)

    def flush(self) -> None:
        if self._writes:
            with explained(self._tensorboard):
                self._board.flush()

    def close(self) -> None:
        if self._writes:
            with explained(self._tensorboard):
                self._board.close()
            self._file.close()
            threading.excepthook = self._hook


def _quiet_about_tensorboard(
    hook: Callable[[threading.ExceptHookArgs], object],
) -> Callable[[threading.ExceptHookArgs], object]:
    """Silence the traceback of TensorBoard's writing thread. The thread passes its error (a full disk) to the
    next call anyway.
    """

    def quiet(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            hook(args)

    return quiet


def mean_loss(rows: list[dict[str, Any]]) -> float | None:
    """Mean over the last 50 steps: the loss of a single step says little, since t is drawn anew each time."""
    return sum(row["loss"] for row in rows[-50:]) / len(rows[-50:]) if rows else None


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: of the card since `forget_peak` if there is one, else of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def duration(seconds: float) -> str:
    """A duration for display: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
