"""clean: sort raw product photos into human and garment photos (a file in the catalogue; the photos stay where they are).

A support vector machine is trained on two folders of examples and asked about every photo. Pixels are needed only for
photos not seen before: features are kept in the catalogue by the sha256 of the file.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import Field

from triptych.catalogue import OVERRIDE_LABELS, OVERRIDES, PHOTOS, Photo, natural, read_overrides, refusal, scan, write_photos
from triptych.config import Seed, StageConfig
from triptych.errors import InputError
from triptych.images import BadImage, Cell, check_header, contact_sheet, load_image, save_png
from triptych.store import Event, Run, StageFolder, digest, held, publish, sha256_file

if TYPE_CHECKING:
    from triptych.features import Extractor

BATCH = 16  # photos decoded at a time
LONGEST = 512  # px; features need 384
SAVE_EVERY = 512  # photos between two writings of the feature cache
SHEET = 240  # photos on the contact sheet
COLOURS = {"human": "#2f7fd6", "garment": "#3aa35b", "unsure": "#f0a020", "rejected": "#d43c3c"}


class CleanConfig(StageConfig):
    """Tell human photos from garment photos."""

    photos: Path | None = None
    """Folder of raw photos, one folder per item: photos/item1/*.jpg."""
    human: Path | None = None
    """Folder of example photos that show a person; a few dozen are enough."""
    garment: Path | None = None
    """Folder of example photos that show a garment alone."""
    features: str = "efficientnet-lite0"
    """Image features: efficientnet-lite0 (offline), or transformers:ID with the id or folder of a vision model, such as
    transformers:google/siglip2-base-patch16-224."""
    unsure: float = Field(default=0.1, ge=0, le=10)
    """Photos nearer than this to the border are labelled unsure (1 = as far as the nearest examples)."""
    min_side: int = Field(default=32, ge=1)
    """Photos with a side shorter than this many pixels are rejected."""
    overrides: Path | None = None
    """Text file of lines 'item1/photo.jpg human' that win over the classifier; WORK/catalogue/overrides.txt if it exists."""
    seed: Seed = 0
    """Seed of the cross-check that looks for examples in the wrong folder."""


def clean(config: CleanConfig) -> Run:
    """Label every photo below `config.photos`: catalogue/photos.jsonl, classifier.safetensors and contact_sheet.png.

    Run again after adding photos, examples or overrides: only new photos are computed. Event ids are paths from the photo
    folder, notes their labels, or why they are rejected; `kept` are photos whose features were there already.

    Raises:
        InputError: a folder that is not given, missing or without photos; too few examples; a photo that is an example
            of both; an override file with an error.
        ModelError: features that cannot be loaded.
        WorkError: another run is writing the catalogue.
    """
    photos = _given(config.photos, "photos", "raw photos, one folder per item")
    examples = _examples(config)
    asides = [folder for folder in (config.work, config.catalogue_folder, config.human, config.garment) if folder is not None]
    found = scan(photos, skip=[folder for folder in asides if folder.resolve() != photos.resolve()])
    if not found:
        raise InputError(f"There are no files in {photos}.", "Give --photos a folder that holds one folder of photos per item.")
    overrides = _overrides(config)
    from triptych.features import load_extractor

    extractor = load_extractor(config.features)
    folder = StageFolder(config.catalogue_folder, "clean", {"stage": "clean"})
    summary: dict[str, Any] = {}
    work = partial(_work, config, photos, found, examples, overrides, extractor, summary)
    return Run("clean", len(found), held(folder, work), summary)


def _work(
    config: CleanConfig,
    photos: Path,
    found: list[tuple[str, Path]],
    examples: dict[str, tuple[Path, str]],
    overrides: dict[str, str],
    extractor: Extractor,
    summary: dict[str, Any],
) -> Iterator[Event]:
    from triptych.classifier import doubtful, train_classifier

    folder = config.catalogue_folder
    cache = FeatureCache(folder / "features.safetensors", extractor)
    rows: list[Photo] = []
    first: dict[tuple[str, str], Path] = {}  # (item, sha256) → the first photo with these bytes
    try:
        bad: dict[str, str] = {}
        for start in range(0, len(examples), BATCH):
            bad |= cache.fill({key: path for key, (path, _) in list(examples.items())[start : start + BATCH]}, 1)
        good = [key for key in examples if key not in bad]
        known, labels = cache.rows(good), [examples[key][1] for key in good]
        classifier = train_classifier(known, labels, extractor=extractor.identity, unsure=config.unsure)
        classifier.save(folder / "classifier.safetensors")
        suspects = [str(examples[good[index]][0]) for index in doubtful(known, labels, seed=config.seed)]

        for start in range(0, len(found), BATCH):
            part = found[start : start + BATCH]
            reasons = {path: refusal(photos, path) for _, path in part}
            keys: dict[Path, str] = {}
            for item, path in part:
                if reasons[path] is None:
                    try:
                        keys[path] = sha256_file(path)
                    except OSError:
                        reasons[path] = "it may not be read"
                        continue
                    original = first.setdefault((item, keys[path]), path)
                    if original != path:
                        reasons[path] = f"duplicate of {original.name}"
            wanted = {keys[path]: path for _, path in part if reasons[path] is None}
            fresh = {key for key in wanted if key not in cache}
            broken = cache.fill(wanted, config.min_side)
            usable = [key for key in wanted if key not in broken]
            decided, scores = classifier.decide(cache.rows(usable))
            verdicts = {key: (label, float(score)) for key, label, score in zip(usable, decided, scores, strict=True)}

            for item, path in part:
                name, key = path.relative_to(photos).as_posix(), keys.get(path, "")
                reason = reasons[path] or broken.get(key)
                said = overrides.get(name)
                if reason is not None:
                    row = Photo(item, str(path), key, "rejected", None, reason)
                else:
                    label, score = verdicts[key]
                    row = Photo(item, str(path), key, label, round(score, 4))
                    if said is not None:
                        row = Photo(item, str(path), key, OVERRIDE_LABELS[said], row.score, f"override: {said}")
                    elif key in examples:
                        row = Photo(item, str(path), key, examples[key][1], row.score, "example")
                rows.append(row)
                if row.label == "rejected":
                    yield Event(name, "rejected", row.reason)
                else:
                    note = f"{row.label} ({row.reason})" if row.reason else row.label
                    yield Event(name, "done" if key in fresh else "kept", note)
    finally:
        cache.save()
    write_photos(folder / PHOTOS, rows)
    shown = _draw_sheet(rows, folder / "contact_sheet.png")
    names = {path.relative_to(photos).as_posix() for _, path in found}
    summary.update(_count(rows))
    summary["overrides_without_photo"] = sorted(set(overrides) - names)
    summary["examples"] = dict(Counter(labels))
    summary["examples_unreadable"] = [f"{examples[key][0]}: {reason}" for key, reason in bad.items()]
    summary["examples_doubtful"] = suspects
    summary["catalogue"] = str(folder / PHOTOS)
    summary["contact_sheet"] = f"{folder / 'contact_sheet.png'} ({shown} of {len(rows)} photos)"


# --- Inputs -------------------------------------------------------------------------------------------------------------


def _given(folder: Path | None, option: str, what: str) -> Path:
    if folder is None:
        raise InputError(f"No folder given for --{option}.", f"Give a folder of {what}.")
    if not folder.is_dir():
        raise InputError(f"The folder {folder} given for --{option} does not exist or is not a folder.", f"Give a folder of {what}.")
    return folder


def _examples(config: CleanConfig) -> dict[str, tuple[Path, str]]:
    """{sha256: (path, "human" | "garment")} of all example files that look like images."""
    from triptych.classifier import MIN_EXAMPLES

    examples: dict[str, tuple[Path, str]] = {}
    for option in ("human", "garment"):
        folder = _given(getattr(config, option), option, f"photos that show {'a person' if option == 'human' else 'a garment alone'}")
        count = 0
        for path in sorted(folder.rglob("*"), key=lambda path: natural(str(path))):
            if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
            try:
                check_header(path)
                key = sha256_file(path)
            except (BadImage, OSError):
                continue
            if examples.get(key, (path, option))[1] != option:
                other = examples[key][0]
                raise InputError(f"{path} is the same photo as {other}, an example of the other kind.", "Delete one of the two.")
            examples.setdefault(key, (path, option))
            count += 1
        if count < MIN_EXAMPLES:
            what = "no photos" if count == 0 else f"only {count} photos"
            hint = f"At least {MIN_EXAMPLES} are needed; a few dozen make a good classifier."
            raise InputError(f"There are {what} in {folder} given for --{option}.", hint)
    return examples


def _overrides(config: CleanConfig) -> dict[str, str]:
    path = config.overrides or config.catalogue_folder / OVERRIDES
    return read_overrides(path) if config.overrides is not None or path.exists() else {}


# --- Features, kept by content ------------------------------------------------------------------------------------------


class FeatureCache:
    """{sha256 of a photo: feature vector}, kept in one safetensors file. Made by another extractor, it starts empty."""

    def __init__(self, path: Path, extractor: Extractor) -> None:
        from safetensors import SafetensorError, safe_open

        self._path, self._extractor, self._new = path, extractor, 0
        self._vectors: dict[str, np.ndarray] = {}
        if path.exists():
            try:
                with safe_open(path, framework="numpy") as file:
                    about = json.loads((file.metadata() or {}).get("triptych", "{}"))
                    if about.get("extractor") == extractor.identity:
                        vectors_ND = file.get_tensor("features")
                        assert vectors_ND.shape[1] == extractor.dimensions and np.isfinite(vectors_ND).all()
                        self._vectors = dict(zip(about["sha256"], vectors_ND, strict=True))
            except (SafetensorError, OSError, ValueError, KeyError, AssertionError):
                self._vectors = {}  # a damaged cache costs time, nothing else

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def rows(self, keys: Iterable[str]) -> np.ndarray:
        """(N, D) float32 features of photos that are in the cache."""
        vectors = [self._vectors[key] for key in keys]
        return np.stack(vectors) if vectors else np.zeros((0, self._extractor.dimensions), np.float32)

    def fill(self, wanted: dict[str, Path], min_side: int) -> dict[str, str]:
        """Compute what is missing of {sha256: path}; {sha256: reason} of photos that cannot be used."""
        bad: dict[str, str] = {}
        images: dict[str, Image.Image] = {}
        for key, path in wanted.items():
            try:
                width, height = check_header(path)
                if min(width, height) < min_side:
                    raise BadImage(path, f"too small: {width}×{height} px")
                if key not in self:
                    image = load_image(path, longest=LONGEST)
                    if np.ptp(np.asarray(image), axis=(0, 1)).max() == 0:
                        raise BadImage(path, "blank: one colour all over")
                    images[key] = image
            except BadImage as error:
                bad[key] = error.reason
        if images:
            self._vectors.update(zip(images, self._extractor.features(list(images.values())), strict=True))
            self._new += len(images)
            if self._new >= SAVE_EVERY:
                self.save()
        return bad

    def save(self) -> None:
        from safetensors.numpy import save_file

        if self._new:
            about = {"extractor": self._extractor.identity, "sha256": list(self._vectors)}
            with publish(self._path) as temporary:
                save_file({"features": self.rows(self._vectors)}, temporary, metadata={"triptych": json.dumps(about)})
            self._new = 0


# --- Report -------------------------------------------------------------------------------------------------------------


def _count(rows: list[Photo]) -> dict[str, Any]:
    labels = Counter(row.label for row in rows)
    items: dict[str, set[str]] = {}
    for row in rows:
        if row.item:
            items.setdefault(row.item, set()).add(row.label)
    reasons = Counter(row.reason.split(":")[0].split(" of ")[0] for row in rows if row.label == "rejected")
    return {
        "photos": len(rows),
        **{label: labels[label] for label in ("human", "garment", "unsure", "rejected")},
        "reasons": dict(reasons.most_common()),
        "overridden": sum(row.reason.startswith("override") for row in rows),
        "items": len(items),
        "items_without_human": [item for item, seen in items.items() if "human" not in seen],
        "items_without_garment": [item for item, seen in items.items() if "garment" not in seen],
    }


def _draw_sheet(rows: list[Photo], path: Path) -> int:
    """Draw the contact sheet, unless it shows the same already; how many photos are on it.

    Of large catalogues it shows the items that need a look: first those with unsure or rejected photos, then the rest.
    """
    items: dict[str, list[Photo]] = {}
    for row in rows:
        items.setdefault(row.item, []).append(row)
    chosen: set[str] = set()
    room = SHEET
    for item in sorted(items, key=lambda item: all(row.label in ("human", "garment") for row in items[item])):
        if room > 0:
            items[item] = items[item][:room]
            room -= len(items[item])
            chosen.add(item)
    groups = [photos for item, photos in items.items() if item in chosen]
    shown = digest([[row.__dict__ for row in photos] for photos in groups])
    if path.exists():
        try:
            with Image.open(path, formats=("PNG",)) as before:
                if before.info.get("catalogue") == shown:
                    return sum(map(len, groups))
        except (OSError, SyntaxError, ValueError):
            pass
    cells = []
    for index, photos in enumerate(groups):
        for row in photos:
            image = None
            if row.sha256:
                with contextlib.suppress(BadImage):
                    image = load_image(Path(row.path), longest=256)
            verdict = row.reason or row.label
            if row.score is not None and not row.reason and row.label != "unsure":
                verdict += f" {100 * (1 - row.score if row.label == 'garment' else row.score):.0f} %"
            label = "\n".join((row.item or "(no item)", Path(row.path).name, verdict))
            cells.append(Cell(image, label, COLOURS[row.label], "#ffffff" if index % 2 else "#eef0f3"))
    save_png(contact_sheet(cells), path, text={"catalogue": shown})
    return len(cells)
