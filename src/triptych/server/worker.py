"""The worker of a server: makes the pictures of queued jobs on one open model. Try-ons that share their
products and their settings are sampled together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from triptych import progress
from triptych.config.stage import StageConfig
from triptych.errors import InputError, ModelError, TriptychError
from triptych.execution import PerWorker
from triptych.server.jobs import Job, JobStore, State
from triptych.server.requests import Kind, config_of, in_words_of_the_api, outlines_of, uploads_of, write_area
from triptych.server.uploads import Uploads
from triptych.verbs.generate import check_asked as check_generate
from triptych.verbs.generate import generate_on
from triptych.verbs.generate_config import GenerateConfig
from triptych.verbs.tryon import prepared
from triptych.vton.batch import MadePicture, PictureTools, make, todo_pictures
from triptych.vton.files import Inputs, TryonConfig, check, check_asked, write
from triptych.vton.lines import Line

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
    """What a job at work is doing: `step`, 3 of 28, in picture `picture` of `pictures`; `at_once` of them are
    sampled together. since: when it was begun, by time.monotonic.
    """

    doing: str = "waiting"
    done: int = 0
    of: int = 0
    picture: int = 0
    pictures: int = 0
    since: float = 0.0
    at_once: int = 1

    @property
    def share(self) -> float:
        """The finished part of the job, in [0, 1]."""
        inside = self.done / self.of if self.of and self.doing == "step" else 0.0
        return min(1.0, (self.picture + self.at_once * inside) / self.pictures) if self.pictures else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end, at the speed so far; None at the beginning."""
        spent = time.monotonic() - self.since
        return spent / self.share - spent if self.share > 0.05 else None


@dataclass
class _Work:
    """A job at work: its number of pictures, and the names of those that are made."""

    job: Job
    pictures: int = 1
    made: list[str] = field(default_factory=list)


