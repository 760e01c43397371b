"""Moves failed triptychs away, each with a file that gives the reason, and moves them back on request."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.captioning.jobs import Job, checked_row, origin_of
from triptych.data.triptychs import PICTURES, TriptychFolder
from triptych.errors import TriptychError
from triptych.store.files import read_json, sha256_file, write_json
from triptych.store.journal import Journal
from triptych.wording.commands import typed

COME_BACK = "triptych caption --retry-failed"
"""The command that moves failed pictures back."""


class Rejected(Exception):
    """A triptych that failed. `step` is check or caption; the message gives the reason.

    `fault` is `picture` if the captioner clearly saw a problem with the picture; otherwise see `AnswerError`.
    """

    def __init__(self, step: str, reason: str, fault: str = "picture", hint: str = "") -> None:
        super().__init__(reason)
        self.step, self.fault, self.hint = step, fault, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return Rejected, (self.step, str(self), self.fault, self.hint)


def move_away(job: Job, sha256: str, reason: Rejected, fail_folder: Path, journal: Journal) -> Path:
    """Move a picture to `fail_folder` and write the reason beside it. Overwrites nothing there, and a kill
    loses nothing.
    """
    fail_folder.mkdir(parents=True, exist_ok=True)
    for number in range(10_000):
        target = fail_folder / (f"{job.id}-{number}{job.picture.suffix}" if number else job.picture.name)
        try:
            copy_new(job.picture, target)
        except FileExistsError:
            if sha256_file(target) != sha256:
                continue  # another picture of that name; an equal file is left from an interrupted move
        break
    about: dict[str, Any] = {"id": job.id, "step": reason.step, "reason": str(reason), "image_sha256": sha256}
    about["come_back"] = typed(COME_BACK)
    hashes = (f"{role}_sha256" for role in job.layout.roles)
    about |= {key: job.row[key] for key in ("item", *hashes) if key in job.row}
    about["row"] = checked_row(job.row)
    write_json(target.with_name(f"{target.stem}.reason.json"), about)
    journal.append({"kind": "rejected", "moved_to": str(target)} | about)
    job.text_file.unlink(missing_ok=True)  # only ever a caption that we wrote for an earlier picture
    job.picture.unlink()
    return target


def copy_new(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it to another disk; FileExistsError if the target exists."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        with open(source, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            with contextlib.suppress(OSError):
                os.fsync(new.fileno())


@dataclass(frozen=True)
class Failed:
    """A picture in the folder of failed ones, and its job."""

    picture: Path
    job: Job
    sha256: str

    @property
    def text_file(self) -> Path:
        """A caption that the user may have written beside the failed picture."""
        return self.picture.with_suffix(".txt")


def find_failed(
    fail_folder: Path, folder: Path, journal: Sequence[Mapping[str, Any]]
) -> tuple[list[Failed], list[str]]:
    """(the failed pictures that can be moved back, the reasons why others cannot).

    Only pictures whose content hash is in their reason file or in the journal: all other files there are the
    user's.
    """
    told = {
        row.get("image_sha256"): (number, row)
        for number, row in enumerate(journal)
        if row.get("kind") == "rejected"
    }
    latest: dict[str, tuple[int, Failed]] = {}
    left = []
    there = TriptychFolder(folder)
    for picture in sorted(fail_folder.glob("*")) if fail_folder.is_dir() else []:
        if picture.name.startswith(".") or picture.suffix.lower() not in PICTURES or not picture.is_file():
            continue
        sha256 = sha256_file(picture)
        number, known = told.get(sha256, (-1, {}))
        about = _reason(picture)
        if about.get("image_sha256") != sha256:
            about = dict(known)
        id = about.get("id")
        if (
            not isinstance(id, str)
            or not id
            or Path(f"{id}.png").name != f"{id}.png"
            or id.startswith(".")
            or "\0" in id
        ):
            left.append(f"{picture.name}: no reason of ours lies beside it")
            continue
        target = there.picture(id, picture.suffix)
        if target.exists() and sha256_file(target) != sha256:
            left.append(f"{picture.name}: another picture of that name is in {folder}")
            continue
        row = origin_of(picture) | checked_row(
            {**about, **(about.get("row") or {})} if isinstance(about.get("row"), dict) else about
        )
        one = Failed(picture, Job(target, row), sha256)
        if id in latest:
            older = min(latest[id], (number, one), key=lambda pair: pair[0])[1]
            left.append(f"{older.picture.name}: a later picture of {id} has failed as well")
            if older is one:
                continue
        latest[id] = (number, one)
    return [one for _, one in latest.values()], left


def _reason(picture: Path) -> dict[str, Any]:
    try:
        about = read_json(picture.with_name(f"{picture.stem}.reason.json"))
    except (TriptychError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def bring_back(failed: Failed, journal: Journal) -> None:
    """Move a failed picture back, with the caption written beside it if there is one; earlier answers about
    it are forgotten.
    """
    with contextlib.suppress(FileExistsError):  # the same picture, left from an interrupted return
        copy_new(failed.picture, failed.job.picture)
    if failed.text_file.is_file():
        with contextlib.suppress(FileExistsError):
            copy_new(failed.text_file, failed.job.text_file)
            failed.text_file.unlink()
    journal.append({"kind": "returned", "id": failed.job.id, "image_sha256": failed.sha256})
    failed.picture.with_name(f"{failed.picture.stem}.reason.json").unlink(missing_ok=True)
    failed.picture.unlink()


def still_failed(journal: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The journal's rows about pictures that failed and were not moved back."""
    rows: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in journal:
        if row.get("kind") == "rejected":
            rows[row.get("id"), row.get("image_sha256")] = row
        elif row.get("kind") == "returned":
            rows = {key: kept for key, kept in rows.items() if key[0] != row.get("id")}
    return list(rows.values())


def waiting(fail_folder: Path) -> int:
    """The number of failed pictures in a folder."""
    return (
        sum(1 for path in fail_folder.glob("*.reason.json") if _is_dict(path)) if fail_folder.is_dir() else 0
    )


def _is_dict(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
