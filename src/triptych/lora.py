"""LoRA in and out of a transformer: peft layers, safetensors only.

Any format in `lora_formats` is read. What is written holds `transformer.<module>.lora_A.weight` (rank, in) and
`.lora_B.weight` (out, rank) with alpha folded in (alpha = rank), so that every program applies it at the same strength.
Its metadata says what it was trained for. A LoRA file is data from anywhere: nothing in it is taken on trust.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.errors import ModelError
from triptych.lora_formats import TEXT_ENCODER, Layer, family_of, from_diffusers, layers_of, scaled, shown, to_diffusers
from triptych.panels import PanelLayout
from triptych.store import publish

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
ADAPTER = "default"


def target_modules(transformer: nn.Module, suffixes: Sequence[str]) -> list[str]:
    """Full names of the linear layers inside blocks that end in one of `suffixes`."""
    linear = (name for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if "blocks." in name and name.endswith(tuple("." + s for s in suffixes))]


def add_lora(transformer: nn.Module, suffixes: Sequence[str], rank: int, alpha: float, dropout: float, seed: int) -> list[nn.Parameter]:
    """Add a trainable LoRA (A gaussian, B zero: no change at first); its parameters, in float32."""
    names = target_modules(transformer, suffixes)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, init_lora_weights="gaussian", target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer, ADAPTER)
    parameters = [p for name, p in transformer.named_parameters() if "lora_" in name]
    device = _base(transformer).device
    for parameter in parameters:
        parameter.data = parameter.data.to(device, torch.float32)
        parameter.requires_grad_(True)
    return parameters


def _base(transformer: nn.Module) -> nn.Parameter:
    """A parameter of the base model that shows its device and dtype: one outside the blocks, which may lie in RAM or be
    quantised."""
    return next(p for name, p in transformer.named_parameters() if "lora_" not in name and "blocks." not in name)


def lora_state(transformer: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by diffusers name, without prefix."""
    return get_peft_model_state_dict(transformer, adapter_name=ADAPTER)


@contextmanager
def lora_switched_off(transformer: nn.Module) -> Iterator[None]:
    """The base model alone, without gradients; the LoRA is back afterwards."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_lora(path: Path, state: Mapping[str, Tensor], rank: int, alpha: float, about: Mapping[str, Any]) -> None:
    """Write a LoRA file that `load_lora_weights` of diffusers' pipelines and ComfyUI read. alpha/rank is folded into lora_B."""
    folded = {k: scaled(v.float(), alpha / rank) if ".lora_B." in k else v.float() for k, v in state.items()}
    write_lora(path, folded, about)


def write_lora(
    path: Path, state: Mapping[str, Tensor], about: Mapping[str, Any], target: str = "diffusers", metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors in diffusers names without prefix, alpha folded in, as one of `lora_formats.TARGETS`.

    `about` is what triptych wants to know of the file; `metadata` is kept of an older file, as far as it is still true.
    """
    # Parts of a layer that was fused share their lora_A in memory; safetensors wants every tensor to itself.
    tensors = {key: t.cpu().clone(memory_format=torch.contiguous_format) for key, t in from_diffusers(state, target).items()}
    kept = {key: value for key, value in (metadata or {}).items() if not key.startswith(_OUTDATED)}
    entries = {**modelspec(about), **kept, "format": "pt", "modelspec.implementation": target}
    if about:
        entries["triptych"] = json.dumps(dict(about), default=str, sort_keys=True)
    if target == "diffusers":
        entries["lora_adapter_metadata"] = json.dumps(_adapter_metadata(state), sort_keys=True)
    with publish(path) as temporary:
        save_file(tensors, temporary, metadata=entries)


# Metadata that names tensors, scales or hashes of the file it was written for.
_OUTDATED = ("format", "lora_adapter_metadata", "modelspec.hash", "modelspec.implementation", "sshs_", "ss_network_", "triptych")

# A base model's family and what its name contains, its name in modelspec, and what holds for whoever passes the LoRA on.
_BASES = (
    ("flux", "flux.1-dev", "flux-1-dev", "Trained on FLUX.1 [dev]: its Non-Commercial License covers this LoRA too."),
    ("flux", "flux.1-schnell", "flux-1-schnell", "Trained on FLUX.1 [schnell], which is under Apache-2.0."),
    ("flux", "pocket", "flux-1-pocket", "Trained on triptych's pocket model, which is under Apache-2.0."),
    ("flux", "", "flux-1", "The licence of the base model covers this LoRA too."),
    ("sd3", "", "stable-diffusion-3", "The licence of the base model covers this LoRA too."),
    ("", "", "unknown", "The licence of the base model covers this LoRA too."),
)
FAMILIES = {"flux": "FLUX.1", "sd3": "Stable Diffusion 3"}
"""Names of the families, for people."""


def modelspec(about: Mapping[str, Any]) -> dict[str, str]:
    """The fields other programs show, in the terms of Stability AI's modelspec 1.0.0."""
    base, family = str(about.get("base_model", "")), about.get("family", "flux")
    architecture, licence = next(row[2:] for row in _BASES if row[0] in ("", family) and row[1] in base.lower())
    fields = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.title": "LoRA",
        "modelspec.license": licence,
    }
    if "layout" in about:
        layout = PanelLayout.from_dict(about["layout"])
        fields["modelspec.title"] = f"In-Context LoRA ({', '.join(layout.roles)})"
        fields["modelspec.resolution"] = "x".join(map(str, layout.size))
        fields["modelspec.usage_hint"] = f"{len(layout.roles)} panels on one canvas, {about.get('context', 'noisy')} context"
    return fields


