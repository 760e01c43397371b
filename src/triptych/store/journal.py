"""A journal: JSON Lines that only grow. An answer that was paid for is on the disk before it is used."""

from __future__ import annotations

import json
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

_NAMES = ("kind", "id", "key", "image_sha256", "text_sha256", "source_sha256")


def journal_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal that are whole and whose identifying fields are text; none if there is no such
    file.
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
    """Append-only JSON Lines; a row is on the disk when `append` returns. Lines torn by a crash are skipped.

    It is pickled by its path. Several processes may add rows; each knows its own rows and those that were
    there when it opened the file.
    """

    def __init__(self, path: Path, *, mend: bool = True) -> None:
        """mend: cut off a torn last line. Another process may be writing that line."""
        self.path, self._lock = path, threading.Lock()
        data = path.read_bytes() if mend and path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        self.rows = journal_rows(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Journal, mend=False), (self.path,)

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
