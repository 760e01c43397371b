"""Opens the network whose features FID, KID and the garment crops are compared in, with the sha256 of its
weights.

Shapes: N pictures, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from triptych.errors import ModelError
from triptych.evaluation.metrics.inception import ORIGIN, ORIGIN_SHA256, Inception, input_of
from triptych.evaluation.metrics.weights import fill, read_weights
from triptych.store.files import sha256_file
from triptych.vision.features import BATCH, DEFAULT, load_extractor

INCEPTION = "inception:"


@dataclass(frozen=True)
class FeatureNet:
    """A named function from pictures to features, as the network gives them (not of length 1).

    sha256: of the file with the weights. published: whether that file says to be the Inception of the
    published figures.
    """

    name: str
    sha256: str
    embed: Callable[[Sequence[Image.Image]], np.ndarray]
    published: bool = False

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float64 for RGB pictures of any size."""
        parts = [self.embed(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(parts).astype(np.float64)


def cosine(first_D: np.ndarray, second_D: np.ndarray) -> float:
    """The cosine of two feature vectors; 1 for those of equal pictures."""
    lengths = float(np.linalg.norm(first_D) * np.linalg.norm(second_D))
    return float(first_D @ second_D / max(lengths, 1e-12))


def open_features(name: str) -> FeatureNet:
    """The network called `name`: efficientnet-lite0, transformers:<id or folder>, or
    inception:<file.safetensors>.

    Raises:
        ModelError: unknown, missing, or not the network that its weights are for.
    """
    if name.startswith(INCEPTION):
        return _inception(Path(name.removeprefix(INCEPTION)))
    if name != DEFAULT and not name.startswith("transformers:"):
        raise ModelError(
            f"There are no features called '{name}'.",
            f"Use {DEFAULT}, transformers:FOLDER or {INCEPTION}FILE.safetensors.",
        )
    extractor = load_extractor(name)
    if name == DEFAULT:
        from triptych.vision.lite0 import LITE0_SHA256

        return FeatureNet(name, LITE0_SHA256, extractor.embed)
    return FeatureNet(name, _sha256_of(name.split(":", 1)[1], extractor.identity), extractor.embed)


def _inception(path: Path) -> FeatureNet:
    weights = read_weights(path.expanduser(), "The weights of Inception-v3")
    network = Inception().eval().requires_grad_(False)
    fill(network, weights.tensors, "The weights of Inception-v3")

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(network(input_of(images)).numpy())

    published = weights.about.get("source_sha256", "").startswith(ORIGIN_SHA256)
    name = f"Inception-v3, {ORIGIN}" if published else f"Inception-v3, {path.name}"
    return FeatureNet(name, weights.sha256, embed, published)


def _sha256_of(source: str, identity: str) -> str:
    """sha256 of a transformers model's weights; of several files, of their hashes. identity: stands in if
    they cannot be found.
    """
    folder = Path(source).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "model.safetensors")
        files = [Path(cached)] if isinstance(cached, str) else []
    hashes = [sha256_file(file) for file in files] or [hashlib.sha256(identity.encode()).hexdigest()]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
