"""clean: sort raw product photos into human and garment photos (a file in the catalogue; the photos stay
where they are).

A support vector machine is trained on two folders of examples and asked about every photo. Pixels are needed
only for photos not seen before: features are kept in the catalogue by the sha256 of the file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from triptych import progress
from triptych.config.stage import Seed, StageConfig
from triptych.data.catalogue import (
    MIXED,
    OVERRIDE_LABELS,
    OVERRIDES,
    PHOTOS,
    Photo,
    match_overrides,
    read_overrides,
    reject_reasons,
    why_nothing_usable,
    write_photos,
)
from triptych.data.catalogue_sheet import draw_sheet
from triptych.data.photo_folders import (
    COPY_LINKS,
    LEAVES,
    STRAY,
    check_examples,
    find_photos,
    is_managed,
    natural,
    refusal,
)
from triptych.data.views import count_guessed, mixed_items
from triptych.errors import InputError
from triptych.events import Event, Run, held
from triptych.pictures.copies import find_copies
from triptych.pictures.images import BadImage, sha256_photo
from triptych.store.folder import StageFolder
from triptych.vision.feature_cache import FeatureCache
from triptych.vision.features import DEFAULT

if TYPE_CHECKING:
    from triptych.vision.features import Extractor

log = logging.getLogger(__name__)

BATCH = 16  # photos decoded at a time


class CleanConfig(StageConfig):
    """Tell human photos from garment photos."""

    photos: Path | None = None
    """Folder of raw photos, one folder per item: photos/item1/*.jpg."""
    human: Path | None = None
    """Folder of example photos that show a person; a few dozen are enough."""
    garment: Path | None = None
    """Folder of example photos that show a garment alone."""
    features: str = "efficientnet-lite0"
    """Image features: efficientnet-lite0 (offline), or transformers:ID with the id or folder of a vision
    model, such as transformers:google/siglip2-base-patch16-224.
    """
    unsure: float = Field(default=0.1, ge=0, le=10)
    """Photos nearer than this to the border are labelled unsure (1 = as far as the nearest examples)."""
    min_side: int = Field(default=32, ge=1)
    """Photos with a side shorter than this many pixels are rejected."""
    overrides: Path | None = None
    """Text file of lines 'item1/photo.jpg human' that win over the classifier; WORK/catalogue/overrides.txt
    if it exists.
    """
    seed: Seed = 0
    """Seed of the cross-check that looks for examples in the wrong folder."""


def clean(config: CleanConfig) -> Run:
    """Label every photo below `config.photos`: catalogue/photos.jsonl, classifier.safetensors and
    contact_sheet.png.

    Run again after adding photos, examples or overrides: only new photos are computed. Event ids are paths
    from the photo folder, notes their labels, or why they are rejected; `kept` are photos whose features were
    there already.

    Raises:
        InputError: a folder that is not given, missing or without photos; too few examples; a photo that is
            an example of both; an override file with an error.
        ModelError: features that cannot be loaded.
        WorkError: another run is writing the catalogue.
    """
    photos = _given(config.photos, "photos", "raw photos, one folder per item")
    check_examples(config.human, config.garment, photos)
    examples = _examples(config)
    found = find_photos(photos, [config.work, config.catalogue_folder, config.human, config.garment])
    overrides = _overrides(config)
    from triptych.vision.features import load_extractor

    extractor = load_extractor(config.features)
    folder = StageFolder(config.catalogue_folder, "clean", {"stage": "clean"})
    summary: dict[str, Any] = {}
    work = partial(_work, config, photos, found, examples, overrides, extractor, summary)

    def counted() -> Iterator[Event]:
        yield from work()
        run.failed = 0 if summary["human"] or summary["garment"] or summary["unsure"] else summary["rejected"]

    run = Run("clean", len(found), held(folder, counted), summary)
    return run


def _work(
    config: CleanConfig,
    photos: Path,
    found: list[tuple[str, Path]],
    examples: dict[str, tuple[Path, str]],
    overrides: dict[str, str],
    extractor: Extractor,
    summary: dict[str, Any],
) -> Iterator[Event]:
    from triptych.vision.classifier import doubtful, train_classifier

    folder = config.catalogue_folder
    cache = FeatureCache(folder / "features.safetensors", extractor)
    names = {path: path.relative_to(photos).as_posix() for _, path in found}
    said, missed = match_overrides(overrides, names.values(), photos)
    if missed:
        log.warning(
            "No photo is meant by %d lines of %s: %s.",
            len(missed),
            _override_file(config),
            ", ".join(missed[:5]),
        )
    rows: list[Photo] = []
    try:
        bad: dict[str, str] = {}
        for number, batch in enumerate(_batches(list(examples), BATCH)):
            progress.doing("looking at examples", number * BATCH, len(examples))
            bad |= cache.fill({key: examples[key][0] for key in batch}, 1)
        good = [key for key in examples if key not in bad]
        known, labels = cache.rows(good), [examples[key][1] for key in good]
        classifier = train_classifier(known, labels, extractor=extractor.identity, unsure=config.unsure)
        classifier.save(folder / "classifier.safetensors")
        suspects = [str(examples[good[index]][0]) for index in doubtful(known, labels, seed=config.seed)]

        for part in _whole_items(found, BATCH):
            keys, reasons = _looked_at(photos, part, names, said)
            wanted = {key: path for path, key in keys.items()}
            fresh = {key for key in wanted if key not in cache}
            broken: dict[str, str] = {}
            for number, batch in enumerate(_batches(list(wanted), BATCH)):
                progress.doing(
                    "looking at photo", min(len(rows) + number * BATCH + 1, len(found)), len(found)
                )
                broken |= cache.fill({key: wanted[key] for key in batch}, config.min_side)
            usable = [key for key in wanted if key not in broken]
            decided, scores = classifier.decide(cache.rows(usable))
            verdicts = {
                key: (label, float(score)) for key, label, score in zip(usable, decided, scores, strict=True)
            }
            reasons |= {path: broken[key] for path, key in keys.items() if key in broken}
            reasons |= _copies(part, keys, reasons, cache, names, said)

            judged: list[Photo] = []
            for item, path in part:
                name, key = names[path], keys.get(path, "")
                if path in reasons:
                    row = Photo(item, str(path), key, "rejected", None, reasons[path])
                else:
                    label, score = verdicts[key]
                    row = Photo(item, str(path), key, label, round(score, 4))
                    if name in said:
                        row = Photo(
                            item,
                            str(path),
                            key,
                            OVERRIDE_LABELS[said[name]],
                            row.score,
                            f"override: {said[name]}",
                        )
                    elif key in examples:
                        row = Photo(item, str(path), key, examples[key][1], row.score, "example")
                judged.append(row)
            mixed = mixed_items(judged, cache.rows if extractor.name == DEFAULT else None)
            for row, (_, path) in zip(judged, part, strict=True):
                if row.item in mixed and row.label == "garment":
                    row = replace(row, label="unsure", reason=MIXED)
                rows.append(row)
                if row.label == "rejected":
                    yield Event(names[path], "rejected", row.reason)
                else:
                    note = f"{row.label} ({row.reason})" if row.reason else row.label
                    yield Event(names[path], "done" if keys[path] in fresh else "kept", note)
    finally:
        cache.save()
    write_photos(folder / PHOTOS, rows)
    sheet = folder / "contact_sheet.png"
    shown = draw_sheet(rows, sheet, photos)
    summary.update(_count(rows))
    summary["overrides_without_photo"] = missed
    summary["examples"] = dict(Counter(labels))
    summary["examples_unreadable"] = [f"{examples[key][0]}: {reason}" for key, reason in bad.items()]
    summary["examples_doubtful"] = suspects
    summary["catalogue"] = str(folder / PHOTOS)
    summary["contact_sheet"] = (
        f"{sheet} ({shown} of {len(rows)} photos; {sheet.with_suffix('.txt').name} names them)"
    )
    summary["next"] = _advice(rows, config)


def _batches(keys: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _whole_items(found: list[tuple[str, Path]], least: int) -> Iterator[list[tuple[str, Path]]]:
    """Parts of at least so many photos that cut no item: a photo's copies are looked for in its item."""
    part: list[tuple[str, Path]] = []
    for item, path in found:
        if len(part) >= least and item != part[-1][0]:
            yield part
            part = []
        part.append((item, path))
    if part:
        yield part


def _looked_at(
    photos: Path, part: list[tuple[str, Path]], names: dict[Path, str], said: dict[str, str]
) -> tuple[dict[Path, str], dict[Path, str]]:
    """({path: sha256} of what may be a photo, {path: reason} of what is none or has the bytes of another of
    its item).
    """
    keys, reasons = dict[Path, str](), dict[Path, str]()
    first: dict[tuple[str, str], Path] = {}
    for item, path in sorted(
        part, key=lambda entry: names[entry[1]] not in said
    ):  # of equal files the one the user names stays
        refused = refusal(photos, item, path)
        if refused is None:
            try:
                keys[path] = sha256_photo(path)
            except BadImage as error:
                refused = error.reason
            except OSError:
                refused = "it may not be read"
        if refused is not None:
            reasons[path] = refused
            continue
        original = first.setdefault((item, keys[path]), path)
        if original != path:
            reasons[path] = f"duplicate of {original.name}"
    return keys, reasons


def _copies(
    part: list[tuple[str, Path]],
    keys: dict[Path, str],
    reasons: dict[Path, str],
    cache: FeatureCache,
    names: dict[Path, str],
    said: dict[str, str],
) -> dict[Path, str]:
    """{path: reason} of the photos that are smaller copies of another one of their item."""
    items: dict[str, list[Path]] = {}
    for item, path in part:
        if path in keys and path not in reasons:
            items.setdefault(item, []).append(path)
    found: dict[Path, str] = {}
    for paths in items.values():
        seen = [
            cache.seen(keys[path], path.name, first=said.get(names[path], "rejected") != "rejected")
            for path in paths
        ]
        for index, original in find_copies(seen).items():
            smaller = "smaller copy" if seen[index].area < seen[original].area else "copy"
            found[paths[index]] = f"{smaller} of {paths[original].name}"
    return found


# --- Inputs
# ------------------------------------------------------------------------------------------------------------


def _given(folder: Path | None, option: str, what: str) -> Path:
    if folder is None or not str(folder).strip():
        raise InputError(f"No folder given for --{option}.", f"Give a folder of {what}.")
    if not folder.is_dir():
        raise InputError(
            f"The folder {folder} given for --{option} does not exist or is not a folder.",
            f"Give a folder of {what}.",
        )
    return folder


def _examples(config: CleanConfig) -> dict[str, tuple[Path, str]]:
    """{sha256: (path, "human" | "garment")} of all example files that look like images."""
    from triptych.vision.classifier import MIN_EXAMPLES

    examples: dict[str, tuple[Path, str]] = {}
    for option in ("human", "garment"):
        folder = _given(
            getattr(config, option),
            option,
            f"photos that show {'a person' if option == 'human' else 'a garment alone'}",
        )
        count = 0
        refused: Counter[str] = Counter()
        for path in sorted(folder.rglob("*"), key=lambda path: natural(str(path))):
            if path.is_dir() or any(
                part.startswith(".") or is_managed(part) for part in path.relative_to(folder).parts
            ):
                continue
            try:
                key = sha256_photo(path)
            except BadImage as error:
                refused[error.reason] += 1
                continue
            except OSError:
                refused["it may not be read"] += 1
                continue
            if examples.get(key, (path, option))[1] != option:
                other = examples[key][0]
                raise InputError(
                    f"{path} is the same photo as {other}, an example of the other kind.",
                    "Delete one of the two.",
                )
            examples.setdefault(key, (path, option))
            count += 1
        if count < MIN_EXAMPLES:
            what = "no photos" if count == 0 else f"only {count} photos"
            hint = f"At least {MIN_EXAMPLES} are needed; a few dozen make a good classifier."
            others = (
                f" ({'; '.join(f'{n} × {reason}' for reason, n in refused.most_common(3))})"
                if refused
                else ""
            )
            raise InputError(f"There are {what} in {folder} given for --{option}{others}.", hint)
    return examples


def _override_file(config: CleanConfig) -> Path:
    return config.overrides or config.catalogue_folder / OVERRIDES


def _overrides(config: CleanConfig) -> dict[str, str]:
    path = _override_file(config)
    return read_overrides(path) if config.overrides is not None or path.exists() else {}


# --- Report
# ------------------------------------------------------------------------------------------------------------


def _count(rows: list[Photo]) -> dict[str, Any]:
    labels = Counter(row.label for row in rows)
    items: dict[str, set[str]] = {}
    for row in rows:
        if row.item:
            items.setdefault(row.item, set()).add(row.label)
    return {
        "photos": len(rows),
        **{label: labels[label] for label in ("human", "garment", "unsure", "rejected")},
        "reasons": dict(reject_reasons(rows)),
        "overridden": sum(row.reason.startswith("override") for row in rows),
        "items": len(items),
        "items_without_human": [item for item, seen in items.items() if "human" not in seen],
        "items_without_garment": [item for item, seen in items.items() if "garment" not in seen],
    }


def _advice(rows: list[Photo], config: CleanConfig) -> str:
    """What the user should do next, in a few sentences."""
    advice: list[str] = []
    if not any(row.label in ("human", "garment", "unsure") for row in rows):
        advice += why_nothing_usable(rows)
    elif links := sum(row.reason == LEAVES for row in rows):
        advice.append(
            f"{links} photos are links out of {config.photos}, which are not followed. {COPY_LINKS}"
        )
    if mixed := list(dict.fromkeys(row.item for row in rows if row.reason == MIXED)):
        advice.append(
            f"{len(mixed)} items seem to hold several garments each ({', '.join(mixed[:3])}): give every "
            "garment a folder of its own,"
            " or name the front and the back of such an item as below."
        )
    if any(row.reason == STRAY for row in rows):
        advice.append(
            "Photos beside folders of items belong to none of them: move them into the item's folder if they "
            "matter."
        )
    guessed = count_guessed(rows)
    if guessed or mixed:
        advice.append(
            f"Which photo is front and which back is a guess in {guessed} items: look at the contact sheet. "
            "To say it, write"
            f" 'item1/a.jpg front' and 'item1/b.jpg back' into {_override_file(config)} and run"
            " the same command again."
        )
    return " ".join(advice) or "Look at the contact sheet, then run `triptych concat`."
