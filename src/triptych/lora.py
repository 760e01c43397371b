"""LoRA in and out of a transformer: peft layers, diffusers names, safetensors only.

A LoRA file holds `transformer.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank) with alpha folded in
(alpha = rank), so that every program applies it at the same strength. Its metadata says what it was trained for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


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
    """Write a LoRA file that `FluxPipeline.load_lora_weights` and ComfyUI read. alpha/rank is folded into lora_B."""
    scale = alpha / rank
    tensors = {PREFIX + k: (v * scale if ".lora_B." in k else v).float().contiguous().cpu() for k, v in state.items()}
    config = {"r": rank, "lora_alpha": rank, "target_modules": sorted({k.split(".lora_")[0] for k in state})}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({PREFIX + key: value for key, value in config.items()}, sort_keys=True),
        "triptych": json.dumps(dict(about), default=str, sort_keys=True),
    }
    with publish(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def lora_file(path: Path) -> Path:
    """The LoRA file meant by a file, a folder that holds one, or a work folder.

    Raises:
        ModelError: there is none.
    """
    for candidate in (path, path / FILE_NAME, path / "lora" / FILE_NAME):
        if candidate.is_file():
            return candidate
    raise ModelError(f"There is no LoRA at {path}.", f"Give a .safetensors file or a folder with {FILE_NAME}.")


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by module name (without prefix) with alpha folded in, and what the file says about itself.

    Raises:
        ModelError: not a safetensors file, or keys in other than diffusers names.
    """
    file = lora_file(Path(path))
    try:
        with safe_open(file, framework="pt") as stream:
            state = {key: stream.get_tensor(key) for key in stream.keys()}
            metadata = stream.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is no safetensors file: {error}.", "LoRA files in pickle formats are not read.") from error
    foreign = [key for key in state if not (key.startswith(PREFIX) and ".lora_" in key)]
    if foreign or not state:
        raise ModelError(
            f"{file} is not in diffusers names: it has the key '{foreign[0] if foreign else '(none)'}'.",
            "Keys must look like transformer.<module>.lora_A.weight.",
        )
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise ModelError(f"{file} holds numbers that are not finite.", "It was damaged or its training diverged; train again.")
    try:
        about = dict(json.loads(metadata.get("triptych", "{}")))
        adapter = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except ValueError as error:
        raise ModelError(f"The metadata of {file} is damaged: {error}.", "Save or download the file again.") from error
    state = {key.removeprefix(PREFIX): value for key, value in state.items()}
    for key, tensor in state.items():
        if ".lora_B." in key and PREFIX + "r" in adapter:
            name, rank = key.split(".lora_")[0], tensor.shape[1]
            alpha = (adapter.get(PREFIX + "alpha_pattern") or {}).get(name, adapter.get(PREFIX + "lora_alpha", rank))
            state[key] = tensor * (float(alpha) / rank)
    return state, about


def load_lora(transformer: nn.Module, path: Path, scale: float = 1.0) -> dict[str, Any]:
    """Apply a LoRA file to a transformer at a strength; what the file says about itself.

    Raises:
        ModelError: see `read_lora`; or a tensor that does not fit this model, by name.
    """
    state, about = read_lora(path)
    modules = dict(transformer.named_modules())
    for key, tensor in state.items():
        name = key.split(".lora_")[0]
        linear = modules.get(name)
        side = 1 if ".lora_A." in key else 0
        sides = (linear.out_features, linear.in_features) if isinstance(linear, nn.Linear) else (-1, -1)
        if tensor.ndim != 2 or tensor.shape[side] != sides[side]:
            raise ModelError(f"The LoRA {path} does not fit this model at '{name}'.", "Use it with the model it was trained on.")
    ranks = {key.split(".lora_")[0]: tensor.shape[0] for key, tensor in state.items() if ".lora_A." in key}
    if {2 * len(ranks)} != {len(state)}:
        raise ModelError(f"The LoRA {path} lacks a lora_A or lora_B.", "The file is incomplete; save or download it again.")
    most = max(ranks.values())
    config = LoraConfig(r=most, lora_alpha=most, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks)
    inject_adapter_in_model(config, transformer, ADAPTER)
    set_peft_model_state_dict(transformer, state, adapter_name=ADAPTER)
    dtype = next(p.dtype for name, p in transformer.named_parameters() if "lora_" not in name)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(ADAPTER, scale)
            module.lora_A[ADAPTER].to(dtype).requires_grad_(False)
            module.lora_B[ADAPTER].to(dtype).requires_grad_(False)
    return about
