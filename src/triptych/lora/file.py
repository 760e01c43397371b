"""Find, open and check LoRA files. A LoRA file may come from anybody, so nothing in it is trusted.

`read_header` reads only names, shapes and metadata, in milliseconds for a file of any size; `open_lora` also
reads the matrices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.backbones.settings import ContextMode, ContextPlacement, ContextReading
from triptych.data.captions import markers_of
from triptych.errors import InputError, ModelError
from triptych.lora.find import PEFT_CONFIG, PEFT_NAME, lora_file
from triptych.lora.formats import Layer, layers_of, to_diffusers
from triptych.lora.models import TITLES, Model, model_of, said_family
from triptych.lora.refused import TEXT_ENCODER
from triptych.lora.strength import PeftConfig, json_object, peft_config, strengths
from triptych.pictures.panels import PLAIN_ROLE, PanelLayout
from triptych.store.text import read_text

PEFT_BYTES = 4 << 20
"""Size limit of adapter_config.json in bytes. One with a rank and an alpha per layer of FLUX.1-dev has about
100 KB.
"""


@dataclass(frozen=True)
class LoraHeader:
    """A LoRA file without its matrices: the layers' tensors are on the device `meta`."""

    path: Path
    layers: list[Layer]
    scales: dict[str, float]
    """The factor of each layer's change, alpha/rank, by the layer's name."""
    about: dict[str, Any]
    """The metadata that triptych wrote; empty for other programs' files."""
    metadata: dict[str, str]
    left_out: int
    """Number of text encoder tensors that were skipped on request."""
    model: Model
    """The model that it was trained for."""
    warnings: tuple[str, ...]
    """Warnings for users of the file."""

    @property
    def family(self) -> str:
        """The model family, by the names and sizes of the layers."""
        return self.model.family

    @property
    def diffusers_layers(self) -> list[str]:
        """The diffusers layers that the file adapts."""
        return [part for layer in self.layers for part in layer.parts]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each diffusers layer that the file adapts on its own; layers in a fused one are
        missing.
        """
        return {
            layer.parts[0]: (layer.up.shape[0], layer.down.shape[1])
            for layer in self.layers
            if len(layer.parts) == 1
        }

    def refuse_other_models(self) -> None:
        """
        Raises:
            ModelError: the LoRA is for a model that is not supported.
        """
        try:
            self.model.refuse_other()
        except ModelError as error:
            raise ModelError(f"{self.path} {error.message}.", error.hint) from error


@dataclass(frozen=True)
class LoraFile(LoraHeader):
    """A LoRA file, read and checked. `state`: tensors by diffusers name without prefix, alpha folded in."""

    state: dict[str, Tensor]


def open_lora(path: Path, transformer_only: bool = False) -> LoraFile:
    """Read a LoRA file of any format in `names`; `transformer_only` skips its part for text encoders.

    Raises:
        ModelError: not a safetensors file, invalid metadata or tensors, an ambiguous strength, or a key of no
            known format.
    """
    file = lora_file(Path(path))
    tensors, metadata = _read(file, values=True)
    try:
        header = _header(file, tensors, metadata, transformer_only)
        state = to_diffusers(header.layers, header.scales)
    except ModelError as error:
        raise ModelError(f"{file} {error.message}.", error.hint) from error
    return LoraFile(**header.__dict__, state=state)


def read_header(path: Path, transformer_only: bool = False) -> LoraHeader:
    """Read only the header of a LoRA file. Makes every check of `open_lora` that needs no matrix.

    Raises:
        ModelError: see `open_lora`.
    """
    file = lora_file(Path(path))
    try:
        stamps = tuple(
            (s.st_mtime_ns, s.st_size)
            for one in (file, file.with_name(PEFT_CONFIG))
            if one.exists()
            for s in [one.stat()]
        )
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.", "Check who may read it.") from error
    return _read_header(file, transformer_only, stamps)


@lru_cache(maxsize=16)
def _read_header(file: Path, transformer_only: bool, stamps: tuple[tuple[int, int], ...]) -> LoraHeader:
    """Cached, because a batch asks once per picture. `stamps` change whenever the file changes."""
    tensors, metadata = _read(file, values=False)
    try:
        return _header(file, tensors, metadata, transformer_only)
    except ModelError as error:
        raise ModelError(f"{file} {error.message}.", error.hint) from error


def read_about(path: Path) -> dict[str, Any]:
    """The metadata that triptych wrote into a LoRA file: layout, context, base model, recipe. Empty for other
    programs' files.

    Raises:
        ModelError: see `open_lora`.
    """
    return dict(read_header(path).about)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by module name (without prefix) with alpha folded in, and triptych's metadata of the file.

    Raises:
        ModelError: see `open_lora`.
    """
    file = open_lora(path)
    return file.state, file.about


