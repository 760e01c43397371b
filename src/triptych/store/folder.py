"""A folder with the results of one stage: it stores the stage's settings and admits one writer at a time."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from triptych.errors import WorkError
from triptych.store.files import NOT_SUPPORTED, read_json, sweep, write_json

log = logging.getLogger(__name__)


_PATIENCE = 0.2
"""Seconds to wait for a folder: longer than `is_held` takes, shorter than anybody would call waiting."""


def is_held(path: Path, stage: str) -> bool:
    """Whether a process is writing to a stage's folder now; False where the file system has no locks."""
    file = path / f".{stage}.lock"
    if not file.exists():
        return False
    try:
        with FileLock(file, thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


class StageFolder:
    """A folder with the results of one stage. It stores the settings behind them and admits one writer at a
    time.

    `identity` holds only the settings that change the result. The folder refuses another identity, so that
    results of two configs never mix; unless `begun()` is False, which means that there is no result yet. Both
    are checked when the stage is called, and again once the folder is held, because another run may have
    begun in between. `words` maps a setting's name to a function that describes the difference between its
    old and new value. `retired` lists settings that counted in older versions and no longer do. `hint` is the
    hint for another identity.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        identity: Mapping[str, Any],
        *,
        begun: Callable[[], bool] = lambda: True,
        words: Mapping[str, Callable[[Any, Any], str]] | None = None,
        retired: Iterable[str] = (),
        hint: str = "Put the old settings back, or use another folder: --work, or the one option that names "
        "this folder alone.",
    ) -> None:
        self._words = words or {}
        self.path, self.stage, self._begun, self._retired, self._hint = (
            Path(path),
            stage,
            begun,
            frozenset(retired),
            hint,
        )
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity), default=str))
        self._manifest = self.path / f"{stage}.manifest.json"
        self._check()

    def _check(self) -> None:
        if self._begun() and self._manifest.exists():
            before = {
                k: v
                for k, v in read_json(self._manifest).get("identity", {}).items()
                if k not in self._retired
            }
            changed = sorted(k for k in {*before, *self.identity} if before.get(k) != self.identity.get(k))
            if changed:
                said = [
                    self._words[k](before.get(k), self.identity.get(k)) if k in self._words else k
                    for k in changed
                ]
                raise WorkError(f"{self.path} was made with other settings ({', '.join(said)}).", self._hint)

    @contextlib.contextmanager
    def open(self) -> Iterator[Path]:
        """Hold the folder for writing.

        Raises:
            WorkError: another process is writing to it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / f".{self.stage}.lock", thread_local=False)  # any thread may close it
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise WorkError(
                f"Another run is writing to {self.path}.", "Wait for it to end, or use another --work folder."
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NOT_SUPPORTED:
                raise
            log.warning(
                "The file system of %s has no locks: let only one run write there at a time.", self.path
            )
        try:
            self._check()
            sweep(self.path)
            if not self._begun() or not self._manifest.exists():
                write_json(self._manifest, {"stage": self.stage, "identity": self.identity})
            yield self.path
        finally:
            lock.release()
