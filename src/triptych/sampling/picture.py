"""A generated picture, and the settings recorded in it."""

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
"""Fields of `Sampling` that a picture does not record: the first is the LoRA's own, the second exists only
for some verbs.
"""


@dataclass(frozen=True)
class Picture:
    """One picture.

    image: the requested picture. mask: (H, W) float32 in [0, 1] of its size; 0 where nothing was generated.
    triptych: the whole canvas from the model. made: roles of its panels that were generated, at least in
    part. settings: all settings that decide the pixels, and the machine they were computed on; `triptych
    reproduce` reads them from a PNG saved with `text_chunks`.
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
    """All settings that decide the pixels of a picture, by name.

    Args:
        sha256: hashes (not paths) of the input files by option; the LoRA's is added.
        more: prompt, seed, and settings that only this verb has.
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
    """Other facts that pixels depend on: device, precision, torch version and, on a CPU, the number of
    threads, which changes the order of sums.
    """
    backbone = model.backbone
    device, dtype = str(backbone.device), str(backbone.dtype).removeprefix("torch.")
    threads = {"threads": torch.get_num_threads()} if backbone.device.type == "cpu" else {}
    return {"device": device, "dtype": dtype, "torch": str(torch.__version__), **threads}


def text_chunks(settings: Mapping[str, Any], part: str = "") -> dict[str, str]:
    """Text chunks for a PNG that carries these settings. `part` marks a file that lies beside the main
    picture.
    """
    about = {**settings, **({"part": part} if part else {})}
    return {"Software": "triptych", SETTINGS: json.dumps(about, sort_keys=True)}
