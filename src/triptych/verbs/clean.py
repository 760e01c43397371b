"""clean: sort raw product photos into human and garment photos. The result is a catalogue file; the photos
stay in place.

A support vector machine, trained on two folders of examples, classifies every photo. Pixels are read only for
new photos: the catalogue keeps features by the sha256 of the file.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from triptych import progress
from triptych.data.catalogue import (
    MIXED,
    OVERRIDES,
    PHOTOS,
    Photo,
    flag_counts,
    match_overrides,
    override_example,
    read_overrides,
    reject_reasons,
    why_nothing_usable,
    write_photos,
)
from triptych.data.catalogue_sheet import draw_sheet
from triptych.data.photo_folders import COPY_LINKS, LEAVES, STRAY, check_examples, find_photos, refusal
from triptych.data.sorted_folders import write_sorted
from triptych.data.told_roles import told_roles
from triptych.data.views import count_guessed
from triptych.events import Event, Run, held
from triptych.execution import PerWorker, execute
from triptych.pictures.images import BadImage, sha256_photo
from triptych.store.folder import StageFolder
from triptych.tasks import task_named
from triptych.verbs.clean_config import CleanConfig
from triptych.vision.examples import given_folder, read_examples
from triptych.vision.feature_cache import FeatureCache, look_at
from triptych.vision.verdicts import Judge, Limits, Looked, PhotoFile, fault_of, named_first

log = logging.getLogger(__name__)

BATCH = 16  # photos decoded at a time


def clean(config: CleanConfig) -> Run:
    """Label every photo below `config.photos`: catalogue/photos.jsonl, classifier.safetensors and
    contact_sheet.png.

    Run again after adding photos, examples or overrides: only new photos are computed. Event ids are relative
    paths, notes are labels or reasons for rejection; `kept` marks photos with features from an earlier run.

    Raises:
        InputError: a folder that is not given, missing or without photos; too few examples; a photo that is
            an example of both kinds; an override file with an error. ConfigError: no such task.
        ModelError: features that cannot be loaded.
        WorkError: another run is writing to the catalogue.
    """
    photos = given_folder(config.photos, "photos", "raw photos, one folder per item")
    check_examples(config.human, config.garment, photos)
    examples = read_examples(config.human, config.garment)
    roles = task_named(config.task).photo_roles
    found = find_photos(photos, roles, [config.work, config.catalogue_folder, config.human, config.garment])
    overrides = _overrides(config)
    tools = PerWorker(Eyes, config)
    tools()  # reports problems with the features at once
    folder = StageFolder(config.catalogue_folder, "clean", {"stage": "clean"})
    summary: dict[str, Any] = {}

    def work() -> Iterator[Event]:
        names = [path.relative_to(photos).as_posix() for _, path in found]
        said, missed = match_overrides(overrides, names, photos)
        if missed:
            listed = ", ".join(missed[:5])
            log.warning(
                "No photo is meant by %d lines of %s: %s.", len(missed), _override_file(config), listed
            )
        files = [
            PhotoFile(item, path, name, place, said.get(name, ""))
            for place, ((item, path), name) in enumerate(zip(found, names, strict=True))
        ]
        cache = tools().cache
        try:
            judge, told = _learn(config, examples, tools)
            book = Book(judge)
            for looked in execute(make, todo(files), tools, on=config.on):
                yield from record(book, looked)
        finally:
            cache.save()
        book.rows = judge.compared(book.rows)
        write_photos(folder.path / PHOTOS, book.rows)
        if config.sorted_folders:
            summary["in_folders"] = write_sorted(folder.path, book.rows)
        sheet = folder.path / "contact_sheet.png"
        shown = draw_sheet(book.rows, sheet, photos, roles, told_roles(folder.path))
        summary.update(_count(book.rows), overrides_without_photo=missed, **told)
        summary["catalogue"] = str(folder.path / PHOTOS)
        summary["contact_sheet"] = (
            f"{sheet} ({shown} of {len(book.rows)} photos; {sheet.with_suffix('.txt').name} names them)"
        )
        summary["next"] = _advice(book.rows, config)
        run.failed = 0 if summary["human"] or summary["garment"] or summary["unsure"] else summary["rejected"]

    run = Run("clean", len(found), held(folder, work), summary)
    return run


def _learn(
    config: CleanConfig, examples: dict[str, tuple[Path, str]], tools: PerWorker[Eyes]
) -> tuple[Judge, dict[str, Any]]:
    """A judge trained on the examples, and the examples' part of the summary."""
    from triptych.vision.classifier import doubtful, train_classifier

    files = [PhotoFile("", path, path.name, 0, key=key) for key, (path, _) in examples.items()]
    extractor, cache, bad = tools().extractor, tools().cache, dict[str, str]()
    for looked in execute(make, todo(files, "looking at examples"), tools, on=config.on):
        cache.add(looked.features)
        bad |= looked.broken
    blank = Limits(min_side=1, min_sharpness=0)
    bad |= {key: fault for key in examples if key not in bad and (fault := fault_of(cache, key, blank))}
    good = [key for key in examples if key not in bad]
    known, labels = cache.rows(good), [examples[key][1] for key in good]
    classifier = train_classifier(known, labels, extractor=extractor.identity, unsure=config.unsure)
    classifier.save(config.catalogue_folder / "classifier.safetensors")
    suspects = [str(examples[good[index]][0]) for index in doubtful(known, labels, seed=config.seed)]
    told = {
        "examples": dict(Counter(labels)),
        "examples_unreadable": [f"{examples[key][0]}: {reason}" for key, reason in bad.items()],
        "examples_doubtful": suspects,
    }
    limits = Limits(
        config.min_side,
        config.min_sharpness,
        config.small_side,
        config.min_shared_colours,
        config.max_likelier,
    )
    roles = task_named(config.task).photo_roles
    return Judge(classifier, cache, extractor.name, examples, roles, limits), told


