"""Find the family, the device and the dtype for a model."""

from __future__ import annotations

from pathlib import Path

import torch

from triptych.backbones.contract import Backbone
from triptych.backbones.flux.model import Flux
from triptych.backbones.flux2.model import Flux2
from triptych.backbones.model_folder import check_files, no_backbone
from triptych.backbones.sd3.model import SD3
from triptych.backbones.settings import model_class, resolve_model
from triptych.compute.quantize import check_installed
from triptych.config.stage import Quantize
from triptych.errors import ModelError

BACKBONES: dict[str, type[Backbone]] = {
    pipeline: backbone for backbone in (Flux, SD3, Flux2) for pipeline in backbone.family.pipelines
}
"""The families' backbones by the pipeline class in model_index.json."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_backbone(
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize = "none",
    blocks_to_swap: int = 0,
) -> Backbone:
    """The backbone for `pocket`, a diffusers folder or a hub id. Loads no weights yet.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        dtype: `auto` (bf16 where the device computes it fast), `bf16` or `fp32`.
        quantize: format of the transformer's weights. blocks_to_swap: number of its blocks that stay in RAM
            until they run.

    Raises:
        ModelError: the model is unknown, its family has no backbone, or the package for `quantize` is
            missing.
    """
    name = model_class(model)
    if name not in BACKBONES:
        raise no_backbone(model, name, sorted(BACKBONES))
    for part in ("transformer", *BACKBONES[name].encoders):
        check_files(model, Path(resolve_model(model)) / part)
    try:
        where = default_device() if device == "auto" else torch.device(device)
        _make_current(where)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device '{device}' cannot be used here.", "Give auto, cpu or, with a CUDA card, cuda."
        ) from error
    kind = default_dtype(where) if dtype == "auto" else DTYPES[dtype]
    check_installed(quantize)
    return BACKBONES[name](resolve_model(model), where, kind, quantize, blocks_to_swap)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast, float32 elsewhere."""
    if device.type != "cuda":
        fast = torch.cpu._is_avx512_bf16_supported()
    else:
        with torch.cuda.device(device):  # PyTorch asks the current card
            # Turing and Pascal only emulate it.
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _make_current(device: torch.device) -> None:
    """Make a numbered card the current one of a process that has used none yet. Else pinned memory and others
    that name no card would take some 400 MB of card 0. A program that computes on a card already keeps it.
    """
    numbered = device.type == "cuda" and device.index is not None
    if numbered and torch.cuda.is_available() and not torch.cuda.is_initialized():
        torch.cuda.set_device(device)
