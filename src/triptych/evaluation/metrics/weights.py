"""Reads the weights of a metric's network: safetensors, never pickles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from triptych.errors import ModelError
from triptych.store.files import sha256_file

CONVERT = "docs/evaluate.md has the lines that turn a .pth into safetensors."
_INDEX = re.compile(r"(?:.*\.)?(?:features|net\.slice\d+|stage\d+)\.(\d+)\.(.+)")


class Weights(NamedTuple):
    """The tensors of a file by name, the file's sha256 and the text in its header."""

    tensors: dict[str, torch.Tensor]
    sha256: str
    about: dict[str, str]

    def by_layer(self) -> dict[str, torch.Tensor]:
        """The tensors of the backbone under torchvision's numbers, `0.weight`: the published files of LPIPS
        and DISTS name the same layers `net.slice1.0.weight`, `stage1.0.weight`.
        """
        found = ((_INDEX.fullmatch(name), tensor) for name, tensor in self.tensors.items())
        return {f"{match[1]}.{match[2]}": tensor for match, tensor in found if match}


def read_weights(path: Path, what: str) -> Weights:
    """All tensors of a safetensors file, as float32.

    Raises:
        ModelError: missing, or no such file. what: noun for the message, such as `The weights of LPIPS`.
    """
    if not path.is_file():
        raise ModelError(f"{what} cannot be read: {path} is no file.", f"Give a .safetensors file. {CONVERT}")
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name).float() for name in stream.keys()}
            about = dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{what} cannot be read: {path} is no safetensors file.", CONVERT) from error
    return Weights(tensors, sha256_file(path), about)


def fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Copy tensors into a module, every one that it has; more are left aside.

    Raises:
        ModelError: one is missing or of another shape.
    """
    for name, target in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        found = tensors.get(name)
        if found is None or found.shape != target.shape:
            why = "is missing" if found is None else f"has the shape {list(found.shape)}"
            raise ModelError(f"{what} do not fit: {name} {why}, {list(target.shape)} is needed.", CONVERT)
        target.copy_(found)
