"""Verdicts about photos: human, garment, unsure, a copy of another photo, or no photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from triptych.data.catalogue import MIXED, OVERRIDDEN, Photo, override_labels
from triptych.data.roles import PhotoRoles
from triptych.data.views import mixed_items
from triptych.pictures.copies import find_copies
from triptych.pictures.quality import shared_colours
from triptych.vision.agreement import likelier_garments
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


BLANK_LEVELS = 12
"""A picture with fewer levels of 255 is blank: a lens cap, an empty page."""
NOT_THIS = "perhaps not this garment"
UNLIKE_ALL = "unlike every example: a chart, a logo, no photo of clothes?"


@dataclass(frozen=True)
class Limits:
    """The thresholds of `CleanConfig` of the same names."""

    min_side: int = 32
    min_sharpness: float = 0.35
    small_side: int = 200
    min_shared_colours: float = 0.34
    max_likelier: float = 0.5


def fault_of(cache: FeatureCache, key: str, limits: Limits) -> str:
    """Why a readable photo is of no use; "" if it is of use."""
    (width, height), (sharp, levels) = cache.seen(key, "").size, cache.quality(key)
    if min(width, height) < limits.min_side:
        return f"too small: {width}×{height} px"
    if levels < BLANK_LEVELS:
        return "blank: one colour all over" if levels == 0 else "blank: nearly one colour all over"
    return f"blurred: sharpness {sharp:.2f}" if sharp < limits.min_sharpness else ""


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
    limits: Limits = Limits()

    def verdicts(self, looked: Looked) -> list[Photo]:
        """A verdict about every file of complete items, in the order of their places."""
        keys, reasons = looked.keys, {**looked.refused, **_same_bytes(looked)}
        wanted = {key: path for path, key in keys.items()}
        usable = [key for key in wanted if key not in looked.broken]
        labels, scores = self.classifier.decide(self.cache.rows(usable))
        decided = {
            key: (label, float(score)) for key, label, score in zip(usable, labels, scores, strict=True)
        }
        unlike = dict(zip(usable, self.classifier.unlike(self.cache.rows(usable)), strict=True))
        reasons |= {path: looked.broken[key] for path, key in keys.items() if key in looked.broken}
        reasons |= self._faults(looked, reasons)
        reasons |= self._copies(looked, reasons)
        judged: list[Photo] = []
        for photo in sorted(looked.photos, key=lambda photo: photo.place):
            key = keys.get(photo.path, "")
            if photo.path in reasons:
                judged.append(Photo(photo.item, str(photo.path), key, "rejected", None, reasons[photo.path]))
            else:
                judged.append(self._verdict(photo, key, *decided[key], bool(unlike[key])))
        judged = self._flagged(judged)
        mixed = mixed_items(judged, self.roles, self.cache.rows if self.extractor == DEFAULT else None)
        return [
            replace(row, label="unsure", reason=MIXED)
            if row.item in mixed and row.label == "garment"
            else row
            for row in judged
        ]

    def _faults(self, looked: Looked, reasons: Mapping[Path, str]) -> dict[Path, str]:
        """{path: reason} for photos that are of no use, unless the user says what they are."""
        found = {
            photo.path: fault_of(self.cache, looked.keys[photo.path], self.limits)
            for photo in looked.photos
            if photo.path in looked.keys
            and photo.path not in reasons
            and not photo.said
            and looked.keys[photo.path] not in self.examples
        }
        return {path: fault for path, fault in found.items() if fault}

    def compared(self, rows: Sequence[Photo]) -> list[Photo]:
        """The rows of the whole catalogue, with flags about people who seem to wear the garment of another
        item.
        """
        most = self.limits.max_likelier
        likelier = likelier_garments(rows, self.cache.rows) if most < 1 else {}
        compared: list[Photo] = []
        for row in rows:
            share = likelier.get(row.path, 0.0)
            if share > most and NOT_THIS not in row.flags and not row.reason.startswith(OVERRIDDEN):
                flag = f"{NOT_THIS}: {share:.0%} of other items' garments are more like what is worn"
                row = replace(row, flags="; ".join(filter(None, (row.flags, flag))))
            compared.append(row)
        return compared

    def _flagged(self, judged: list[Photo]) -> list[Photo]:
        """The rows with flags about size, and about people who seem to wear something else."""
        garments: dict[str, list[Photo]] = {}
        for row in judged:
            if row.item and row.label == "garment":
                garments.setdefault(row.item, []).append(row)
        flagged: list[Photo] = []
        for row in judged:
            flags = [row.flags] if row.flags else []
            if row.label != "rejected" and not row.reason.startswith(OVERRIDDEN):
                width, height = self.cache.seen(row.sha256, "").size
                if max(width, height) < self.limits.small_side:
                    flags.append(f"small: {width}×{height} px")
                if row.label == "human" and row.item in garments:
                    shared = self._shared(row, garments[row.item])
                    if shared < self.limits.min_shared_colours:
                        flags.append(f"{NOT_THIS}: it shares {shared:.2f} of its colours")
            flagged.append(replace(row, flags="; ".join(flags)))
        return flagged

    def _shared(self, worn: Photo, garments: Sequence[Photo]) -> float:
        seen = self.cache.seen(worn.sha256, "").signature
        return max(shared_colours(self.cache.seen(one.sha256, "").signature, seen) for one in garments)

    def _verdict(self, photo: PhotoFile, key: str, label: str, score: float, unlike: bool) -> Photo:
        row = Photo(photo.item, str(photo.path), key, label, round(score, 4))
        if photo.said:
            label = override_labels(self.roles.names)[photo.said]
            return replace(row, label=label, reason=f"{OVERRIDDEN}{photo.said}")
        if key in self.examples:
            return replace(row, label=self.examples[key][1], reason="example")
        return replace(row, flags=UNLIKE_ALL) if unlike else row

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
