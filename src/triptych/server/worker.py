"""The worker of a server: makes the pictures of queued jobs, one job after another, on one open model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych import progress
from triptych.config.stage import StageConfig
from triptych.errors import TriptychError
from triptych.events import Run
from triptych.server.jobs import Job, JobStore
from triptych.server.requests import config_of, uploads_of
from triptych.server.uploads import Uploads
from triptych.verbs.generate import generate_on
from triptych.verbs.tryon import tryon_on
from triptych.vton.files import TryonConfig, check

if TYPE_CHECKING:  # it imports torch
    from triptych.session import Session

log = logging.getLogger(__name__)

KEPT_PROMPTS = 64
"""Number of prompts whose embeddings stay in memory."""
WINDOW = 16
"""How many jobs the next one is chosen from: those with the product photos of the last one come first, so
that what was read of them serves again.
"""
_OVERTAKEN = 30.0
"""Seconds after which a waiting job is overtaken no more."""


class _Cancelled(BaseException):
    """Somebody cancelled the job at work. Not an Exception: nothing on the way may take it for a failure."""


@dataclass(frozen=True)
class Moment:
    """What the job at work is doing: `denoising`, 3 of 28, in picture `picture` of `pictures`. since: when it
    was begun, by time.monotonic.
    """

    doing: str = "waiting"
    done: int = 0
    of: int = 0
    picture: int = 0
    pictures: int = 0
    since: float = 0.0

    @property
    def share(self) -> float:
        """The finished part of the job, in [0, 1]."""
        inside = self.done / self.of if self.of and self.doing == "denoising" else 0.0
        return min(1.0, (self.picture + inside) / self.pictures) if self.pictures else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end, at the speed so far; None at the beginning."""
        spent = time.monotonic() - self.since
        return spent / self.share - spent if self.share > 0.05 else None


class Worker(threading.Thread):
    """Takes jobs from the table until it is stopped."""

    def __init__(
        self,
        store: JobStore,
        uploads: Uploads,
        results: Path,
        open_model: Callable[[], Session],
        own: Mapping[str, Any],
    ) -> None:
        """results: a folder, with a folder for each job. own: the server's settings, see `config_of`."""
        super().__init__(name="pictures", daemon=True)
        self.store, self.uploads, self.results, self.own = store, uploads, results, dict(own)
        self.moments: dict[str, Moment] = {}
        self.failure = ""
        """Why the model cannot be opened; empty while all is well."""
        self._open = open_model
        self._session: Session | None = None
        self._wake, self._ending = threading.Event(), threading.Event()
        self._last: tuple[Any, ...] = ()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def stop(self, timeout: float = 30.0) -> None:
        """End at the next step of the job at work, which is queued again by the next server."""
        self._ending.set()
        self._wake.set()
        if self.is_alive():
            self.join(timeout)

    @property
    def opened(self) -> bool:
        return self._session is not None

    def session(self) -> Session:
        """The open model; it is opened for the first job.

        Raises:
            ModelError: it cannot be opened.
        """
        if self._session is None:
            self._session = self._open()
        return self._session

    def run(self) -> None:
        while not self._ending.is_set():
            job = self._next()
            if job is None:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            self._do(job)

    def _next(self) -> Job | None:
        waiting = self.store.waiting(WINDOW)
        if not waiting:
            return None
        oldest = waiting[0]
        patient = time.time() - oldest.created < _OVERTAKEN
        same = [job for job in waiting if _products(job) == self._last] if patient else []
        chosen = (same or waiting)[0]
        begun = self.store.begin([chosen.id])
        return begun[0] if begun else None

    def _do(self, job: Job) -> None:
        self.moments[job.id] = Moment("loading the model", since=time.monotonic())
        folder = self.results / job.id
        try:
            self._make(job, folder)
        except _Cancelled:
            if not self._ending.is_set():
                self.store.end(job.id, "cancelled")
        except TriptychError as error:
            sentence = {"message": self._plain(error.message, job), "hint": self._plain(error.hint, job)}
            self.store.end(job.id, "failed", error=sentence)
        except Exception as error:  # a fault of ours, or of a library: it ends this job, not the server
            log.exception("job %s failed", job.id)
            memory = "out of memory" in str(error).lower()
            message = (
                "The device has too little memory for this picture."
                if memory
                else f"The picture could not be made: {type(error).__name__}."
            )
            hint = "Ask for smaller panels." if memory else "The server's log says more."
            self.store.end(job.id, "failed", error={"message": message, "hint": hint})
        finally:
            self.moments.pop(job.id, None)
            self._last = _products(job)
            if self._session is not None:
                self._session.forget_texts(KEPT_PROMPTS)

    def _make(self, job: Job, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in self.own.items() if name in _known(job)}
        config = config_of(job.kind, job.request, own, self.uploads, folder)  # type: ignore[arg-type]
        session = self.session()
        run = self._run(session, config)
        pictures, made = len(run), list[str]()

        def listen(now: progress.Moment) -> None:
            if self._ending.is_set() or self.store.is_cancelled(job.id):
                raise _Cancelled
            before = self.moments[job.id]
            self.moments[job.id] = Moment(now.doing, now.done, now.of, len(made), pictures, before.since)

        with progress.listening(listen), run:
            listen(progress.Moment("preparing"))
            for event in run:
                made.append(str(Path(event.result).relative_to(folder)))
                listen(progress.Moment("saving"))
        warnings = [self._plain(warning, job) for warning in run.summary.get("warnings", [])]
        self.store.end(job.id, "done", results=made, warnings=warnings)

    def _run(self, session: Session, config: StageConfig) -> Run:
        if isinstance(config, TryonConfig):
            return tryon_on(session, check(config), others_follow=True)
        return generate_on(session, config)  # type: ignore[arg-type]

    def _plain(self, text: str, job: Job) -> str:
        """A sentence without paths of this machine: uploads have the names of their fields."""
        for field, id in uploads_of(job.request):
            text = text.replace(str(self.uploads.folder / id), field).replace(id, field)
        return text.replace(f"{self.results / job.id}/", "").replace(str(self.results), "")


def _products(job: Job) -> tuple[Any, ...]:
    """What jobs share that need the same reading of the products."""
    photos = [(field, id) for field, id in uploads_of(job.request) if field not in ("person", "mask")]
    return (job.kind, *sorted(photos))


def _known(job: Job) -> Sequence[str]:
    from triptych.verbs.generate_config import GenerateConfig

    return list((TryonConfig if job.kind == "tryon" else GenerateConfig).model_fields)