class Worker(threading.Thread):
    """Takes jobs from the table until it is stopped."""

    def __init__(
        self,
        store: JobStore,
        uploads: Uploads,
        results: Path,
        open_model: Callable[[], Session],
        own: Mapping[str, Any],
        max_batch: int = 1,
    ) -> None:
        """results: a folder, with a folder for each job. own: the server's settings, see `config_of`.
        max_batch: most pictures that are sampled at once.
        """
        super().__init__(name="pictures", daemon=True)
        self.store, self.uploads, self.results, self.own = store, uploads, results, dict(own)
        self.max_batch = max_batch
        self.moments: dict[str, Moment] = {}
        """What the jobs at work are doing, by id."""
        self._open = open_model
        self._session: Session | None = None
        self._wake, self._ending = threading.Event(), threading.Event()
        self._works: dict[str, _Work] = {}
        self._last: tuple[Any, ...] = ()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def stop(self, timeout: float = 30.0) -> None:
        """End at the next step of the jobs at work, which are queued again by the next server."""
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
            jobs = self._next()
            if jobs:
                self._do(jobs)
                continue
            self._wake.wait(1.0)
            self._wake.clear()

    def check(self, kind: Kind, request: Mapping[str, Any]) -> None:
        """Refuse a request that cannot be done, as far as it says so itself; no photo is read.

        Raises:
            InputError: in the words of the API.
        """
        folder = self.results / "new"
        try:
            if "polygons" in request:
                outlines_of(request)
            config = self._config(kind, request, folder)
            if isinstance(config, TryonConfig):
                check_asked(config)
            else:
                check_generate(cast(GenerateConfig, config))
        except ModelError:  # the server's own affair: the job tells of it
            return
        except TriptychError as error:
            words = (self._plain(text, request, folder) for text in (error.message, error.hint))
            raise InputError(*words) from error

    # --- which jobs

    def _next(self) -> list[Job]:
        """The jobs to make now, marked as running: the one whose turn it is, and those that wait already and
        can be sampled with it.
        """
        waiting = self.store.waiting(max(WINDOW, self.max_batch))
        if not waiting:
            return []
        patient = time.time() - waiting[0].created < _OVERTAKEN
        same = [job for job in waiting if _products(job) == self._last] if patient else []
        chosen = (same or waiting)[0]
        return self.store.begin([job.id for job in self._together(chosen, waiting)])

    def _together(self, chosen: Job, waiting: Sequence[Job]) -> list[Job]:
        """A job and those that share a batch with it. One that ended a server before is made alone: it shall
        not end that of others.
        """
        if self.max_batch == 1 or chosen.kind != "tryon" or chosen.tries:
            return [chosen]
        others = [job for job in waiting if job.id != chosen.id and job.kind == "tryon" and not job.tries]
        jobs, lines = list[Job](), list[Line]()
        for job in [chosen, *others]:
            try:
                lines.append(Line(job.id, cast(TryonConfig, self._config_of(job))))
                jobs.append(job)
            except TriptychError:  # it is told when the job's turn comes
                if job is chosen:
                    return [chosen]
        left = {number: line.config.seeds for number, line in enumerate(lines) if line.config}
        return [jobs[one.number] for one in todo_pictures(lines, left, self.max_batch)[0]]

    def _config_of(self, job: Job) -> StageConfig:
        return self._config(cast(Kind, job.kind), job.request, self.results / job.id)

    def _config(self, kind: Kind, request: Mapping[str, Any], folder: Path) -> StageConfig:
        known = (TryonConfig if kind == "tryon" else GenerateConfig).model_fields
        own = {name: value for name, value in self.own.items() if name in known}
        return config_of(kind, request, own, self.uploads, folder)

    # --- making them

    def _do(self, jobs: Sequence[Job]) -> None:
        """Make the pictures of jobs; each ends with its own result or error."""
        begun = time.monotonic()
        self._works = {job.id: _Work(job) for job in jobs}
        self.moments.update({job.id: Moment("preparing", since=begun) for job in jobs})
        try:
            with progress.listening(self._listen), self._failing(*jobs):
                if jobs[0].kind == "tryon":
                    self._dress(jobs)
                else:
                    self._generate(jobs[0])
        except _Cancelled:
            pass
        finally:
            for job in jobs:
                self.moments.pop(job.id, None)
            self._works = {}
            self._last = _products(jobs[0])
            if self._session is not None:
                self._session.forget_texts(KEPT_PROMPTS)

    def _listen(self, now: progress.Moment, at_work: Mapping[str, int] | None = None) -> None:
        """Note what the jobs at work are doing. A cancelled one ends now; with the last one ends the work.
        at_work: number of pictures that are sampled at once, by job; others wait.
        """
        if self._ending.is_set():
            raise _Cancelled
        for id in self.store.cancelled(self._works):
            self._end(id, "cancelled")
        if not self._works:
            raise _Cancelled
        for id, work in self._works.items():
            at_once = 1 if at_work is None else at_work.get(id, 0)
            if at_once:
                since = self.moments[id].since
                self.moments[id] = Moment(
                    now.doing, now.done, now.of, len(work.made), work.pictures, since, at_once
                )

    def _generate(self, job: Job) -> None:
        folder, work = self.results / job.id, self._works[job.id]
        folder.mkdir(parents=True, exist_ok=True)
        with generate_on(self.session(), cast(GenerateConfig, self._config_of(job))) as run:
            work.pictures = len(run)
            for event in run:
                work.made.append(str(Path(event.result).relative_to(folder)))
                self._listen(progress.Moment("saving"))
            self._end(job.id, "done", run.summary["warnings"])

    def _dress(self, jobs: Sequence[Job]) -> None:
        """Make try-ons: as few batches as possible, see `todo_pictures`."""
        session = self.session()
        inputs = dict[int, Inputs]()
        for number, job in enumerate(jobs):
            if job.id in self._works:
                with self._failing(job):
                    inputs[number] = self._prepared(session, job)
                    self._works[job.id].pictures = len(inputs[number].config.seeds)
        left = {number: own.config.seeds for number, own in inputs.items() if jobs[number].id in self._works}
        if not left:
            return
        lines = [
            Line(job.id, inputs[number].config if number in left else None) for number, job in enumerate(jobs)
        ]
        tools = PictureTools(PerWorker(lambda: session), [inputs[number].config.prompt for number in left])
        for batch in todo_pictures(lines, left, self.max_batch):
            batch = tuple(one for one in batch if jobs[one.number].id in self._works)
            if not batch:
                continue
            tools.inputs = {one.number: inputs[one.number] for one in batch}
            counts = {jobs[one.number].id: len(one.seeds) for one in batch}
            with progress.listening(lambda now, counts=counts: self._listen(now, counts)):  # type: ignore[misc]
                made = make(batch, tools)
            for picture in made.pictures:
                with self._failing(jobs[picture.number]):
                    self._record(jobs[picture.number], inputs[picture.number], picture)

    def _prepared(self, session: Session, job: Job) -> Inputs:
        self._listen(progress.Moment("preparing"), {job.id: 1})
        folder = self.results / job.id
        folder.mkdir(parents=True, exist_ok=True)
        write_area(job.request, folder)
        return prepared(session, check(cast(TryonConfig, self._config_of(job))))

    def _record(self, job: Job, inputs: Inputs, picture: MadePicture) -> None:
        """Write a picture; with its last one a job is done."""
        work = self._works.get(job.id)
        if work is None:
            return
        if picture.picture is None or picture.photo is None:
            self._fail(job, *(picture.mistake or _fault(picture.reason)))
            return
        write(inputs.config, picture.photo, picture.seed, picture.picture)
        work.made.append(inputs.config.files(picture.seed)[0].name)
        if len(work.made) == work.pictures:
            cut = self.session().warnings.get(inputs.config.prompt)
            self._end(job.id, "done", [*inputs.warnings, *([cut] if cut else [])])

    # --- how they end

    def _end(
        self, id: str, state: State, warnings: Sequence[str] = (), error: Mapping[str, str] | None = None
    ) -> None:
        work = self._works.pop(id)
        plain = [self._plain_of(work.job, warning) for warning in warnings]
        self.store.end(id, state, results=work.made if state == "done" else (), warnings=plain, error=error)
        self.moments.pop(id, None)

    def _fail(self, job: Job, message: str, hint: str) -> None:
        error = {"message": self._plain_of(job, message), "hint": self._plain_of(job, hint)}
        self._end(job.id, "failed", error=error)

    @contextmanager
    def _failing(self, *jobs: Job) -> Iterator[None]:
        """Within this context, an error ends those of these jobs that are at work, and not the server."""
        try:
            yield
        except Exception as error:
            words = (error.message, error.hint) if isinstance(error, TriptychError) else _fault(str(error))
            for job in jobs:
                if job.id in self._works:
                    self._fail(job, *words)
            if not isinstance(error, TriptychError):  # a fault of ours, or of a library
                named = ", ".join(job.id[:8] for job in jobs)
                log.error("Job %s failed: %s: %s", named, type(error).__name__, error, exc_info=error)

    def _plain_of(self, job: Job, text: str) -> str:
        return self._plain(text, job.request, self.results / job.id)

    def _plain(self, text: str, request: Mapping[str, Any], folder: Path) -> str:
        """A sentence in the words of the API, without paths of this machine: uploads have the names of their
        fields.
        """
        for name, id in uploads_of(request):
            text = text.replace(str(self.uploads.folder / id), name).replace(id, name)
        text = text.replace(f"{folder}/", "").replace(str(self.results), "")
        return in_words_of_the_api(text)


def _fault(words: str) -> tuple[str, str]:
    """Sentence and hint of a failure that is nobody's mistake. words: of its error; no client sees them."""
    if "out of memory" in words.lower():
        return "The device has too little memory for this picture.", "Ask for smaller panels."
    return "The picture could not be made.", "The server's log says more."


def _products(job: Job) -> tuple[Any, ...]:
    """What jobs share that need the same reading of the products."""
    photos = [(name, id) for name, id in uploads_of(job.request) if name not in ("person", "mask")]
    return (job.kind, *sorted(photos))
