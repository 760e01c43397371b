"""The journal of a captioner's answers: what was paid for is on the disk before it is used."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from triptych.captioning.questions import AnswerError, Captioner, Fault
from triptych.store.files import digest

if TYPE_CHECKING:
    from PIL import Image


_NAMES = ("kind", "id", "key", "image_sha256", "text_sha256", "source_sha256")


def journal_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal, as far as they are whole and what names things in them is text; none if there is
    no such file.
    """
    rows = []
    for line in (path.read_bytes() if path.is_file() else b"").split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(isinstance(row.get(name, ""), str) for name in _NAMES):
            rows.append(row)
    return rows


class Journal:
    """Append-only JSON Lines; a row is on the disk when `append` returns. Lines that a crash has torn are
    skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        self.rows = journal_rows(path)

    def append(self, row: dict[str, Any]) -> None:
        with self._lock, open(self.path, "ab") as file:
            end = file.tell()
            try:
                file.write(json.dumps(row).encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except BaseException:  # a full disk must not leave half a row in the middle
                os.truncate(self.path, end)
                raise
            self.rows.append(row)


class Answers:
    """What captioners have answered before, by (picture, prompt, captioner, length limit).

    Answers of no use are in the journal too, for the record; `Dialogue.forget` asks for them anew. What was
    known about a picture that was brought back (a row of the kind `returned`) is forgotten.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[str, dict[str, Any]] = {}
        for row in journal.rows:
            if row.get("kind") == "answer" and isinstance(row.get("key"), str):
                self._known[row["key"]] = row
            elif row.get("kind") == "returned":
                self._known = {
                    key: known for key, known in self._known.items() if known.get("id") != row.get("id")
                }
        self._earlier = set(self._known)

    def dialogue(
        self,
        captioner: Captioner,
        id: str,
        picture: Callable[[], Image.Image],
        sha256: str,
        max_new_tokens: int,
    ) -> Dialogue:
        """The questions about one picture. `picture` opens it, if the captioner has to see it; `sha256` names
        its content.
        """
        return Dialogue(self, captioner, id, picture, sha256, max_new_tokens)


class Dialogue:
    """Called with a question, it answers: from the journal, or from the captioner.

    Raises:
        InputError: the picture cannot be opened. AnswerError, ModelError: see `Captioner.ask`.
    """

    def __init__(
        self,
        answers: Answers,
        captioner: Captioner,
        id: str,
        picture: Callable[[], Image.Image],
        sha256: str,
        max_new_tokens: int,
    ) -> None:
        self._answers, self._captioner, self._id, self._picture = answers, captioner, id, picture
        self._sha256, self._max_new_tokens = sha256, max_new_tokens
        self._replayed: set[str] = set()

    def __call__(self, prompt: str) -> str:
        known = self._answers._known
        key = digest([self._sha256, prompt, self._captioner.identity, self._max_new_tokens])
        row = known.get(key)
        if row is not None and key in self._answers._earlier:
            self._replayed.add(key)
        if row is None:
            row = {"kind": "answer", "key": key, "id": self._id, "captioner": self._captioner.identity}
            try:
                row["answer"] = self._captioner.ask(self._picture(), prompt, self._max_new_tokens)
            except AnswerError as error:
                if error.fault == "server":
                    raise  # that was no answer
                row |= {"failure": error.message, "hint": error.hint, "fault": error.fault}
            self._answers._journal.append(row)
            known[key] = row
        if "failure" in row:
            fault: Fault = row["fault"] if row.get("fault") in get_args(Fault) else "model"
            raise AnswerError(str(row["failure"]), str(row.get("hint", "")), fault)
        return str(row.get("answer", ""))

    def forget(self) -> bool:
        """Forget what an earlier run was answered about this picture; False if nothing of that was used.

        To be called when the answers were of no use: a model, a setting or a server may have been mended
        since.
        """
        for key in self._replayed:
            self._answers._known.pop(key, None)
            self._answers._earlier.discard(key)
        found, self._replayed = bool(self._replayed), set()
        return found
