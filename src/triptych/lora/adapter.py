"""Add, load and save a transformer's LoRA: peft layers, safetensors files only.

Any format in `lora.names` can be read (`lora.file` opens files). A written file holds
`transformer.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank) with alpha folded in (alpha =
rank), so that every program applies it at the same strength. Its metadata records what it was trained for.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.compute.swap import resident_parameter
from triptych.errors import ModelError
from triptych.lora.file import (
    LoraFile,
    LoraHeader,
    open_lora,
    read_about,
    read_header,
    read_lora,
)
from triptych.lora.find import FILE_NAME, lora_file
from triptych.lora.formats import scaled
from triptych.lora.layers import ADAPTER, lora_switched_off, shorten
from triptych.lora.models import TITLES
from triptych.lora.names import table_of
from triptych.lora.strength import is_about_strength
from triptych.lora.targets import from_diffusers
from triptych.pictures.panels import PanelLayout
from triptych.store.files import publish

log = logging.getLogger(__name__)

PREFIX = "transformer."


def add_lora(
    transformer: nn.Module, layers: Sequence[str], rank: int, alpha: float, dropout: float, seed: int
) -> list[nn.Parameter]:
    """Add a trainable LoRA (A gaussian, B zero: no change at first). Returns its parameters, in float32.

    layers: paths of the linear layers to adapt, see `Backbone.lora_layers`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(layers),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer, ADAPTER)
    shorten(transformer)
    parameters = [p for name, p in transformer.named_parameters() if "lora_" in name]
    device = resident_parameter(transformer).device
    for parameter in parameters:
        parameter.data = parameter.data.to(device, torch.float32)
        parameter.requires_grad_(True)
    return parameters


def lora_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by diffusers name, without prefix. They stay the same while the model lives."""
    marks = tuple(f".{part}.{ADAPTER}." for part in ("lora_A", "lora_B"))
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in transformer.named_parameters()
        if any(mark in name for mark in marks)
    }


def lora_state(transformer: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by diffusers name, without prefix."""
    return {name: parameter.detach() for name, parameter in lora_parameters(transformer).items()}