# --- todo · make · record


@dataclass(frozen=True)
class Batch:
    """At most `BATCH` files that are read together.

    closes: whether the next batch begins another item. doing, start, of: text of the progress message, and
    numbers of earlier files and of all files.
    """

    photos: tuple[PhotoFile, ...]
    closes: bool
    doing: str
    start: int
    of: int


def todo(photos: Sequence[PhotoFile], doing: str = "looking at photo") -> list[Batch]:
    """All files, in batches. Whether a photo's features are in the cache is known only after reading it."""
    batches: list[Batch] = []
    done = 0
    for part in _whole_items(photos, BATCH):
        ordered = named_first(part)
        for start in range(0, len(ordered), BATCH):
            few = tuple(ordered[start : start + BATCH])
            last = start + BATCH >= len(ordered)
            batches.append(Batch(few, last, doing, done + start, len(photos)))
        done += len(part)
    return batches


def _whole_items(photos: Sequence[PhotoFile], least: int) -> Iterator[list[PhotoFile]]:
    """Parts of at least `least` photos that divide no item: a photo's copies are searched for in its item."""
    part: list[PhotoFile] = []
    for photo in photos:
        if len(part) >= least and photo.item != part[-1].item:
            yield part
            part = []
        part.append(photo)
    if part:
        yield part


class Eyes:
    """The tools of a worker: the feature network, and the known features."""

    def __init__(self, config: CleanConfig) -> None:
        from triptych.vision.features import load_extractor

        self._config, self.extractor = config, load_extractor(config.features)

    @property
    def photos(self) -> Path:
        assert self._config.photos is not None
        return self._config.photos

    @cached_property
    def cache(self) -> FeatureCache:
        return FeatureCache(self._config.catalogue_folder / "features.safetensors", self.extractor)


