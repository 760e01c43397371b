"""The triptychs of a folder as `caption` sees them: picture, caption file and row of metadata.jsonl."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.data.captions import markers_of, normalise, read_caption
from triptych.data.pairing import CHUNK, earlier_pictures
from triptych.data.triptychs import TriptychFolder, caption_file
from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout
from triptych.store.files import sha256_file
from triptych.store.journal import Journal
from triptych.store.text import CAPTION_BYTES
from triptych.tasks import DEFAULT


@dataclass(frozen=True)
class Job:
    """One triptych and its row in metadata.jsonl (empty for a picture that `concat` did not make)."""

    picture: Path
    row: dict[str, Any]

    @property
    def id(self) -> str:
        return self.picture.stem

    @property
    def text_file(self) -> Path:
        return caption_file(self.picture)

    @property
    def told_caption(self) -> str:
        """The caption in the field `text` of a foreign metadata.jsonl; empty if `caption` filled it."""
        text = self.row.get("text")
        return (
            normalise(text)
            if isinstance(text, str) and len(text) <= CAPTION_BYTES and "caption_by" not in self.row
            else ""
        )

    @property
    def layout(self) -> PanelLayout:
        """The layout in the row; without one, that of the default task. Its size in pixels may differ from
        the picture's.
        """
        return _layout_of(self.row)

    @property
    def markers(self) -> tuple[str, ...]:
        """The markers of its caption; empty for the house format."""
        return markers_of(self.row.get("markers"), len(self.layout.roles))

    @property
    def item(self) -> str:
        return str(self.row.get("item") or "")


def read_jobs(folder: TriptychFolder) -> list[Job]:
    """A job for every picture in a folder.

    A picture without a row (one that the user moved back, say) gets the facts that the journal or the picture
    itself still holds.

    Raises:
        WorkError: a metadata.jsonl that is damaged.
    """
    rows = {str(row.get("file_name")): row for row in folder.rows()}
    before = {
        row.get("id"): checked_row(row.get("row"))
        for row in folder.journal_rows()
        if row.get("kind") == "rejected"
    }
    jobs = []
    for picture in folder.pictures():
        row = rows.get(picture.name) or {}
        if not row.get("item"):
            row = (
                origin_of(picture)
                | {key: value for key, value in before.get(picture.stem, {}).items() if key != "layout"}
                | row
            )
        jobs.append(Job(picture, row))
    return jobs


def _layout_of(row: Mapping[str, Any]) -> PanelLayout:
    with contextlib.suppress(ValueError):
        return PanelLayout.from_dict(row.get("layout"))
    return DEFAULT.layout(1, 1)


def last_captions(journal: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By id, the row of the last caption that a captioner wrote."""
    return {str(row["id"]): dict(row) for row in journal if row.get("kind") == "caption" and "id" in row}


def checked_row(row: Any) -> dict[str, Any]:
    """The valid fields of a stored row: item, hashes, names of the photos and layout."""
    if not isinstance(row, dict):
        return {}
    item = row.get("item")
    kept: dict[str, Any] = (
        {"item": item} if isinstance(item, str) and 0 < len(item) <= 1000 and "\0" not in item else {}
    )
    layout = _layout_of(row)
    hashes = [f"{role}_sha256" for role in layout.roles]
    kept |= {name: row[name] for name in hashes if re.fullmatch(r"\w{1,64}", str(row.get(name, "")))}
    kept |= {
        role: row[role]
        for role in layout.roles
        if isinstance(row.get(role), str) and len(row[role]) <= 4096 and role not in kept
    }
    if markers := markers_of(row.get("markers"), len(layout.roles)):
        kept["markers"] = [*markers]
    with contextlib.suppress(ValueError):
        kept |= {"layout": PanelLayout.from_dict(row["layout"]).to_dict()} if "layout" in row else {}
    return kept


def origin_of(picture: Path) -> dict[str, Any]:
    """The facts that `concat` wrote into a picture, as far as they are plausible;
    empty for other pictures.
    """
    try:
        with Image.open(picture, formats=["PNG"]) as image:
            row, size = checked_row(json.loads(image.info.get(CHUNK, "{}"))), image.size
        if "layout" in row and PanelLayout.from_dict(row["layout"]).size != size:
            return {}
        paths = _layout_of(row).roles
        # a picture's paths are not trusted
        return {key: value for key, value in row.items() if key not in paths}
    except (OSError, ValueError, SyntaxError, RecursionError, TypeError, Image.DecompressionBombError):
        return {}


def state_of(job: Job, ours: Mapping[str, Any] | None) -> tuple[str, str]:
    """(asked | kept | brought, who wrote the caption): what to do about a triptych. `ours`: its journal row.

    Our caption stays if `concat` remade the picture from the same photos in another size, because the caption
    describes the photos.
    """
    if not job.text_file.exists():
        return "asked", ""
    if ours is None or sha256_file(job.text_file) != ours.get("text_sha256"):
        return "brought", "user"
    if ours.get("image_sha256") not in (sha256_file(job.picture), *earlier_pictures(job.picture)):
        return "asked", ""  # our caption describes a picture of other photos
    return "kept", str(ours.get("captioner"))


OTHER_PICTURE = (
    "the picture was made of other photos, or with its sides swapped, since this caption was "
    "brought: it may describe the others"
)


def own_captions_seen(journal: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By id, the row of the user's caption that an earlier run found, with the hash of its picture."""
    return {str(row["id"]): dict(row) for row in journal if row.get("kind") == "own" and "id" in row}


def note_own(job: Job, seen: Mapping[str, Any] | None, journal: Journal) -> tuple[bool, str]:
    """(whether the user's caption is new since `seen`, a warning or ""); a new caption is noted with its
    picture.
    """
    text, picture = sha256_file(job.text_file), sha256_file(job.picture)
    if seen is None or seen.get("text_sha256") != text:
        journal.append({"kind": "own", "id": job.id, "text_sha256": text, "image_sha256": picture})
        return True, ""
    same = seen.get("image_sha256") in (picture, *earlier_pictures(job.picture))
    return False, "" if same else OTHER_PICTURE


def write_metadata(path: Path, jobs: Sequence[Job], by: Mapping[str, str]) -> None:
    """Write metadata.jsonl with one row for every triptych in the folder and its caption as `text`; rows of
    other files stay.
    """
    folder = TriptychFolder(path)
    ours = {job.picture.name for job in jobs}
    before, rows = folder.rows(), []
    for job in jobs:
        if not job.picture.exists():
            continue
        row: dict[str, Any] = {"file_name": job.picture.name, "id": job.id} | {
            k: v for k, v in job.row.items() if k != "text"
        }
        if job.text_file.exists():
            with contextlib.suppress(InputError):  # the caption's warning says why
                row["text"] = read_caption(job.text_file)
            row["caption_by"] = by.get(job.id, row.get("caption_by", "user"))
        rows.append(row)
    rows += [row for row in before if _is_beside(path, row.get("file_name")) and row["file_name"] not in ours]
    if rows != before:
        folder.write_rows(rows)


def _is_beside(folder: Path, name: Any) -> bool:
    return (
        isinstance(name, str) and Path(name).name == name and "\0" not in name and (folder / name).is_file()
    )
