"""report: a page about a catalogue for whoever looks after the photos: every item, what was found in it,
why each photo was left out, and which views are missing.

catalogue/report.html    one file, with small pictures inside, which asks nothing from anywhere
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych import progress
from triptych.data.catalogue import PHOTOS, Photo, read_photos, reject_reasons
from triptych.data.catalogue_sheet import COLOURS, sides_of
from triptych.data.roles import PhotoRoles
from triptych.data.told_roles import told_roles
from triptych.data.triptychs import TriptychFolder
from triptych.events import Event, Run
from triptych.pages.report import Entry, Shot, report_page
from triptych.pictures.images import BadImage, load_image
from triptych.store.files import write_text
from triptych.tasks import task_named
from triptych.verbs.report_config import ReportConfig

THUMBNAIL = 160
"""Longer side in pixels."""


def report(config: ReportConfig) -> Run:
    """Write the page.

    Raises:
        WorkError: no catalogue. ConfigError: no such task.
    """
    roles = task_named(config.task).photo_roles
    rows = read_photos(config.catalogue_folder / PHOTOS)
    told = told_roles(config.catalogue_folder)
    items: dict[str, list[Photo]] = {}
    for row in rows:
        items.setdefault(row.item, []).append(row)
    out = config.out or config.catalogue_folder / "report.html"
    made = Counter(str(row.get("item") or "") for row in TriptychFolder(config.triptych_folder).rows())
    summary: dict[str, Any] = {"photos": len(rows), "items": len(items.keys() - {""}), "complete": 0}
    summary |= {"incomplete": 0, "rejected": 0, "flagged": 0, "report": str(out)}

    def work() -> Iterator[Event]:
        entries: list[Entry] = []
        states: Counter[str] = Counter()
        room = config.thumbnails
        ordered = sorted(items.items(), key=lambda one: not (_lacks(one[1], roles) or _marked(one[1])))
        for place, (item, photos) in enumerate(ordered, 1):
            progress.doing("drawing item", place, len(ordered))
            sides = sides_of(photos, roles, told)
            shots = [_shot(photo, sides.get(photo, ""), room - at > 0) for at, photo in enumerate(photos)]
            room -= len(photos)
            lacks = _lacks(photos, roles) if item else "files outside the folders of items"
            if item:
                states[lacks or "complete"] += 1
            entries.append(Entry(item or "(no item)", lacks, made[item] if item else 0, shots))
            yield Event(item or "(no item)", note=lacks or "complete")
        labels = Counter(row.label for row in rows)
        flagged = sum(bool(row.flags) for row in rows)
        verdicts = {name: labels[name] for name in ("human", "garment", "unsure", "rejected")}
        page = report_page(
            f"Catalogue: {summary['items']} items, {len(rows)} photos",
            {_WORDS[name]: count for name, count in verdicts.items()},
            dict(reject_reasons(rows)),
            dict(states.most_common()),
            entries,
        )
        write_text(out, page)
        summary.update(complete=states["complete"], incomplete=states.total() - states["complete"])
        summary.update(rejected=labels["rejected"], flagged=flagged)

    return Run("report", len(items), work(), summary)


_WORDS = {
    "human": "show a person",
    "garment": "show a garment alone",
    "unsure": "unsure: not used until somebody says what they are",
    "rejected": "rejected: left out, with a reason",
}


def _marked(photos: list[Photo]) -> bool:
    return any(photo.flags or photo.label in ("unsure", "rejected") for photo in photos)


def _lacks(photos: list[Photo], roles: PhotoRoles) -> str:
    """The views that an item has no photo of, in words."""
    labels = Counter(photo.label for photo in photos)
    missing = [] if labels["garment"] else ["no photo of the garment alone"]
    if labels["garment"] == 1 and not roles.some and len(roles.names) > 1:
        missing.append(f"only one photo of the garment, no {' or '.join(roles.names[1:])}")
    missing += [] if labels["human"] else ["no photo of a person wearing it"]
    return "; ".join(missing)


def _shot(photo: Photo, side: str, drawn: bool) -> Shot:
    verdict = photo.label + (f", {side}" if side else "")
    note = "; ".join(filter(None, (photo.reason, photo.flags)))
    return Shot(
        Path(photo.path).name, verdict, COLOURS[photo.label], note, _thumbnail(photo) if drawn else ""
    )


def _thumbnail(photo: Photo) -> str:
    """A small JPEG as a data URL; "" for what is no picture."""
    if not photo.sha256:
        return ""
    with contextlib.suppress(BadImage):
        small = load_image(Path(photo.path), longest=THUMBNAIL)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return ""