def make(batch: Batch, eyes: Eyes) -> Looked:
    """Read the files of a batch, and compute the unknown features."""
    progress.doing(batch.doing, batch.start + 1, batch.of)
    looked = Looked(list(batch.photos), closes=batch.closes)
    for photo in batch.photos:
        refused = None if photo.key else refusal(eyes.photos, photo.item, photo.path)
        if refused is None:
            try:
                looked.keys[photo.path] = photo.key or sha256_photo(photo.path)
            except BadImage as error:
                refused = error.reason
            except OSError:
                refused = "it may not be read"
        if refused is not None:
            looked.refused[photo.path] = refused
    wanted = {key: path for path, key in looked.keys.items()}
    looked.features, looked.broken = look_at(wanted, eyes.extractor, eyes.cache)
    return looked


@dataclass
class Book:
    """The targets of `record`: the cache (held by the judge), and the rows of the catalogue.

    part, fresh: the files of items that are still incomplete, and the new photos among them.
    """

    judge: Judge
    rows: list[Photo] = field(default_factory=list)
    part: Looked = field(default_factory=Looked)
    fresh: set[str] = field(default_factory=set)


def record(book: Book, looked: Looked) -> list[Event]:
    """Keep the features of a batch; with the last batch of an item, judge its files."""
    book.fresh |= {key for key in looked.features if key not in book.judge.cache}
    book.judge.cache.add(looked.features)
    book.part.add(looked)
    if not looked.closes:
        return []
    part, fresh = book.part, book.fresh
    book.part, book.fresh = Looked(), set()
    events: list[Event] = []
    files = sorted(part.photos, key=lambda photo: photo.place)
    for photo, row in zip(files, book.judge.verdicts(part), strict=True):
        book.rows.append(row)
        if row.label == "rejected":
            events.append(Event(photo.name, "rejected", row.reason, result=row))
        else:
            why = "; ".join(filter(None, (row.reason, row.flags)))
            note = f"{row.label} ({why})" if why else row.label
            events.append(Event(photo.name, "done" if row.sha256 in fresh else "kept", note, result=row))
    return events


# --- Inputs and report


def _override_file(config: CleanConfig) -> Path:
    return config.overrides or config.catalogue_folder / OVERRIDES


def _overrides(config: CleanConfig) -> dict[str, str]:
    path = _override_file(config)
    return (
        read_overrides(path, task_named(config.task).photo_roles.names)
        if config.overrides is not None or path.exists()
        else {}
    )


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
        "flagged": flag_counts(rows),
        "overridden": sum(row.reason.startswith("override") for row in rows),
        "items": len(items),
        "items_without_human": [item for item, seen in items.items() if "human" not in seen],
        "items_without_garment": [item for item, seen in items.items() if "garment" not in seen],
    }


def _advice(rows: list[Photo], config: CleanConfig) -> str:
    """Advice on the next step, in a few sentences."""
    roles = task_named(config.task).photo_roles
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
            f" or name {' and '.join(f'the {role}' for role in roles.names)} of such an item as below."
        )
    if strays := [row.path for row in rows if row.reason == STRAY]:
        named = ", ".join(os.path.relpath(path, config.photos) for path in strays[:3])
        more = ", …" if len(strays) > 3 else ""
        advice.append(
            f"Does {named} belong to an item? It lies beside folders of items and was left out: move it into "
            "its item's folder."
            if len(strays) == 1
            else f"Do these {len(strays)} photos belong to items: {named}{more}? They lie beside folders of "
            "items and were left out: move each into its item's folder."
        )
    if flagged := sum(bool(row.flags) for row in rows):
        advice.append(
            f"{flagged} photo{'s are' if flagged > 1 else ' is'} flagged: the contact sheet says why. To "
            f"leave one out, write 'item1/a.jpg rejected' into {_override_file(config)}."
        )
    guessed = count_guessed(rows, roles, told_roles(config.catalogue_folder))
    if guessed or mixed:
        advice.append(
            f"Which photo is {' and which '.join(roles.names)} is a guess in {guessed} "
            f"item{'' if guessed == 1 else 's'}: look at the contact sheet. To say it, write "
            f"{override_example(roles.names)} into {_override_file(config)} and run the same command "
            "again; `triptych roles` asks a captioner. Then run `triptych concat`."
        )
    return " ".join(advice) or "Look at the contact sheet, then run `triptych concat`."
