"""The worker of a server: gives queued jobs to replicas of the model, each of which makes the pictures of one
job at a time, or of try-ons that share their products and their settings.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from triptych.errors import InputError, ModelError, TriptychError
from triptych.server.jobs import Job, JobStore
from triptych.server.maker import Cancelled, End, Moment, Tell
from triptych.server.requests import Kind, RequestReader, outlines_of, uploads_of
from triptych.verbs.generate import check_asked as check_generate
from triptych.verbs.generate_config import GenerateConfig
from triptych.vton.batch import todo_pictures
from triptych.vton.files import TryonConfig, check_asked
from triptych.vton.lines import Line

log = logging.getLogger(__name__)

WINDOW = 16
"""How many jobs, for each replica, the next one is chosen from: those with the product photos of the last one
come first, so that what was read of them serves again.
"""
_OVERTAKEN = 30.0
"""Seconds after which a waiting job is overtaken no more."""


class ReplicaLost(Exception):
    """The process that made the pictures has ended."""


class Replica(Protocol):
    """Makes the pictures of jobs and tells of it: a `Maker`, here or elsewhere."""

    def __call__(self, jobs: Sequence[Job], tell: Tell) -> None:
        """See `Maker`.

        Raises:
            Cancelled: raised by `tell`. ReplicaLost: it has ended; jobs that it did not tell the end of are
                to be made again.
        """


class Worker:
    """Takes jobs from the table until it is stopped: a thread for each replica."""

    def __init__(
        self, store: JobStore, reader: RequestReader, replicas: Sequence[Replica], max_batch: int = 1
    ) -> None:
        """max_batch: most pictures that are sampled at once."""
        self.store, self.reader, self.replicas, self.max_batch = store, reader, replicas, max_batch
        self.moments: dict[str, Moment] = {}
        """What the jobs at work are doing, by id."""
        self.opened = False
        """Whether a replica has begun with a job."""
        self._choosing, self._ending = threading.Lock(), threading.Event()
        self._wakes = [threading.Event() for _ in replicas]
        self._threads = [
            threading.Thread(target=self._run, args=each, name="pictures", daemon=True)
            for each in zip(replicas, self._wakes, strict=True)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        """Whether every replica gets jobs."""
        return all(thread.is_alive() for thread in self._threads)

    def wake(self) -> None:
        """There is a new job."""
        for wake in self._wakes:
            wake.set()

    def stop(self, timeout: float = 30.0) -> None:
        """End at the next step of the jobs at work, which are queued again by the next server."""
        self._ending.set()
        self.wake()
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def check(self, kind: Kind, request: Mapping[str, Any]) -> None:
        """Refuse a request that cannot be done, as far as it says so itself; no photo is read.

        Raises:
            InputError: in the words of the API.
        """
        folder = self.reader.results / "new"
        try:
            if "polygons" in request:
                outlines_of(request)
            config = self.reader.config(kind, request, folder)
            if isinstance(config, TryonConfig):
                check_asked(config)
            else:
                check_generate(cast(GenerateConfig, config))
        except ModelError:  # the server's own affair: the job tells of it
            return
        except TriptychError as error:
            words = (self.reader.plain(text, request, folder) for text in (error.message, error.hint))
            raise InputError(*words) from error

    def _run(self, replica: Replica, wake: threading.Event) -> None:
        last: tuple[Any, ...] = ()
        while not self._ending.is_set():
            jobs = self._next(last)
            if jobs:
                self._do(replica, jobs)
                last = _products(jobs[0])
                continue
            wake.wait(1.0)
            wake.clear()

    # --- which jobs

    def _next(self, last: tuple[Any, ...] = ()) -> list[Job]:
        """The jobs to make now, marked as running: the one whose turn it is, and those that wait already and
        can be sampled with it. last: products of the replica's last job.
        """
        with self._choosing:
            waiting = self.store.waiting(max(WINDOW * len(self.replicas), self.max_batch))
            if not waiting:
                return []
            patient = time.time() - waiting[0].created < _OVERTAKEN
            same = [job for job in waiting if _products(job) == last] if patient else []
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
                lines.append(Line(job.id, cast(TryonConfig, self.reader.of(job))))
                jobs.append(job)
            except TriptychError:  # it is told when the job's turn comes
                if job is chosen:
                    return [chosen]
        left = {number: line.config.seeds for number, line in enumerate(lines) if line.config}
        return [jobs[one.number] for one in todo_pictures(lines, left, self.max_batch)[0]]

    # --- making them

    def _do(self, replica: Replica, jobs: Sequence[Job]) -> None:
        """Have the pictures of jobs made, and record how each job ends."""
        begun, left = time.monotonic(), {job.id for job in jobs}

        def tell(told: Mapping[str, Moment | End]) -> Collection[str]:
            self.opened = True
            gone = self._noted(told, left, begun)
            if self._ending.is_set() or (gone and not left):
                raise Cancelled
            return left

        try:
            replica(jobs, tell)
        except Cancelled:
            pass
        except ReplicaLost as error:
            log.warning("A replica has ended; its jobs are made again: %s", error)
            self.store.recover(left)
            self._ending.wait(1.0)
        finally:
            for job in jobs:
                self.moments.pop(job.id, None)

    def _noted(self, told: Mapping[str, Moment | End], left: set[str], begun: float) -> bool:
        """Note what jobs are doing, and record the end of others, which are then no longer `left`; whether
        somebody cancelled one.
        """
        for id in left & told.keys():
            now = told[id]
            if isinstance(now, Moment):
                self.moments[id] = replace(now, since=begun)
            else:
                left.discard(id)
                self.store.end(id, now.state, results=now.results, warnings=now.warnings, error=now.error)
                self.moments.pop(id, None)
        gone = self.store.cancelled(left)
        for id in gone:
            left.discard(id)
            self.store.end(id, "cancelled")
            self.moments.pop(id, None)
        return bool(gone)


def _products(job: Job) -> tuple[Any, ...]:
    """What jobs share that need the same reading of the products."""
    photos = [(name, id) for name, id in uploads_of(job.request) if name not in ("person", "mask")]
    return (job.kind, *sorted(photos))
