"""A picture that was made, and what it says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from triptych.pictures.images import SETTINGS
from triptych.pictures.panels import PanelLayout
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling

UNRECORDED = ("context_lora", "strength")
"""Numbers of a `Sampling` that a picture does not carry: one is the LoRA's own, one only some verbs have."""


@dataclass(frozen=True)
class Picture:
    """One picture.

    image: what was asked for. mask: (H, W) float32 in [0, 1] of its size; where it is 0 nothing was made.
    triptych: the whole canvas as the model made it. made: the roles of its panels that were made, at least in
    part. settings: everything that decides the pixels, and what they were computed on; `triptych reproduce`
    reads them out of a PNG that was saved with `text_chunks`.
    """

    image: Image.Image
    mask: np.ndarray
    triptych: Image.Image
    made: tuple[str, ...]
    settings: dict[str, Any]


def record(
    model: OpenedModel,
    verb: str,
    layout: PanelLayout,
    sampling: Sampling,
    sha256: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Everything that decides the pixels of a picture, as settings by name.

    Args:
        sha256: hashes (not paths) of the files that went in, by option; the LoRA's is put in.
        more: prompt, seed, and settings of the verb alone.
    """
    numbers = {name: value for name, value in asdict(sampling).items() if name not in UNRECORDED}
    lora = {"lora": model.lora_sha256} if model.lora is not None else {}
    return {
        "verb": verb,
        **model.options,
        **numbers,
        "panel_width": layout.width,
        "panel_height": layout.height,
        **more,
        "sha256": {**(sha256 or {}), **lora},
    }


def ran_on(model: OpenedModel) -> dict[str, Any]:
    """What pixels also hang on: device, precision, version of torch, and, on a CPU, the threads that share a
    sum.
    """
    backbone = model.backbone
    device, dtype = str(backbone.device), str(backbone.dtype).removeprefix("torch.")
    threads = {"threads": torch.get_num_threads()} if backbone.device.type == "cpu" else {}
    return {"device": device, "dtype": dtype, "torch": str(torch.__version__), **threads}


def text_chunks(settings: Mapping[str, Any], part: str = "") -> dict[str, str]:
    """Text chunks for a PNG that carries these settings. `part` marks a file that lies beside the picture
    proper.
    """
    about = {**settings, **({"part": part} if part else {})}
    return {"Software": "triptych", SETTINGS: json.dumps(about, sort_keys=True)}
