"""Makes the pictures of jobs on one open model, in this process or in a replica elsewhere. It knows no table
of jobs: it tells what it is doing, and is told which jobs are still wanted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from triptych import progress
from triptych.errors import TriptychError
from triptych.execution import PerWorker
from triptych.server.jobs import Job
from triptych.server.requests import RequestReader, write_area
from triptych.verbs.generate import generate_on
from triptych.verbs.generate_config import GenerateConfig
from triptych.verbs.tryon import prepared
from triptych.vton.batch import MadePicture, PictureTools, make, todo_pictures
from triptych.vton.files import Inputs, TryonConfig, check, write
from triptych.vton.lines import Line

if TYPE_CHECKING:  # it imports torch
    from triptych.session import Session

log = logging.getLogger(__name__)

KEPT_PROMPTS = 64
"""Number of prompts whose embeddings stay in memory."""


class Cancelled(BaseException):
    """The jobs at work are not wanted any more. Not an Exception: nothing may take it for a failure."""


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


@dataclass(frozen=True)
class End:
    """How a job ended. results: names of its pictures, in its folder. error: message and hint."""

    state: Literal["done", "failed"]
    results: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: Mapping[str, str] = field(default_factory=dict)


Tell = Callable[[Mapping[str, Moment | End]], Collection[str]]
"""Takes what some jobs are doing, or how they ended, by id; returns the ids of the jobs that are still
wanted. Raises Cancelled if none of those at work is.
"""


@dataclass
class _Work:
    """A job at work: its number of pictures, and the names of those that are made."""

    job: Job
    pictures: int = 1
    made: list[str] = field(default_factory=list)


class Maker:
    """One open model. Several threads may call it; it makes the pictures of one call at a time."""

    def __init__(self, reader: RequestReader, open_model: Callable[[], Session], max_batch: int = 1) -> None:
        """max_batch: most pictures that are sampled at once. The model is opened for the first job."""
        self.reader, self.max_batch = reader, max_batch
        self._open = open_model
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._works: dict[str, _Work] = {}
        self._tell: Tell = dict

    def __call__(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Make the pictures of jobs; each ends with its own result or error. Several jobs are try-ons that
        can be sampled together.

        Raises:
            Cancelled: raised by `tell`, which is called at every step.
        """
        with self._lock:
            self._works, self._tell = {job.id: _Work(job) for job in jobs}, tell
            try:
                self._listen(progress.Moment("preparing"))
                with progress.listening(self._listen), self._failing(*jobs):
                    if jobs[0].kind == "tryon":
                        self._dress(jobs)
                    else:
                        self._generate(jobs[0])
            finally:
                self._works = {}
                if self._session is not None:
                    self._session.forget_texts(KEPT_PROMPTS)

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._open()
        return self._session

    def _listen(self, now: progress.Moment, at_work: Mapping[str, int] | None = None) -> None:
        """Tell what the jobs at work are doing, and drop those that are no longer wanted. at_work: number of
        pictures that are sampled at once, by job; others wait.
        """
        told = dict[str, Moment | End]()
        for id, work in self._works.items():
            at_once = 1 if at_work is None else at_work.get(id, 0)
            if at_once:
                told[id] = Moment(now.doing, now.done, now.of, len(work.made), work.pictures, 0.0, at_once)
        wanted = self._tell(told)
        self._works = {id: work for id, work in self._works.items() if id in wanted}

    def _generate(self, job: Job) -> None:
        folder, work = self.reader.results / job.id, self._works[job.id]
        folder.mkdir(parents=True, exist_ok=True)
        with generate_on(self._opened(), cast(GenerateConfig, self.reader.of(job))) as run:
            work.pictures = len(run)
            for event in run:
                work.made.append(str(Path(event.result).relative_to(folder)))
                self._listen(progress.Moment("saving"))
            self._done(job, run.summary["warnings"])

    def _dress(self, jobs: Sequence[Job]) -> None:
        """Make try-ons: as few batches as possible, see `todo_pictures`."""
        session = self._opened()
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
        folder = self.reader.results / job.id
        folder.mkdir(parents=True, exist_ok=True)
        write_area(job.request, folder)
        return prepared(session, check(cast(TryonConfig, self.reader.of(job))))

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
            cut = self._opened().warnings.get(inputs.config.prompt)
            self._done(job, [*inputs.warnings, *([cut] if cut else [])])

    # --- how they end

    def _done(self, job: Job, warnings: Sequence[str]) -> None:
        made = tuple(self._works.pop(job.id).made)
        self._tell({job.id: End("done", made, tuple(self._plain(job, warning) for warning in warnings))})

    def _fail(self, job: Job, message: str, hint: str) -> None:
        del self._works[job.id]
        error = {"message": self._plain(job, message), "hint": self._plain(job, hint)}
        self._tell({job.id: End("failed", error=error)})

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

    def _plain(self, job: Job, text: str) -> str:
        return self.reader.plain(text, job.request, self.reader.results / job.id)


def _fault(words: str) -> tuple[str, str]:
    """Sentence and hint of a failure that is nobody's mistake. words: of its error; no client sees them."""
    if "out of memory" in words.lower():
        return "The device has too little memory for this picture.", "Ask for smaller panels."
    return "The picture could not be made.", "The server's log says more."
