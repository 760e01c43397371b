"""Training state on disk: whole or absent, verified when read, without pickle."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.store import read_json, sha256_file, write_json

log = logging.getLogger(__name__)
STATE, ABOUT = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], keep: int) -> None:
    """Publish `folder/step-<step>` by one rename, then delete all but the `keep` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / f"step-{step:08d}", folder / f".part-{step}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part / STATE)
    with open(part / STATE, "rb") as file:
        os.fsync(file.fileno())
    write_json(part / ABOUT, {"step": step, "sha256": sha256_file(part / STATE)})
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Step and tensors of the newest checkpoint that is whole; damaged ones are passed over with a warning."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            about = read_json(path / ABOUT)
            if sha256_file(path / STATE) == about["sha256"]:
                return int(about["step"]), load_file(path / STATE)
            log.warning("The checkpoint %s is damaged; going back to the one before.", path)
        except Exception as error:  # whatever a damaged folder brings up, the one before it may be whole
            log.warning("The checkpoint %s cannot be read (%s); going back to the one before.", path, error)
    return None
