"""Segmentation by points (SAM, arXiv 2304.02643): the thing in a photo that a user points at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from triptych.errors import ModelError
from triptych.vision.parsing import opening, tell_licence

FORM = (
    "It must be a model of transformers that makes masks from points (SAM, SAM-HQ; SAM 2 with torchvision "
    "installed) in safetensors: a folder, or a name of the hub such as facebook/sam-vit-base."
)


class Point(NamedTuple):
    """A point in pixels of the upright photo. inside: whether the thing meant is there, or is not."""

    x: float
    y: float
    inside: bool = True


class PointSegmenter:
    """A mask-generation model of transformers. Code in its folder is never run."""

    def __init__(self, name: str) -> None:
        """name: a folder, or a name of the hub, whose licence is logged before its weights are fetched.

        Raises:
            ModelError: it is no such model, lacks files, or the hub cannot be reached.
        """
        import torch
        from transformers import AutoConfig, AutoModelForMaskGeneration, AutoProcessor

        with opening(name, FORM) as (source, options):
            config = AutoConfig.from_pretrained(source, **options)
            if type(config) not in AutoModelForMaskGeneration._model_mapping:
                raise ModelError(f"{name} makes no masks from points.", FORM)
            tell_licence(name, config.model_type)
            self._processor = AutoProcessor.from_pretrained(source, **options)
            model = AutoModelForMaskGeneration.from_pretrained(source, use_safetensors=True, **options)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(self._device, torch.float32).eval()

    def mask(self, photo: Image.Image, points: Sequence[Point]) -> np.ndarray:
        """What the points mean in a photo: bool (H, W). Of the model's proposals (a part, the whole, …) the
        one that it rates best.
        """
        import torch

        where = [[[[point.x, point.y] for point in points]]]
        labels = [[[int(point.inside) for point in points]]]
        inputs = self._processor(
            images=photo.convert("RGB"), input_points=where, input_labels=labels, return_tensors="pt"
        )
        sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        if "input_points" in inputs:  # double in some processors
            inputs["input_points"] = inputs["input_points"].float()
        with torch.inference_mode():
            outputs = self._model(**inputs.to(self._device))
        (masks,) = self._processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
        best = int(outputs.iou_scores.flatten().argmax())
        return np.asarray(masks[0][best], dtype=bool)
