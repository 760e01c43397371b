"""import, of a try-on data set: VITON-HD, DressCode or Garments2Look.

catalogue/items/ITEM/front.jpg, worn.jpg    the items for training, as hard links to the set's files
                                            (copies where the disk has no links)
catalogue/photos.jsonl                      the same as `clean` would write it: `concat` goes on from here
catalogue/test/ITEM/…, test/pairs.csv       the items that the set keeps for testing, which no stage trains on
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.data.catalogue import PHOTOS, Photo, read_photos, write_photos
from triptych.data.tryon_sets import SetItem, read_items
from triptych.errors import InputError
from triptych.events import Event, Run, held
from triptych.pictures.images import BadImage, sha256_photo
from triptych.store.files import write_text
from triptych.store.folder import StageFolder
from triptych.store.links import link_or_copy
from triptych.verbs.import_set_config import ImportConfig

IMPORTED = "imported"
"""The reason for a label that the set itself gives."""


def import_pairs(config: ImportConfig, kind: str) -> Run:
    """Take the items of a set into the catalogue; its folder is only read.

    Raises:
        InputError: an unreadable list, no item, or a catalogue of other photos in the work folder.
    """
    assert config.folder is not None
    items = read_items(config.folder, kind)
    catalogue = config.catalogue_folder
    if (catalogue / PHOTOS).exists() and any(
        row.reason != IMPORTED for row in read_photos(catalogue / PHOTOS)
    ):
        raise InputError(
            f"{catalogue} is the catalogue of other photos.", "Import into a folder of its own: --work NEW."
        )
    task = "outfit" if kind == "garments2look" else "try-on"
    summary: dict[str, Any] = {"set": kind, "items": len(items), "train": 0, "test": 0, "rejected": 0}
    summary |= {"reasons": {}, "linked": 0, "copied": 0, "catalogue": str(catalogue / PHOTOS)}
    summary |= {"test_pairs": "", "task": task}

    def work() -> Iterator[Event]:
        rows, tests = list[Photo](), list[dict[str, str]]()
        for item in items:
            if not item.garments:
                reason = (
                    f"not there: {', '.join(item.missing)}" if item.missing else "no garment of a known type"
                )
                summary["rejected"] += 1
                short = reason.partition(":")[0]
                summary["reasons"][short] = summary["reasons"].get(short, 0) + 1
                yield Event(item.name, "rejected", reason)
                continue
            home = catalogue / ("test" if item.test else "items") / item.name
            try:
                photos = _placed(item, home, summary)
            except BadImage as error:
                summary["rejected"] += 1
                summary["reasons"][error.reason] = summary["reasons"].get(error.reason, 0) + 1
                yield Event(item.name, "rejected", error.reason)
                continue
            summary["test" if item.test else "train"] += 1
            if item.test:
                tests.append(_pair(item, photos, catalogue / "test"))
            else:
                rows += photos
            yield Event(item.name, note="test" if item.test else "train", result=home)
        write_photos(catalogue / PHOTOS, rows)
        if tests:
            summary["test_pairs"] = str(catalogue / "test" / "pairs.csv")
            _write_pairs(catalogue / "test" / "pairs.csv", tests)
        summary["next"] = "triptych concat" + (" --task outfit" if task == "outfit" else "")
        run.failed = 0 if summary["train"] or summary["test"] else summary["rejected"]

    run = Run("import", len(items), held(StageFolder(catalogue, "import", {}), work), summary)
    return run


def _placed(item: SetItem, home: Path, summary: dict[str, Any]) -> list[Photo]:
    """The photos of an item in its folder, each under the name of its role."""
    rows = []
    for role, source in (*item.garments.items(), ("worn", item.worn)):
        key = sha256_photo(source)
        target = home / f"{role}{source.suffix.lower()}"
        linked = link_or_copy(source, target)
        summary["linked" if linked else "copied"] += 1
        label = "human" if role == "worn" else "garment"
        rows.append(Photo(item.name, str(target), key, label, None, IMPORTED))
    return rows


def _pair(item: SetItem, photos: list[Photo], folder: Path) -> dict[str, str]:
    """A row of pairs.csv, with paths from its folder."""
    worn = Path(photos[-1].path).relative_to(folder).as_posix()
    garment = Path(photos[0].path).relative_to(folder).as_posix()
    return {"id": item.name, "person": worn, "garment": garment, "truth": worn}


def _write_pairs(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("id", "person", "garment", "truth"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
