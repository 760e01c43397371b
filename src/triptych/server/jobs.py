"""The jobs of a server: a table in SQLite that outlives the process.

A row is on the disk before its job is acknowledged, and a result's files are there before the row says so: a
process that is killed loses no job, and repeats none that has finished.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from triptych.errors import TriptychError
from triptych.store.files import digest

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
TRIES = 3
"""How often a job is begun, if the process ends while it runs. A job that ends the process is not run for
ever.
"""
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    request TEXT NOT NULL,
    digest TEXT NOT NULL,
    key TEXT UNIQUE,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    tries INTEGER NOT NULL DEFAULT 0,
    cancel INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '{}',
    results TEXT NOT NULL DEFAULT '[]',
    warnings TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended, number);
"""


class KeyReused(TriptychError):
    """An idempotency key came with another request than before."""


@dataclass(frozen=True)
class Job:
    """One job. request: its settings, with hashes of uploads in place of files. error: message and hint of a
    failed job. results: file names, in the order of the seeds. Times are seconds since 1970.
    """

    number: int
    id: str
    kind: str
    state: State
    request: dict[str, Any]
    created: float
    started: float | None = None
    ended: float | None = None
    tries: int = 0
    cancel: bool = False
    error: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class JobStore:
    """The table; may be used by several threads of one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        with self._lock:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLE)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, kind: str, request: Mapping[str, Any], key: str | None = None) -> tuple[Job, bool]:
        """(the job, whether it is new). key: an idempotency key; the same key and request give the same job.

        Raises:
            KeyReused: the key belongs to another request.
        """
        hashed = digest([kind, request])
        with self._lock, self._transaction():
            if key is not None and (row := self._one("SELECT * FROM jobs WHERE key = ?", key)):
                if row["digest"] != hashed:
                    raise KeyReused(
                        "The idempotency key belongs to another request.", "Give each request its own key."
                    )
                return _job(row), False
            id = uuid.uuid4().hex
            self._db.execute(
                "INSERT INTO jobs (id, kind, state, request, digest, key, created) "
                "VALUES (?, ?, 'queued', ?, ?, ?, ?)",
                (id, kind, json.dumps(request), hashed, key, time.time()),
            )
            return self._get(id), True

    def get(self, id: str) -> Job | None:
        """The job with this id, or None."""
        with self._lock:
            row = self._one("SELECT * FROM jobs WHERE id = ?", id)
            return _job(row) if row else None

    def newest(self, limit: int = 50, before: int | None = None, state: State | None = None) -> list[Job]:
        """Jobs, newest first. before: only those with a lower number."""
        asked, given = ["number < ?"], list[Any]([before if before is not None else 1 << 62])
        if state is not None:
            asked.append("state = ?")
            given.append(state)
        with self._lock:
            rows = self._db.execute(
                f"SELECT * FROM jobs WHERE {' AND '.join(asked)} ORDER BY number DESC LIMIT ?",
                (*given, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def waiting(self, limit: int) -> list[Job]:
        """The queued jobs, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM jobs WHERE state = 'queued' ORDER BY number LIMIT ?", (limit,)
            ).fetchall()
        return [_job(row) for row in rows]

    def ended_after(self, when: float, number: int = 0, limit: int = 200) -> list[Job]:
        """Jobs that ended after a job: after its time, or at the same time with a higher number; in the order
        in which they ended.
        """
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM jobs WHERE (ended, number) > (?, ?) ORDER BY ended, number LIMIT ?",
                (when, number, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def ahead_of(self, job: Job) -> int:
        """Number of queued jobs that come before this one."""
        with self._lock:
            row = self._one(
                "SELECT count(*) AS n FROM jobs WHERE state = 'queued' AND number < ?", job.number
            )
        return int(row["n"]) if row and job.state == "queued" else 0

    def counts(self) -> dict[State, int]:
        """Number of jobs by state."""
        with self._lock:
            rows = self._db.execute("SELECT state, count(*) AS n FROM jobs GROUP BY state").fetchall()
        found = {row["state"]: int(row["n"]) for row in rows}
        return {state: found.get(state, 0) for state in get_args(State)}

    def begin(self, ids: Collection[str]) -> list[Job]:
        """Mark queued jobs as running; those that were still queued, in their order."""
        with self._lock, self._transaction():
            begun = []
            for id in ids:
                changed = self._db.execute(
                    "UPDATE jobs SET state = 'running', started = ?, tries = tries + 1 "
                    "WHERE id = ? AND state = 'queued'",
                    (time.time(), id),
                )
                if changed.rowcount:
                    begun.append(self._get(id))
            return begun

    def end(
        self,
        id: str,
        state: State,
        *,
        results: Collection[str] = (),
        warnings: Collection[str] = (),
        error: Mapping[str, str] | None = None,
    ) -> None:
        """Record the end of a running job."""
        assert state in ENDED
        with self._lock:
            self._db.execute(
                "UPDATE jobs SET state = ?, ended = ?, results = ?, warnings = ?, error = ? "
                "WHERE id = ? AND state = 'running'",
                (
                    state,
                    time.time(),
                    json.dumps([*results]),
                    json.dumps([*warnings]),
                    json.dumps({**(error or {})}),
                    id,
                ),
            )

    def cancel(self, id: str) -> Job | None:
        """Cancel a queued job at once, a running one at its next step; the job afterwards, None if there is
        none. What has ended stays as it is.
        """
        with self._lock, self._transaction():
            self._db.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ?, cancel = 1 "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), id),
            )
            self._db.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND state = 'running'", (id,))
            return self.get(id)

    def cancelled(self, ids: Collection[str]) -> list[str]:
        """Those of these running jobs that somebody wants to end."""
        marks = ", ".join("?" * len(ids))
        with self._lock:
            rows = self._db.execute(
                f"SELECT id FROM jobs WHERE cancel = 1 AND id IN ({marks})", [*ids]
            ).fetchall()
        return [row["id"] for row in rows]

    def recover(self, ids: Collection[str] | None = None) -> int:
        """Queue again what a process that ended left running, except jobs that were begun `TRIES` times;
        their number. ids: of the jobs that it had; None for all.
        """
        gone = json.dumps(
            {
                "message": f"The process that made this ended {TRIES} times.",
                "hint": "Look at the server's log; smaller pictures need less memory.",
            }
        )
        its = "" if ids is None else f" AND id IN ({', '.join('?' * len(ids))})"
        with self._lock, self._transaction():
            self._db.execute(
                "UPDATE jobs SET state = 'failed', ended = ?, error = ? "
                f"WHERE state = 'running' AND tries >= ?{its}",
                (time.time(), gone, TRIES, *(ids or ())),
            )
            self._db.execute(
                f"UPDATE jobs SET state = 'cancelled', ended = ? WHERE state = 'running' AND cancel = 1{its}",
                (time.time(), *(ids or ())),
            )
            again = self._db.execute(
                f"UPDATE jobs SET state = 'queued', started = NULL WHERE state = 'running'{its}",
                [*(ids or ())],
            )
            return again.rowcount

    def uploads_in_use(self) -> set[str]:
        """Every word in the requests of all jobs that may be the id of an upload."""
        with self._lock:
            rows = self._db.execute("SELECT request FROM jobs").fetchall()
        return {id for row in rows for id in re.findall(r"[0-9a-f]{64}", row["request"])}

    def forget(self, older_than: float) -> list[Job]:
        """Delete ended jobs that ended before a time, and return them: their files may go too."""
        with self._lock, self._transaction():
            rows = self._db.execute("SELECT * FROM jobs WHERE ended < ?", (older_than,)).fetchall()
            self._db.execute("DELETE FROM jobs WHERE ended < ?", (older_than,))
        return [_job(row) for row in rows]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def _one(self, query: str, *given: Any) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._db.execute(query, given).fetchone()
        return found

    def _get(self, id: str) -> Job:
        row = self._one("SELECT * FROM jobs WHERE id = ?", id)
        assert row is not None
        return _job(row)


class _Transaction:
    """All or nothing, also if the block raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys() if name not in ("digest", "key")}
    parsed = {name: json.loads(values[name]) for name in ("request", "error", "results", "warnings")}
    return Job(**values | parsed | {"cancel": bool(values["cancel"])})
