"""The user's own captions in a folder: matches each file to the triptych that it describes."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.captioning.jobs import Job, last_captions
from triptych.data.captions import Caption, read_caption
from triptych.errors import InputError, sentence_of
from triptych.store.files import sha256_file, write_text
from triptych.store.journal import Journal

log = logging.getLogger(__name__)

ENDINGS = (".txt", ".caption", ".text", ".cap", ".md")
OTHER_TEXT = (
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".docx",
    ".doc",
    ".odt",
    ".rtf",
    ".xlsx",
    ".html",
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".heic")
OURS = re.compile(r"(?:caption|metadata|concat\.rejects)\.jsonl|\w+\.manifest\.json")


@dataclass
class Brought:
    """`texts`: caption and file name, by id of the triptych. `unmatched`: one line for each file that matches
    no triptych.
    """

    texts: dict[str, tuple[str, Path]] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    files: int = 0


def match_captions(folder: Path, jobs: Sequence[Job]) -> Brought:
    """Find the captions in a folder (and its subfolders) for these triptychs.

    A file has the name of a triptych's id or of its item; all triptychs of the item then share the caption. A
    file with the id takes precedence. Case, endings (`ID.png.txt`, `ID.caption`), separators between words
    (`a b`, `a_b`, `a-b`) and the category before `__` do not matter. A caption in the house format may also
    have the name of the photo of the made panel. A file that fits several triptychs is used for none.

    Raises:
        InputError: the folder is missing, or a caption for one of the triptychs cannot be read.
    """
    if not folder.is_dir():
        raise InputError(
            f"The captions folder {folder} is missing.", "Give a folder with <id>.txt or <item>.txt files."
        )
    brought, claims = Brought(), dict[str, list[tuple[tuple[int, int], Path]]]()
    names = [_names(jobs, level) for level in range(len(_LEVELS))]
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if any(part.startswith((".", "@", "__MACOSX")) for part in inside.parts) or OURS.fullmatch(file.name):
            continue
        ending = file.suffix.lower()
        if not file.is_file():
            if ending in ENDINGS and (file.is_symlink() or not file.is_dir()):
                brought.files += 1
                brought.unmatched.append(f"{inside}: no regular file, or a link to none")
            continue
        if ending in ENDINGS:
            brought.files += 1
            level, ids, why = _fits(inside, file, names)
            if why:
                brought.unmatched.append(f"{inside}: {why}")
            for id in ids:
                claims.setdefault(id, []).append(((level, ENDINGS.index(ending)), file))
        elif ending in OTHER_TEXT:
            brought.files += 1
            brought.unmatched.append(f"{inside}: no .txt file")
    for id, files in claims.items():
        first = min(rank for rank, _ in files)
        best = [file for rank, file in files if rank == first]
        texts = {read_caption(file) for file in best}
        if len(texts) > 1:
            brought.unmatched += [f"{file.relative_to(folder)}: {id} has several" for file in best]
        elif text := texts.pop():
            brought.texts[id] = (text, best[0])
        else:
            brought.unmatched.append(f"{best[0].relative_to(folder)}: it is empty")
    brought.unmatched = sorted(set(brought.unmatched))
    return brought


def own_captions(captions: Path | None, folder: Path, jobs: Sequence[Job]) -> Brought:
    """The captions in the user's folder for these triptychs. Warns about the files that match none.

    Raises:
        InputError: the folder is missing, or none of its files matches a triptych.
    """
    if captions is None or (captions.is_dir() and captions.resolve() == folder.resolve()):
        return Brought()
    own = match_captions(captions, jobs)
    if own.files and not own.texts and jobs:
        raise InputError(
            f"None of the {own.files} files in {captions} is a caption for one of the {len(jobs)} triptychs: "
            f"{_some(own.unmatched)}.",
            f"Name them <id>.txt, such as {jobs[0].id}.txt, or <item>.txt"
            + (f", such as {jobs[0].item}.txt." if jobs[0].item else "."),
        )
    if own.unmatched:
        log.warning(
            "%d files in %s are for no triptych: %s.", len(own.unmatched), captions, _some(own.unmatched)
        )
    return own


def _some(lines: Sequence[str], most: int = 10) -> str:
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")


def newer_captions(own: Brought, jobs: Sequence[Job], journal: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The text files to write, by id: captions of the user's folder that are missing beside the triptych, or
    newer than the caption there.
    """
    taken = {row.get("id"): row for row in journal if row.get("kind") == "brought"}
    ours, newer = last_captions(journal), dict[str, str]()
    for job in jobs:
        if job.id not in own.texts:
            continue
        text, file = own.texts[job.id]
        if job.text_file.exists():
            if taken.get(job.id, {}).get("source_sha256") == _sha256(text):
                continue  # taken before: the file beside the triptych is the same text, or was edited since
            now = sha256_file(job.text_file)
            known = now in (ours.get(job.id, {}).get("text_sha256"), taken.get(job.id, {}).get("text_sha256"))
            if now == _sha256(text + "\n") or (
                not known and file.stat().st_mtime <= job.text_file.stat().st_mtime
            ):
                continue
        newer[job.id] = text + "\n"
    return newer


