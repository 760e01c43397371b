"""The cache of `clean`, by the sha256 of a photo's file: its features, the signature that finds copies, and
its quality.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.pictures.copies import SIGNATURE, Seen, signature
from triptych.pictures.images import BadImage, check_header, load_image
from triptych.pictures.quality import levels, sharpness
from triptych.store.files import parse_json, publish
from triptych.vision.features import Extractor

LONGEST = 512  # side in pixels; features need 384
SAVE_EVERY = 512  # photos between two writings of the file
_FORMAT = 3


@dataclass(frozen=True)
class Features:
    """Results for one photo: its feature vector, the signature that finds copies, its size (width, height),
    its sharpness at `LONGEST` pixels, and its range of levels.
    """

    vector: np.ndarray
    signature: np.ndarray
    size: tuple[int, int]
    sharpness: float
    levels: int


def look_at(
    wanted: Mapping[str, Path], extractor: Extractor, known: Container[str]
) -> tuple[dict[str, Features], dict[str, str]]:
    """Compute the features of photos that are not `known`, by sha256. Returns these, and the reasons why
    other photos cannot be used.

    Args:
        wanted: {sha256: path}; every photo is opened, a known one only for its header.
    """
    images: dict[str, Image.Image] = {}
    sizes: dict[str, tuple[int, int]] = {}
    bad: dict[str, str] = {}
    for key, path in wanted.items():
        try:
            width, height = check_header(path)
            if key not in known:
                image = load_image(path, longest=LONGEST)
                images[key] = image
                turned = (width > height) != (image.width > image.height) and width != height
                sizes[key] = (height, width) if turned else (width, height)
        except BadImage as error:
            bad[key] = error.reason
    vectors = extractor.features(list(images.values())) if images else ()
    found = {
        key: Features(vector, signature(images[key]), sizes[key], sharpness(images[key]), levels(images[key]))
        for key, vector in zip(images, vectors, strict=True)
    }
    return found, bad


class FeatureCache:
    """{sha256 of a photo: feature vector, signature and size}, kept in one safetensors file.

    If the file is damaged, or from another extractor or version, the cache starts empty; that costs only
    time.
    """

    def __init__(self, path: Path, extractor: Extractor) -> None:
        self._path, self._extractor, self._new = path, extractor, 0
        self._vectors: dict[str, np.ndarray] = {}
        self._signatures: dict[str, np.ndarray] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._quality: dict[str, tuple[float, int]] = {}
        if path.exists():
            try:
                self._load()
            except Exception:  # a damaged file can raise any error
                self._vectors, self._signatures, self._sizes, self._quality = {}, {}, {}, {}

    def _load(self) -> None:
        from safetensors import safe_open

        with safe_open(self._path, framework="numpy") as file:
            about = parse_json((file.metadata() or {}).get("triptych", "{}"))
            if about.get("extractor") != self._extractor.identity or about.get("format") != _FORMAT:
                return
            vectors_ND, signatures, sizes, quality = (
                file.get_tensor(name) for name in ("features", "signatures", "sizes", "quality")
            )
        if vectors_ND.shape[1] != self._extractor.dimensions or not np.isfinite(vectors_ND).all():
            raise ValueError("features of another kind")
        if signatures.shape[1] != SIGNATURE or sizes.shape[1] != 2 or (sizes < 1).any():
            raise ValueError("signatures of another kind")
        if quality.shape[1] != 2 or not np.isfinite(quality).all():
            raise ValueError("quality of another kind")
        keys = [str(key) for key in about["sha256"]]
        self._vectors = dict(zip(keys, vectors_ND, strict=True))
        self._signatures = dict(zip(keys, signatures, strict=True))
        self._sizes = {
            key: (int(width), int(height)) for key, (width, height) in zip(keys, sizes, strict=True)
        }
        self._quality = {
            key: (float(sharp), int(range_)) for key, (sharp, range_) in zip(keys, quality, strict=True)
        }

    def __contains__(self, key: object) -> bool:
        return key in self._vectors

    def rows(self, keys: Iterable[str]) -> np.ndarray:
        """(N, D) float32 features of photos that are in the cache."""
        vectors = [self._vectors[key] for key in keys]
        return np.stack(vectors) if vectors else np.zeros((0, self._extractor.dimensions), np.float32)

    def seen(self, key: str, name: str, *, first: bool = False) -> Seen:
        """A photo in the cache, in the form that `copies.find_copies` compares."""
        return Seen(name, self._sizes[key], self._signatures[key], first)

    def quality(self, key: str) -> tuple[float, int]:
        """(sharpness, levels) of a photo in the cache."""
        return self._quality[key]

    def add(self, looked_at: Mapping[str, Features]) -> None:
        """Keep results by the sha256 of the photo. Saves the file after every `SAVE_EVERY` new ones."""
        for key, one in looked_at.items():
            self._vectors[key], self._signatures[key], self._sizes[key] = one.vector, one.signature, one.size
            self._quality[key] = one.sharpness, one.levels
        self._new += len(looked_at)
        if self._new >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file if there is something new."""
        from safetensors.numpy import save_file

        if self._new:
            keys = list(self._vectors)
            about = {"format": _FORMAT, "extractor": self._extractor.identity, "sha256": keys}
            tensors = {
                "features": self.rows(keys),
                "signatures": np.stack([self._signatures[key] for key in keys]),
                "sizes": np.array([self._sizes[key] for key in keys], np.int32),
                "quality": np.array([self._quality[key] for key in keys], np.float32),
            }
            with publish(self._path) as temporary:
                save_file(tensors, temporary, metadata={"triptych": json.dumps(about)})
            self._new = 0
