"""Find the family, the device and the dtype for a model."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from triptych.backbones.contract import Backbone
from triptych.backbones.flux.model import Flux
from triptych.backbones.flux2.model import Flux2
from triptych.backbones.model_folder import check_files, no_backbone
from triptych.backbones.sd3.model import SD3
from triptych.backbones.settings import model_class, resolve_model
from triptych.compute.devices import default_dtype, usable_device
from triptych.compute.quantize import check_installed
from triptych.config.stage import Quantize
from triptych.pocket import POCKETS

log = logging.getLogger(__name__)

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
        device: `auto` (a CUDA card, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
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
    where = usable_device(device)
    kind = default_dtype(where) if dtype == "auto" else DTYPES[dtype]
    check_installed(quantize)
    if device == "auto" and where.type == "cpu" and model not in POCKETS:
        _warn_of_idle_card(model)
    return BACKBONES[name](resolve_model(model), where, kind, quantize, blocks_to_swap)


def _warn_of_idle_card(model: str) -> None:
    """Say that a model is about to run on the CPU of a machine that seems to have an NVIDIA card."""
    if shutil.which("nvidia-smi") is None:
        return
    why = "is built for the CPU alone" if torch.version.cuda is None else "cannot use it"
    log.warning(
        "This machine seems to have an NVIDIA card, but its PyTorch (%s) %s: %s runs on the CPU, many times "
        "slower. `pip install torch` on Windows brings such a build; see pytorch.org/get-started/locally.",
        torch.__version__,
        why,
        model,
    )