def _read(file: Path, *, values: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Without `values`, all tensors except alphas are on `meta`, as shapes alone."""
    try:
        with safe_open(file, framework="pt") as stream:
            tensors = {}
            for key in stream.keys():
                about = stream.get_slice(key)
                if values or (key.endswith(".alpha") and math.prod(about.get_shape()) == 1):
                    tensors[key] = stream.get_tensor(key)
                else:
                    tensors[key] = torch.empty(
                        about.get_shape(), dtype=_DTYPES.get(about.get_dtype(), torch.uint8), device="meta"
                    )
            return tensors, dict(stream.metadata() or {})
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ModelError(f"{file} is no safetensors file: {error}.", _hint_for(file)) from error


def _hint_for(file: Path) -> str:
    """The hint for a file that is no safetensors file, by its first bytes."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(64)
    except OSError:
        return "Check the path and who may read it."
    if start.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the file itself: run `git lfs pull`."
    if start.lstrip().startswith(b"<"):
        return "It is a web page, such as a download that needs a login saves: download the file again."
    if not start or start[8:9] == b"{":
        return "It is cut off or damaged: download it again."
    return "LoRA files in pickle formats are not read."


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "C64": torch.complex64,
}
_DTYPES |= {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
}
_DTYPES |= {"I8": torch.int8}


def _header(
    file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], transformer_only: bool
) -> LoraHeader:
    kept = {
        key: tensor for key, tensor in tensors.items() if not (transformer_only and TEXT_ENCODER.match(key))
    }
    about = _about(metadata)
    config = _config_beside(file)
    base = str(config.get("base_model_name_or_path") or "")
    layers = layers_of(kept, said_family(about, metadata, base))
    scales, warnings = _strengths(file, layers, metadata, config)
    model = model_of(layers, about, metadata, base)
    return LoraHeader(
        file, layers, scales, about, metadata, len(tensors) - len(kept), model, (*model.warnings, *warnings)
    )


def _config_beside(file: Path) -> dict[str, Any]:
    """The adapter_config.json beside a file; empty if there is none."""
    beside = file.with_name(PEFT_CONFIG)
    if not beside.exists():
        return {}
    hint = "Download the folder again; or move the file elsewhere, if that config is not its own."
    try:
        config = json.loads(read_text(beside, PEFT_BYTES, "The peft config"))
    except (InputError, ValueError, RecursionError) as error:
        raise ModelError(f"has an {PEFT_CONFIG} beside it that cannot be read", hint) from error
    if not isinstance(config, dict):
        raise ModelError(f"has an {PEFT_CONFIG} beside it that is no JSON object", hint)
    return config


