"""Replicas of the model on a Ray cluster, by Ray Serve. The queue, the table of jobs and the API stay in the
server's process; a replica is a `Maker` in a process of its own, which sees the same folders.

Ray Serve starts the replicas, starts one again that ends, and gives each call to a free one. The answer to a
call is a stream of what the maker tells.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from triptych import progress
from triptych.errors import ConfigError, ModelError
from triptych.execution import Engine
from triptych.execution_ray import cards_of, connected, is_connected, silent
from triptych.server.jobs import Job
from triptych.server.maker import Cancelled, End, Maker, Moment, Tell
from triptych.server.requests import RequestReader
from triptych.server.worker import Replica, ReplicaLost
from triptych.store.files import digest

TOLD = 0.2
"""Seconds between two messages of a replica at work."""
_DEPLOYMENT = "pictures"


@contextmanager
def on_ray(
    engine: Engine,
    replicas: int | None,
    opening: Mapping[str, Any],
    reader: RequestReader,
    max_batch: int,
) -> Iterator[list[Replica]]:
    """Replicas that work meanwhile: at least one does from the beginning, the others follow.

    Args:
        replicas: how many; None is one for each card of the cluster, or one without cards.
        opening: arguments of `Session`.

    Raises:
        ConfigError: an address that replicas cannot be reached through. ModelError: Ray is not installed, the
            cluster cannot be reached, or a replica cannot start.
    """
    if (engine.address or "").startswith("ray://"):
        raise ConfigError(
            f"Replicas cannot be reached through {engine.address}.",
            "Start the server on a machine of the cluster, with --address auto.",
        )
    progress.doing("starting Ray")
    before = is_connected()
    ray = connected(engine, "serve")
    cards, name = cards_of(ray, engine), f"triptych-{digest(str(reader.results.resolve()))[:12]}"
    count = replicas or max(1, cards)
    begins = not _serve_runs(ray)
    try:
        ray.serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        deployment = ray.serve.deployment(
            _Replica,
            name=_DEPLOYMENT,
            num_replicas=count,
            max_ongoing_requests=1,
            graceful_shutdown_timeout_s=5,
            ray_actor_options={"num_cpus": 0 if cards else 1, "num_gpus": 1 if cards else 0},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        application = deployment.bind(os.getcwd(), dict(opening), reader, max_batch)
        target = ray.serve.RunTarget(application, name, route_prefix=None)
        (handle,) = ray.serve.run_many([target], wait_for_applications_running=False)
        _wait(ray, name, count)
        yield [_Calls(ray, handle.options(stream=True))] * count
    finally:
        with silent():
            ray.serve.delete(name)
            if begins and not ray.serve.status().applications:
                ray.serve.shutdown()
            if not before:
                ray.shutdown()


class _Calls:
    """Gives jobs to whichever replica is free, and passes on what it tells."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self.handle = handle
        self.lost = ray.exceptions.RayError, ray.serve.exceptions.RayServeException

    def __call__(self, jobs: Sequence[Job], tell: Tell) -> None:
        stream = self.handle.remote([*jobs])
        try:
            for told in stream:
                tell(told)
        except Cancelled:
            stream.cancel()
            raise
        except self.lost as error:
            raise ReplicaLost(str(error).splitlines()[0]) from error


class _Replica:
    """A maker in a process of Ray's."""

    def __init__(
        self, folder: str, opening: Mapping[str, Any], reader: RequestReader, max_batch: int
    ) -> None:
        """folder: that the server was started in, since its paths may be relative to it."""
        from triptych.session import Session  # not at the top: it imports torch

        os.chdir(folder)
        self.maker = Maker(reader, lambda: Session(**opening), max_batch)

    async def __call__(self, jobs: list[Job]) -> AsyncIterator[dict[str, Moment | End]]:
        """What the maker tells, the newest of each job every `TOLD` seconds, also if there is nothing new."""
        loop, unwanted, news = asyncio.get_running_loop(), threading.Event(), dict[str, Moment | End]()

        def tell(told: Mapping[str, Moment | End]) -> Collection[str]:
            if unwanted.is_set():
                raise Cancelled
            loop.call_soon_threadsafe(news.update, told)
            return [job.id for job in jobs]

        work = asyncio.ensure_future(asyncio.to_thread(self.maker, jobs, tell))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=TOLD)
                yield dict(news)
                news.clear()
            await work
        finally:  # the caller has gone
            unwanted.set()
            await asyncio.wait([work])


def _serve_runs(ray: Any) -> bool:
    """Whether Ray Serve is running on the cluster already, for others."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _wait(ray: Any, name: str, count: int) -> None:
    """Wait until one replica at least can be given a job.

    Raises:
        ModelError: none can start.
    """
    while True:
        application = ray.serve.status().applications[name]
        deployment = application.deployments.get(_DEPLOYMENT)
        running = int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0
        if running:
            return
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            words = (deployment.message if deployment else "") or application.message
            raise ModelError(
                f"No replica can start: {words.strip().splitlines()[-1][:300]}.",
                "All machines of the cluster need triptych, and the same folders under the same paths.",
            )
        progress.doing(f"waiting for a place on the cluster for {count} replicas")
        time.sleep(0.2)
