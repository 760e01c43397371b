"""The captions of the triptychs as a person edits them: with their problems, saved where `embed` reads them.
No gradio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from triptych.backbones.settings import model_settings
from triptych.captioning.jobs import Job, last_captions, read_jobs
from triptych.captioning.write import linter
from triptych.data.captions import example, in_house, normalise, read_caption, with_markers
from triptych.data.triptychs import JOURNAL, METADATA, TriptychFolder
from triptych.errors import InputError
from triptych.store.files import digest, mark_of, sha256_file, write_text
from triptych.store.text import CAPTION_BYTES


@dataclass(frozen=True)
class Entry:
    """A triptych and its caption.

    text: "" without one. was: the hash of the caption's file, "" without one. by: who wrote it. problems:
    those of the house format.
    """

    key: str
    id: str
    item: str
    roles: tuple[str, ...]
    text: str
    was: str
    by: str
    problems: list[str]


class Captions:
    """The captions in a folder of triptychs. model: the diffusion model whose text encoder will read them."""

    def __init__(self, folder: Path, model: str) -> None:
        self.path, self.model, self._lock = folder, model, threading.Lock()
        self._jobs: tuple[object, dict[str, Job], dict[str, str]] | None = None
        self._lint = lru_cache(maxsize=20_000)(self._linted)

    @lru_cache(maxsize=1)  # noqa: B019 - one for the life of the page
    def _problems(self) -> Callable[[str, int], list[str]]:
        return linter(self.model, model_settings(self.model).max_sequence_length)

    def _linted(self, text: str, panels: int, markers: tuple[str, ...]) -> tuple[str, ...]:
        if not text:
            return (f"there is no caption yet: write {with_markers(example(panels), markers)}",)
        return tuple(self._problems()(in_house(text, markers), panels))

    def jobs(self) -> dict[str, Job]:
        """The triptychs by key, sorted by name; none if there is no folder.

        Raises:
            WorkError: metadata.jsonl is damaged.
        """
        return self._read()[0]

    def _read(self) -> tuple[dict[str, Job], dict[str, str]]:
        """(the triptychs by key, the hash of each caption that a captioner wrote by id)."""
        with self._lock:
            marks = [mark_of(file) for file in (self.path, self.path / METADATA, self.path / JOURNAL)]
            if self._jobs is None or self._jobs[0] != marks:
                folder = TriptychFolder(self.path)
                found = {digest(job.id)[:16]: job for job in read_jobs(folder)}
                written = last_captions(folder.journal_rows())
                ours = {id: str(row.get("text_sha256")) for id, row in written.items()}
                self._jobs = marks, found, ours
            return self._jobs[1], self._jobs[2]

    def job(self, key: str) -> Job:
        """A triptych by its key.

        Raises:
            InputError: there is none.
        """
        jobs = self.jobs()
        if key not in jobs:
            raise InputError("This triptych is no longer in its folder.", "Load the page again.")
        return jobs[key]

    def listed(self, show: str, search: str = "") -> list[str]:
        """The keys of triptychs: `all`, those without a caption first; `missing` or `problems`: only those
        whose caption is missing, or has problems.
        """
        words = search.casefold()
        jobs = {key: job for key, job in self.jobs().items() if words in f"{job.item} {job.id}".casefold()}
        missing = [key for key, job in jobs.items() if not job.text_file.is_file() and not job.told_caption]
        if show == "missing":
            return missing
        if show == "problems":
            return [key for key in jobs if self.entry(key).problems]
        lacking = set(missing)
        return missing + [key for key in jobs if key not in lacking]

    def entry(self, key: str) -> Entry:
        """A triptych with its caption.

        Raises:
            InputError: there is none.
        """
        job = self.job(key)
        text, was, fault = job.told_caption, "", []
        if job.text_file.is_file():
            was = sha256_file(job.text_file, CAPTION_BYTES * 16)
            try:
                text = read_caption(job.text_file)
            except InputError:
                text, fault = "", ["its file is no text that can be read; saving replaces it"]
        by = ""
        if was:
            by = "the captioner" if self._read()[1].get(job.id) == was else "you"
        problems = fault or self.lint(key, text)
        return Entry(key, job.id, job.item, job.layout.roles, text, was, by, problems)

    def lint(self, key: str, text: str) -> list[str]:
        """The problems of a text as the caption of a triptych.

        Raises:
            InputError: there is no such triptych, or the text is longer than any caption.
        """
        job = self.job(key)
        if len(text) > CAPTION_BYTES:
            raise InputError("This is longer than any caption.", "Write a few sentences.")
        return [*self._lint(normalise(text), len(job.layout.roles), job.markers)]

    def save(self, key: str, text: str, was: str) -> Entry:
        """Write a caption. It is then the user's own: `caption` keeps it, `embed` encodes it anew.

        was: `Entry.was` of the caption that was edited.

        Raises:
            InputError: no such triptych, no text, or the caption was changed meanwhile.
        """
        job, text = self.job(key), normalise(text)
        self.lint(key, text)
        if not text:
            raise InputError("An empty caption is not saved.", f"Write {example(len(job.layout.roles))}.")
        with self._lock:
            now = sha256_file(job.text_file, CAPTION_BYTES * 16) if job.text_file.is_file() else ""
            if now != was:
                raise InputError(
                    "This caption was changed meanwhile, and is not overwritten.",
                    "Load the page again to see the other one; copy yours first.",
                )
            write_text(job.text_file, text + "\n")
        return self.entry(key)
