"""Verdicts about photos: human, garment, unsure, a copy of another photo, or no photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from triptych.data.catalogue import MIXED, OVERRIDDEN, Photo, override_labels
from triptych.data.roles import PhotoRoles
from triptych.data.views import mixed_items
from triptych.pictures.copies import find_copies
from triptych.vision.classifier import Classifier
from triptych.vision.feature_cache import FeatureCache, Features
from triptych.vision.features import DEFAULT


@dataclass(frozen=True)
class PhotoFile:
    """A file that may be a photo.

    item: the product it belongs to. name: its path relative to the photo folder. place: its number among all
    files. said: the user's override for it, or "". key: its sha256, if known already.
    """

    item: str
    path: Path
    name: str
    place: int
    said: str = ""
    key: str = ""


@dataclass
class Looked:
    """Findings about some files.

    keys: sha256 by path, for files that may be photos. refused: by path, the reason why a file is no photo.
    broken: by sha256, the reason why a photo cannot be used. features: by sha256, results for photos that are
    not in the cache. closes: whether the next file belongs to another item.
    """

    photos: list[PhotoFile] = field(default_factory=list)
    keys: dict[Path, str] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    closes: bool = True

    def add(self, other: Looked) -> None:
        """Add the files of another object to these, without its features, which go into the cache."""
        self.photos += other.photos
        self.keys |= other.keys
        self.refused |= other.refused
        self.broken |= other.broken


@dataclass(frozen=True)
class Judge:
    """Decides about photos: by the user's override, else by the examples, else by the classifier.

    extractor: name of the features. examples: {sha256: (path, label)}. roles: those of product photos, which
    overrides may name.
    """

    classifier: Classifier
    cache: FeatureCache
    extractor: str
    examples: Mapping[str, tuple[Path, str]]
    roles: PhotoRoles

    def verdicts(self, looked: Looked) -> list[Photo]:
        """A verdict about every file of complete items, in the order of their places."""
        keys, reasons = looked.keys, {**looked.refused, **_same_bytes(looked)}
        wanted = {key: path for path, key in keys.items()}
        usable = [key for key in wanted if key not in looked.broken]
        labels, scores = self.classifier.decide(self.cache.rows(usable))
        decided = {
            key: (label, float(score)) for key, label, score in zip(usable, labels, scores, strict=True)
        }
        reasons |= {path: looked.broken[key] for path, key in keys.items() if key in looked.broken}
        reasons |= self._copies(looked, reasons)
        judged: list[Photo] = []
        for photo in sorted(looked.photos, key=lambda photo: photo.place):
            key = keys.get(photo.path, "")
            if photo.path in reasons:
                judged.append(Photo(photo.item, str(photo.path), key, "rejected", None, reasons[photo.path]))
            else:
                judged.append(self._verdict(photo, key, *decided[key]))
        mixed = mixed_items(judged, self.roles, self.cache.rows if self.extractor == DEFAULT else None)
        return [
            replace(row, label="unsure", reason=MIXED)
            if row.item in mixed and row.label == "garment"
            else row
            for row in judged
        ]

    def _verdict(self, photo: PhotoFile, key: str, label: str, score: float) -> Photo:
        row = Photo(photo.item, str(photo.path), key, label, round(score, 4))
        if photo.said:
            label = override_labels(self.roles.names)[photo.said]
            return replace(row, label=label, reason=f"{OVERRIDDEN}{photo.said}")
        if key in self.examples:
            return replace(row, label=self.examples[key][1], reason="example")
        return row

    def _copies(self, looked: Looked, reasons: Mapping[Path, str]) -> dict[Path, str]:
        """{path: reason} for photos that are smaller copies of another photo of their item."""
        items: dict[str, list[PhotoFile]] = {}
        for photo in sorted(looked.photos, key=lambda photo: photo.place):
            if photo.path in looked.keys and photo.path not in reasons:
                items.setdefault(photo.item, []).append(photo)
        found: dict[Path, str] = {}
        for photos in items.values():
            seen = [
                self.cache.seen(
                    looked.keys[photo.path], photo.path.name, first=(photo.said or "rejected") != "rejected"
                )
                for photo in photos
            ]
            for index, original in find_copies(seen).items():
                smaller = "smaller copy" if seen[index].area < seen[original].area else "copy"
                found[photos[index].path] = f"{smaller} of {photos[original].path.name}"
        return found


def _same_bytes(looked: Looked) -> dict[Path, str]:
    """{path: reason} for files with the same bytes as an earlier file of their item."""
    first: dict[tuple[str, str], Path] = {}
    reasons: dict[Path, str] = {}
    for photo in looked.photos:  # files that the user names come first, so of equal files these stay
        if photo.path in looked.keys:
            original = first.setdefault((photo.item, looked.keys[photo.path]), photo.path)
            if original != photo.path:
                reasons[photo.path] = f"duplicate of {original.name}"
    return reasons


def named_first(photos: Sequence[PhotoFile]) -> list[PhotoFile]:
    """Photos of an item, those with an override of the user first."""
    return sorted(photos, key=lambda photo: not photo.said)