def take_caption(path: Path, text: str, source: str, journal: Journal) -> None:
    """Write a caption from the user's folder. The journal keeps the caption that it replaces."""
    row = {"kind": "brought", "id": path.stem, "source_sha256": _sha256(source), "text_sha256": _sha256(text)}
    if path.exists():
        try:
            row["replaced"] = read_caption(path)
        except InputError as error:
            row["replaced"] = sentence_of(error)
    journal.append(row)
    write_text(path, text)


def _folded(name: str) -> str:
    return re.sub(r"[\s_\-./\\]+", "-", unicodedata.normalize("NFKC", name).casefold()).strip("-")


def _tail(name: str) -> str:
    return _folded(re.split(r"__|/|\\", name)[-1])


def _made(job: Job) -> str:
    """The name of the photo in the generated panel, if there is exactly one such panel."""
    made = job.layout.made
    return _folded(Path(str(job.row.get(made[0]) or "")).stem) if len(made) == 1 else ""


_LEVELS = (
    lambda job: unicodedata.normalize("NFC", job.id),
    lambda job: unicodedata.normalize("NFC", job.item),
    lambda job: _folded(job.id),
    lambda job: _folded(job.item),
    lambda job: _tail(job.item),
    _made,
)
"""The names by which a file may refer to a triptych, the most certain first."""


def _names(jobs: Sequence[Job], level: int) -> dict[str, dict[str, list[str]]]:
    """{name: {owner: ids}} at one level of `_LEVELS`. The owner of a name is a triptych, or an item with all
    its triptychs.
    """
    named: dict[str, dict[str, list[str]]] = {}
    for job in jobs:
        owner = job.item if level in (1, 3, 4) else job.id
        if name := _LEVELS[level](job):
            named.setdefault(name, {}).setdefault(owner, []).append(job.id)
    return named


def _fits(
    inside: Path, file: Path, names: Sequence[dict[str, dict[str, list[str]]]]
) -> tuple[int, list[str], str]:
    """(level, ids, "") of a file, or (0, [], the reason why it matches no triptych)."""
    stem = inside.name[: -len(inside.suffix)]
    while stem.lower().endswith((*PICTURES, *ENDINGS)):
        stem = stem.rsplit(".", 1)[0]
    whole = "__".join([*inside.parts[:-1], stem])
    for level, named in enumerate(names):
        plain = level < 2
        for name in dict.fromkeys((whole, stem)):
            owners = named.get(
                unicodedata.normalize("NFC", name) if plain else _tail(name) if level == 4 else _folded(name)
            )
            if not owners:
                continue
            if len(owners) > 1:
                return 0, [], f"it may be for {' or '.join(sorted(owners)[:3])}"
            if level == len(names) - 1 and not _is_whole(file):
                return (
                    0,
                    [],
                    "named for a photo; a caption of a triptych has the markers <IMAGE 1> to <IMAGE 3>",
                )
            return level, next(iter(owners.values())), ""
    return 0, [], "no triptych or item has that name"


def _is_whole(file: Path) -> bool:
    try:
        return bool(Caption.parse(read_caption(file)))
    except InputError:
        return False


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
