"""Training state on disk: written atomically, verified on reading, without pickle."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.store.files import publish, read_json, rename, sha256_file, write_json

log = logging.getLogger(__name__)
STATE, ABOUT = "state.safetensors", "state.json"
AT_ONCE = 64 << 20
"""Bytes of a state that are copied from a card at once, and as many that this takes there meanwhile."""


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, float],
    keep: int,
    add: Callable[[Path], None] = lambda part: None,
) -> None:
    """Publish `folder/step-<step>` by one rename, then delete all but the `keep` newest checkpoints up to it.

    Checkpoints of later steps are deleted too: they are damaged, and the training has gone back to an earlier
    one. add: writes further files into the checkpoint before it is published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".part-*"):
        shutil.rmtree(unfinished)
    target, part = folder / f"step-{step:08d}", folder / f".part-{step}"
    part.mkdir()
    try:
        metadata = {"numbers": json.dumps(dict(numbers))}
        with publish(part / STATE) as state:
            save_file(_copies(tensors), state, metadata)
        add(part)
        write_json(part / ABOUT, {"step": step, "sha256": sha256_file(part / STATE)})
        shutil.rmtree(target, ignore_errors=True)
        rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _prune(folder, target, keep)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own: some optimizers share a tensor between parameters, and
    safetensors refuses that.

    Those of a card come many at a time, because every copy waits until the card has done all it was told.
    """
    kinds: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        kinds.setdefault((tensor.device, tensor.dtype), []).append(name)
    made: dict[str, Tensor] = {}
    for names in kinds.values():
        group, size = list[str](), 0
        for name in names:
            group, size = [*group, name], size + tensors[name].nbytes
            if size >= AT_ONCE or name == names[-1]:
                flat = torch.cat([tensors[one].detach().reshape(-1) for one in group]).cpu()
                parts = flat.split([tensors[one].numel() for one in group])
                made |= {
                    one: part.view(tensors[one].shape).clone() for one, part in zip(group, parts, strict=True)
                }
                group, size = [], 0
    return {name: made[name] for name in tensors}


def _prune(folder: Path, target: Path, keep: int) -> None:
    """Delete old and damaged checkpoints as `save_checkpoint` describes. target: the newly published one."""
    standing = sorted(folder.glob("step-*"))
    place = standing.index(target)
    for old in [*standing[: max(0, place + 1 - keep)], *standing[place + 1 :]]:
        shutil.rmtree(old)


def steps_saved(folder: Path) -> list[int]:
    """The steps that have a checkpoint in `folder`, in order."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def load_newest(
    folder: Path, at_most: int | None = None
) -> tuple[int, dict[str, Tensor], dict[str, float]] | None:
    """Step, tensors and numbers of the newest intact checkpoint up to step `at_most`; None if there is none.
    Damaged ones are skipped with a warning.
    """
    found = [
        folder / f"step-{step:08d}"
        for step in reversed(steps_saved(folder))
        if at_most is None or step <= at_most
    ]
    for path in found:
        try:
            about = read_json(path / ABOUT)
            if sha256_file(path / STATE) == about["sha256"]:
                with safe_open(path / STATE, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
                    return int(about["step"]), tensors, json.loads(file.metadata()["numbers"])
            log.warning("The checkpoint %s is damaged; going back to the one before.", path)
        except Exception as error:  # a damaged folder can raise any error; try the one before
            log.warning("The checkpoint %s cannot be read (%s); going back to the one before.", path, error)
    if found:
        log.warning("No checkpoint in %s is intact; starting from the beginning.", folder)
    return None
