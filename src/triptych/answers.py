"""The journal of a captioner's answers: what was paid for is on the disk before it is used."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.questions import AnswerError, Captioner
from triptych.store import digest

if TYPE_CHECKING:
    from PIL import Image


class Journal:
    """Append-only JSON Lines; a row is on the disk when `append` returns. Lines that a crash has torn are skipped."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self.rows: list[dict[str, Any]] = []
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for line in whole.split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self.rows.append(row)

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


class Answers:
    """What captioners have answered before, by (picture, prompt, captioner, length limit); answers of no use included."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known = {row["key"]: row for row in journal.rows if row.get("kind") == "answer" and "key" in row}

    def ask(self, captioner: Captioner, id: str, picture: Callable[[], Image.Image], sha256: str, prompt: str, max_new_tokens: int) -> str:
        """The answer about a picture with that hash, from the journal or from the captioner, who alone needs to see it.

        Raises:
            InputError: `picture` cannot open it. AnswerError, ModelError: see `Captioner.ask`.
        """
        key = digest([sha256, prompt, captioner.identity, max_new_tokens])
        row = self._known.get(key)
        if row is None:
            row = {"kind": "answer", "key": key, "id": id, "captioner": captioner.identity}
            try:
                row["answer"] = captioner.ask(picture(), prompt, max_new_tokens)
            except AnswerError as error:
                row["failure"] = error.message
            self._journal.append(row)
            self._known[key] = row
        if "failure" in row:
            raise AnswerError(row["failure"])
        return str(row["answer"])