def set_lora(transformer: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy tensors, by the names of `lora_state`, into the transformer's LoRA."""
    put_into(lora_state(transformer), values)


def put_into(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy the values into a LoRA's own tensors, by name."""
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(values[name])


def save_lora(
    path: Path, state: Mapping[str, Tensor], rank: int, alpha: float, about: Mapping[str, Any]
) -> None:
    """Write a LoRA file for `load_lora_weights` of diffusers' pipelines and for ComfyUI. Folds alpha/rank
    into lora_B.
    """
    folded = {k: scaled(v.float(), alpha / rank) if ".lora_B." in k else v.float() for k, v in state.items()}
    write_lora(path, folded, about)


def write_lora(
    path: Path,
    state: Mapping[str, Tensor],
    about: Mapping[str, Any],
    target: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA in one of `targets.TARGETS`. state: tensors by diffusers name without prefix, alpha folded
    in.

    about: triptych's own metadata; its `family` decides the names. metadata: that of an older file; entries
    that are still true are kept.
    """
    # Parts of a fused layer share their lora_A in memory; safetensors needs a separate copy of each tensor.
    tensors = {
        key: t.cpu().clone(memory_format=torch.contiguous_format)
        for key, t in from_diffusers(state, target, table_of(about.get("family", "flux"))).items()
    }
    kept = {
        key: value
        for key, value in (metadata or {}).items()
        if not key.startswith(_OUTDATED) and not is_about_strength(key, value)
    }
    entries = {**modelspec(about), **kept, "format": "pt", "modelspec.implementation": target}
    if about:
        entries["triptych"] = json.dumps(dict(about), default=str, sort_keys=True)
    if target == "diffusers":
        entries["lora_adapter_metadata"] = json.dumps(_adapter_metadata(state), sort_keys=True)
    with publish(path) as temporary:
        save_file(tensors, temporary, metadata=entries)


# Keys of metadata about the tensors, scales or hash of the old file, which is outdated in a new one.
_OUTDATED = ("format", "modelspec.hash", "modelspec.implementation", "sshs_", "triptych")

# Per base model: its family, a pattern in its name, its name in modelspec, and the licence note for whoever
# passes the LoRA on.
_BASES = (
    (
        "flux",
        r"flux\.1-dev",
        "flux-1-dev",
        "Trained on FLUX.1 [dev]: its Non-Commercial License covers this LoRA too.",
    ),
    ("flux", r"flux\.1-schnell", "flux-1-schnell", "Trained on FLUX.1 [schnell], which is under Apache-2.0."),
    ("flux", "pocket", "flux-1-pocket", "Trained on triptych's pocket model, which is under Apache-2.0."),
    (
        "flux2",
        "pocket",
        "flux-2-klein-pocket",
        "Trained on triptych's klein pocket, which is under Apache-2.0.",
    ),
    (
        "flux2",
        r"klein[-_. ]?(base[-_. ]?)?4b",
        "flux-2-klein-4b",
        "Trained on FLUX.2 [klein] 4B, which is under Apache-2.0.",
    ),
    (
        "flux2",
        r"klein[-_. ]?(base[-_. ]?)?9b",
        "flux-2-klein-9b",
        "Trained on FLUX.2 [klein] 9B: the FLUX Non-Commercial License covers this LoRA too.",
    ),
    (
        "flux2",
        r"flux[-_. ]?2[-_. ]?dev",
        "flux-2-dev",
        "Trained on FLUX.2 [dev]: the FLUX Non-Commercial License covers this LoRA too.",
    ),
    ("flux2", "", "flux-2", "The licence of the base model covers this LoRA too."),
    ("flux", "", "flux-1", "The licence of the base model covers this LoRA too."),
    ("sd3", "", "stable-diffusion-3", "The licence of the base model covers this LoRA too."),
    ("", "", "unknown", "The licence of the base model covers this LoRA too."),
)


def modelspec(about: Mapping[str, Any]) -> dict[str, str]:
    """Metadata that other programs show, by Stability AI's modelspec 1.0.0."""
    base, family = str(about.get("base_model", "")), about.get("family", "flux")
    architecture, licence = next(
        row[2:] for row in _BASES if row[0] in ("", family) and re.search(row[1], base.lower())
    )
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
        fields["modelspec.usage_hint"] = (
            f"{len(layout.roles)} panels on one canvas, made: {', '.join(layout.made)}; "
            f"{about.get('context', 'noisy')} context{_placed(about)}"
        )
    return fields


def _placed(about: Mapping[str, Any]) -> str:
    return f", {about['context_placement']} placement" if "context_placement" in about else ""


def _adapter_metadata(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A peft config in the form that diffusers reads. Patterns begin with `^`, so that peft does not use one
    layer's rank for another whose name has the same ending.
    """
    ranks = {
        key.removesuffix(".lora_A.weight"): tensor.shape[0]
        for key, tensor in state.items()
        if key.endswith(".lora_A.weight")
    }
    most = max(ranks.values())
    config: dict[str, Any] = {"r": most, "lora_alpha": most, "target_modules": sorted(ranks)}
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != most}
    if others:
        config["rank_pattern"] = config["alpha_pattern"] = others
    return {PREFIX + key: value for key, value in config.items()}


def load_lora(transformer: nn.Module, path: Path, scale: float = 1.0) -> dict[str, Any]:
    """Apply a LoRA file to a transformer at strength `scale`. Returns triptych's metadata of the file.

    Raises:
        ModelError: see `open_lora`; or a layer, which the error names, does not fit this model.
    """
    file = open_lora(path)
    file.refuse_other_models()
    for warning in file.warnings:
        log.warning("%s: %s", file.path, warning)
    state, about = file.state, file.about
    modules = dict(transformer.named_modules())
    try:
        file.model.refuse_use_on(modules, file.diffusers_layers)
    except ModelError as error:
        raise ModelError(f"The LoRA {path} {error.message}.", error.hint) from error
    ranks = {
        key.removesuffix(".lora_A.weight"): tensor.shape[0]
        for key, tensor in state.items()
        if key.endswith(".lora_A.weight")
    }
    for name in ranks:
        linear, down, up = modules.get(name), state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        if not isinstance(linear, nn.Linear) or (up.shape[0], down.shape[1]) != (
            linear.out_features,
            linear.in_features,
        ):
            trained = f" It was trained on {file.model.title}." if file.model.certain else ""
            problem = f"The LoRA {path} does not fit this model at '{name}'.{trained}"
            raise ModelError(problem, "Use it with the model it was trained on.")
    most = max(ranks.values())
    # A pattern, because peft matches the names in a list as endings: `proj_out` is a layer's full name and
    # also the ending of others.
    only = "|".join(map(re.escape, ranks))
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most, lora_alpha=most, target_modules=only, rank_pattern=pattern, alpha_pattern=pattern
    )
    inject_adapter_in_model(config, transformer, ADAPTER)
    shorten(transformer)
    set_peft_model_state_dict(transformer, state, adapter_name=ADAPTER)
    base = resident_parameter(transformer)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(ADAPTER, scale)
            module.lora_A[ADAPTER].to(base.device, base.dtype).requires_grad_(False)
            module.lora_B[ADAPTER].to(base.device, base.dtype).requires_grad_(False)
    return about


__all__ = [
    "TITLES",
    "FILE_NAME",
    "LoraFile",
    "LoraHeader",
    "add_lora",
    "load_lora",
    "lora_file",
    "lora_parameters",
    "lora_state",
    "lora_switched_off",
    "open_lora",
    "put_into",
    "read_about",
    "read_header",
    "read_lora",
    "save_lora",
    "set_lora",
    "write_lora",
]