def _adapter_metadata(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A peft config in the form diffusers reads. `^` keeps peft from taking one layer's rank for another that ends alike."""
    ranks = {key.removesuffix(".lora_A.weight"): tensor.shape[0] for key, tensor in state.items() if key.endswith(".lora_A.weight")}
    most = max(ranks.values())
    config: dict[str, Any] = {"r": most, "lora_alpha": most, "target_modules": sorted(ranks)}
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != most}
    if others:
        config["rank_pattern"] = config["alpha_pattern"] = others
    return {PREFIX + key: value for key, value in config.items()}


def lora_file(path: Path) -> Path:
    """The LoRA file meant by a file, a folder that holds one, or a work folder.

    Raises:
        ModelError: there is none.
    """
    if path.name == "state.safetensors" and (path.parent / FILE_NAME).is_file():  # the state of a training: its LoRA lies beside it
        return path.parent / FILE_NAME
    for candidate in (path, path / FILE_NAME, path / "lora" / FILE_NAME):
        if candidate.is_file():
            return candidate
    saved = sorted([*path.glob(f"checkpoints/step-*/{FILE_NAME}"), *path.glob(f"lora/checkpoints/step-*/{FILE_NAME}")])
    if saved:
        there = ", ".join(str(file.parent) for file in saved)
        hint = f"Give the LoRA of a checkpoint: {there}; or run the same `triptych train` again to its end."
        raise ModelError(f"The training in {path} has not come to its end: there is no finished LoRA.", hint)
    raise ModelError(f"There is no LoRA at {path}.", f"Give a .safetensors file or a folder with {FILE_NAME}.")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, read and checked. `state` is in diffusers names without prefix, alpha folded in."""

    path: Path
    layers: list[Layer]
    scales: dict[str, float]
    """By what each layer's change was multiplied: alpha/rank."""
    state: dict[str, Tensor]
    about: dict[str, Any]
    """What triptych wrote about it; empty for other programs' files."""
    metadata: dict[str, str]
    left_out: int
    """Tensors of text encoders that were left out on request."""

    @property
    def family(self) -> str:
        """The family of its model: what triptych wrote, else what the layers' names tell."""
        return str(self.about.get("family") or family_of(self.layers))