def _strengths(
    file: Path, layers: list[Layer], metadata: dict[str, str], config: dict[str, Any]
) -> tuple[dict[str, float], list[str]]:
    """See `strengths`. If neither the file's name nor its keys are peft's, a config beside it counts only if
    the file states no strength, and must then say strength 1.
    """
    if file.name == PEFT_NAME or any(layer.name.startswith("base_model.model.") for layer in layers):
        return strengths(layers, metadata, _config_of(config))
    scales, warnings = strengths(layers, metadata, None)
    silent = config and all(layer.alpha is None for layer in layers) and set(scales.values()) == {1.0}
    if silent:
        hint = (
            f"If that config is the file's own, name the file {PEFT_NAME}; if not, move it to another folder."
        )
        try:
            said = strengths(layers, metadata, _config_of(config))[0]
        except ModelError as error:
            problem = f"does not say how strong it is, and by the {PEFT_CONFIG} beside it, it {error.message}"
            raise ModelError(problem, hint) from error
        if said != scales:
            problem = (
                f"does not say how strong it is, and the {PEFT_CONFIG} beside it says another strength than 1"
            )
            raise ModelError(problem, hint)
    return scales, warnings


def _config_of(config: dict[str, Any]) -> PeftConfig | None:
    return peft_config(config, PEFT_CONFIG) if config else None


MOST_PANELS = 16
LARGEST_PANEL = 8192
"""Largest side of a panel, in pixels."""


def checked_layout(data: Any) -> PanelLayout:
    """The panel layout that a file's metadata describes.

    Raises:
        ModelError: the data describes no panels, or impossible ones. The message lacks the file's name; the
            caller puts it in front.
    """
    hint = "Save or download the file again."
    wanted = {"width", "height", "roles", "columns"}
    if not isinstance(data, dict) or not wanted <= data.keys():
        raise ModelError("has metadata that describes no panels", hint)
    sides = [data["width"], data["height"], data["columns"]]
    if any(type(side) is not int for side in sides) or not all(1 <= side <= LARGEST_PANEL for side in sides):
        raise ModelError(f"has metadata that describes no panels: none has {_size_words(sides)}", hint)
    roles = data["roles"]
    named = isinstance(roles, list) and all(
        isinstance(role, str) and PLAIN_ROLE.fullmatch(role) for role in roles
    )
    if not named or not 1 <= len(roles) <= MOST_PANELS or len(set(roles)) != len(roles):
        raise ModelError(
            "has metadata that describes no panels: their roles are no list of different plain words", hint
        )
    if len(roles) % data["columns"]:
        problem = (
            f"has metadata that describes no panels: {len(roles)} roles do not fill rows of {data['columns']}"
        )
        raise ModelError(problem, hint)
    made = data.get("made", [])
    if not isinstance(made, list) or any(role not in roles for role in made):
        raise ModelError("has metadata that describes no panels: what it makes are none of its roles", hint)
    trim = data.get("trim")
    if trim is not None and (type(trim) not in (int, float) or not 0 <= trim <= 1):
        raise ModelError("has metadata that describes no panels: they are trimmed by no share", hint)
    return PanelLayout(data["width"], data["height"], tuple(roles), data["columns"], tuple(made), trim)


def _size_words(sides: list[Any]) -> str:
    width, height, columns = (str(side)[:20] for side in sides)
    return f"{width}×{height} px in {columns} columns"


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that triptych wrote. The entries that the code uses are checked."""
    about = json_object(metadata, "triptych")
    if "layout" in about:
        layout = checked_layout(about["layout"])
        if "markers" in about and not markers_of(about["markers"], len(layout.roles)):
            del about["markers"]
    hint = "Save or download the file again."
    known = {"context": ("noisy", ContextMode), "context_reading": ("joint", ContextReading)}
    if any(about.get(name, usual) not in get_args(kind) for name, (usual, kind) in known.items()):
        raise ModelError("has metadata that describes no panels", hint)
    if about.get("context_placement", "canvas") not in get_args(ContextPlacement):
        raise ModelError("has metadata that names a placement of panels which is not known here", hint)
    if about.get("family", "flux") not in [*TITLES]:  # a list, because the value may be unhashable
        raise ModelError("has metadata that names a model family which is not known here", hint)
    if not isinstance(about.get("base_model", ""), str):  # only for display, so it may be missing
        del about["base_model"]
    if not isinstance(about.get("context_lora", False), bool):
        raise ModelError("has damaged metadata under 'triptych'", hint)
    return about
