"""What somebody asks of a running training: a file in its folder, which the training looks for between steps.

    touch work/lora/save.request    keep the LoRA of this step, in saved/step-<step>/
    touch work/lora/stop.request    stop as after Ctrl-C: the step at hand is finished and saved

It takes no number of a process, so it works from another container, from another machine that shares the
folder, and for a training that a launcher runs in several processes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

SAVE, STOP = "save.request", "stop.request"
SAVED = "saved"
"""Folder of LoRAs that somebody asked for; unlike checkpoints they are never deleted."""


def ask(folder: Path, what: str) -> None:
    """Leave a request, `SAVE` or `STOP`, for the training in a folder."""
    (folder / what).touch()


def taken(folder: Path, what: str) -> bool:
    """Whether there was such a request; it is gone now."""
    try:
        (folder / what).unlink()
    except FileNotFoundError:
        return False
    return True


def forget(folder: Path) -> None:
    """Drop requests that were left for an earlier run."""
    for what in (SAVE, STOP):
        with contextlib.suppress(FileNotFoundError):
            (folder / what).unlink()


def saved_folder(folder: Path, step: int) -> Path:
    """Where the LoRA of a step is kept."""
    return folder / SAVED / f"step-{step:08d}"