def open_lora(path: Path, transformer_only: bool = False) -> LoraFile:
    """Read a LoRA file of any format in `lora_formats`; with `transformer_only`, without its part for text encoders.

    Raises:
        ModelError: not a safetensors file, metadata or tensors that make no sense, or a key that no known format has.
    """
    file = lora_file(Path(path))
    try:
        with safe_open(file, framework="pt") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}
            metadata = dict(stream.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is no safetensors file: {error}.", "LoRA files in pickle formats are not read.") from error
    kept = {key: tensor for key, tensor in tensors.items() if not (transformer_only and TEXT_ENCODER.match(key))}
    try:
        about, adapter = _about(metadata), _json_object(metadata, "lora_adapter_metadata")
        layers = layers_of(kept)
        scales = {layer.name: _scale(layer, adapter) for layer in layers}
        state = to_diffusers(layers, scales)
    except ModelError as error:
        raise ModelError(f"{file} {error.message}.", error.hint) from error
    return LoraFile(file, layers, scales, state, about, metadata, len(tensors) - len(kept))


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by module name (without prefix) with alpha folded in, and what the file says about itself.

    Raises:
        ModelError: see `open_lora`.
    """
    file = open_lora(path)
    return file.state, file.about


def _json_object(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"has damaged metadata under {shown(key)}", "Save or download the file again.")
    return value


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    about = _json_object(metadata, "triptych")
    try:
        if "layout" in about:
            layout = PanelLayout.from_dict(about["layout"])
            assert all(isinstance(role, str) for role in layout.roles)
        if about.get("context", "noisy") not in ("noisy", "clean") or about.get("context_reading", "joint") not in ("joint", "products"):
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError, AssertionError) as error:
        raise ModelError("has metadata that describes no panels", "Save or download the file again.") from error
    return about


def _scale(layer: Layer, adapter: Mapping[str, Any]) -> float:
    """alpha/rank, from the file's alpha or from its peft config; without both, trainers mean 1."""
    own = layer.alpha / layer.rank if layer.alpha is not None else None
    told = _peft_scale(layer, adapter)
    if own is not None and told is not None and not math.isclose(own, told, rel_tol=1e-3):
        problem = f"gives {shown(layer.name)} two strengths: {own:g} by its alpha, {told:g} by its peft config"
        raise ModelError(problem, "Export it again from the program that trained it.")
    return next((scale for scale in (own, told) if scale is not None), 1.0)


def _peft_scale(layer: Layer, adapter: Mapping[str, Any]) -> float | None:
    if PREFIX + "r" not in adapter:
        return None
    if adapter.get(PREFIX + "use_dora"):
        raise ModelError("is a DoRA, which is more than a LoRA", "Merge it into the base model, and extract a plain LoRA.")
    pattern = adapter.get(PREFIX + "alpha_pattern") or {}
    alpha = adapter.get(PREFIX + "lora_alpha", layer.rank)
    for name, value in pattern.items() if isinstance(pattern, dict) else ():
        # peft takes the names as regular expressions; those in files are names or ends of names.
        exact = name.removeprefix("^")
        if layer.parts[0] == exact or (exact == name and layer.parts[0].endswith("." + exact)):
            alpha = value
            break
    good = isinstance(pattern, dict) and isinstance(alpha, (int, float)) and 0 < alpha < 1e9
    if not good:
        raise ModelError(f"has no usable alpha for {shown(layer.name)} in its peft config", "Save or download the file again.")
    return float(alpha) / (math.sqrt(layer.rank) if adapter.get(PREFIX + "use_rslora") else layer.rank)


def load_lora(transformer: nn.Module, path: Path, scale: float = 1.0) -> dict[str, Any]:
    """Apply a LoRA file to a transformer at a strength; what the file says about itself.

    Raises:
        ModelError: see `open_lora`; or a layer that does not fit this model, by name.
    """
    state, about = read_lora(path)
    modules = dict(transformer.named_modules())
    ranks = {key.removesuffix(".lora_A.weight"): tensor.shape[0] for key, tensor in state.items() if key.endswith(".lora_A.weight")}
    for name in ranks:
        linear, down, up = modules.get(name), state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        if not isinstance(linear, nn.Linear) or (up.shape[0], down.shape[1]) != (linear.out_features, linear.in_features):
            raise ModelError(f"The LoRA {path} does not fit this model at '{name}'.", "Use it with the model it was trained on.")
    most = max(ranks.values())
    # As a list, peft would take names as ends of names: `proj_out` is both a layer of its own and the end of others.
    only = "|".join(map(re.escape, ranks))
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    config = LoraConfig(r=most, lora_alpha=most, target_modules=only, rank_pattern=pattern, alpha_pattern=pattern)
    inject_adapter_in_model(config, transformer, ADAPTER)
    set_peft_model_state_dict(transformer, state, adapter_name=ADAPTER)
    base = _base(transformer)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(ADAPTER, scale)
            module.lora_A[ADAPTER].to(base.device, base.dtype).requires_grad_(False)
            module.lora_B[ADAPTER].to(base.device, base.dtype).requires_grad_(False)
    return about
