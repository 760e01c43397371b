"""serve: makes pictures on request, over HTTP. app: the same, with a page for people.

WORK/serve/jobs.sqlite    the queue; jobs outlive the server
WORK/serve/uploads/       pictures that clients sent, by their hash
WORK/serve/results/ID/    what was made for a job
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.captioning.captioners import check_upload
from triptych.captioning.replies import check_url
from triptych.config.engine import EngineConfig
from triptych.config.stage import StageConfig
from triptych.errors import ConfigError, WorkError
from triptych.events import Event, Run, held
from triptych.server.config import AppConfig, ServeConfig
from triptych.server.guard import Guard, is_loopback
from triptych.server.jobs import Job, JobStore
from triptych.server.maker import Maker
from triptych.server.requests import RequestReader
from triptych.server.uploads import Uploads
from triptych.server.worker import Replica, Worker
from triptych.store.folder import StageFolder, is_held

if TYPE_CHECKING:  # it imports torch
    from triptych.session import Session

TOKEN = "TRIPTYCH_TOKEN"
"""Environment variable with the token that clients must send."""
INSTALL = "pip install 'triptych[serve]'."
_LEAST_TOKEN = 16
_ENGINE = frozenset(EngineConfig.model_fields) - frozenset(StageConfig.model_fields)
"""Settings of the server that none of its pictures has."""


def serve(config: ServeConfig) -> Run:
    """Serve until it is stopped; each finished job is an event.

    Raises:
        ConfigError: another address than this machine's own without a token, or the port is taken.
            ModelError: no model, or model or LoRA do not exist. WorkError: a server runs in this work folder.
    """
    return _serving("serve", config)


def app(config: AppConfig) -> Run:
    """Serve the page, and the API beside it, until it is stopped.

    Raises:
        ConfigError, ModelError: as `serve`.
    """
    return _serving("app", config)


def _check_packages(page: bool) -> None:
    """Raise ConfigError if a package is missing: it is told before anything is opened."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401

        if page:
            import triptych.server.page.page  # noqa: F401
    except ImportError as error:
        install = INSTALL.replace("serve", "app") if page else INSTALL
        raise ConfigError(f"The server needs the package {error.name}.", install) from error


def _serving(verb: str, config: ServeConfig) -> Run:
    token = os.environ.get(TOKEN, "")
    if not is_loopback(config.host) and not token:
        raise ConfigError(
            f"{config.host} is not this machine's own address, and there is no token.",
            f"Set the environment variable {TOKEN} to a long random word, or leave --host out.",
        )
    if token and len(token) < _LEAST_TOKEN:
        raise ConfigError(f"The token in {TOKEN} is too short.", f"Take at least {_LEAST_TOKEN} characters.")
    check_url(config.base_url)
    check_upload(config.vlm_model or "", config.base_url, config.allow_upload)
    config.check_model()
    if config.replicas and config.on is None:
        raise ConfigError(
            "--replicas has no effect without --engine ray.", "Add it, or leave --replicas out."
        )
    _check_packages(isinstance(config, AppConfig))
    if is_held(config.work / "serve", "serve"):
        raise WorkError(
            f"A server is running in {config.work} already.",
            "Stop it, or give this one another --work folder.",
        )
    from triptych.session import Session  # not at the top: it imports torch

    opening = config.model_source() | {"keep_text_encoder": config.keep_text_encoder}
    session = Session(**opening)  # mistakes are told before anything listens
    listening = _socket(config)
    home = config.work / "serve"
    address = f"http://{_shown(config.host)}:{listening.getsockname()[1]}"
    summary: dict[str, Any] = {"address": address, "done": 0, "failed": 0, "cancelled": 0}

    def work() -> Iterator[Event]:
        with contextlib.closing(listening):
            own = {name: getattr(config, name) for name in type(config).model_fields.keys() - _ENGINE}
            (home / "results").mkdir(exist_ok=True)
            reader = RequestReader(own, Uploads(home / "uploads"), home / "results")
            with _replicas(config, session, opening, reader) as replicas:
                store = JobStore(home / "jobs.sqlite")
                worker = Worker(store, reader, replicas, config.max_batch)
                yield from _at_work(config, session, worker, token, listening, summary)

    return Run(verb, 0, held(StageFolder(home, "serve", {}), work), summary)


@contextlib.contextmanager
def _replicas(
    config: ServeConfig, session: Session, opening: dict[str, Any], reader: RequestReader
) -> Iterator[Sequence[Replica]]:
    """What makes the pictures: this process, or replicas on a cluster."""
    if config.on is None:
        yield [Maker(reader, lambda: session, config.max_batch)]
        return
    from triptych.server.replicas_ray import on_ray

    with on_ray(config.on, config.replicas, opening, reader, config.max_batch) as replicas:
        yield replicas


def _at_work(
    config: ServeConfig,
    session: Session,
    worker: Worker,
    token: str,
    listening: socket.socket,
    summary: dict[str, Any],
) -> Iterator[Event]:
    """The events of a server that answers until it is stopped."""
    import uvicorn

    store, address = worker.store, summary["address"]
    running = uvicorn.Server(
        uvicorn.Config(
            _server(config, session, worker, token),
            log_level="warning",
            log_config=None,  # no handler of its own, which would write into the progress
            lifespan="on" if isinstance(config, AppConfig) else "off",
            timeout_graceful_shutdown=3,
            server_header=False,
        )
    )
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    try:
        again = store.recover()
        worker.start()
        thread.start()
        print(f"Listening at {address}", file=sys.stderr, flush=True)  # also where no progress is shown
        yield Event("listening", note=f"{address} (OpenAPI: {address}/openapi.json)", result=address)
        if isinstance(config, AppConfig) and config.open_browser:
            webbrowser.open(address)
        if again:
            yield Event("queue", note=f"{again} unfinished jobs of an earlier run go on")
        yield from _ended(store, config.work / "serve", config, summary)
    finally:
        running.should_exit = True
        worker.stop()
        thread.join(5)
        store.close()


def _server(config: ServeConfig, session: Session, worker: Worker, token: str) -> Guard:
    from triptych.server.api import Server, make_api  # not at the top: it needs the extra

    reader = worker.reader
    about = {
        "model": session.options["model"],
        "lora": bool(config.lora),
        "panels": list(session.layout().roles),
    }
    limit = config.max_upload_mb << 20
    behind = Server(worker.store, reader.uploads, worker, reader.results, about, config.max_queue, limit)
    api, door = make_api(behind), None
    if isinstance(config, AppConfig):
        from triptych.server.page.context import Context
        from triptych.server.page.door import Door
        from triptych.server.page.page import mount

        door = Door(token)
        door.add_routes(api)
        mount(api, Context(behind, session, config))
    return Guard(api, token, 6 * limit, config.allow_origin, door)


def _ended(store: JobStore, home: Path, config: ServeConfig, summary: dict[str, Any]) -> Iterator[Event]:
    """An event for each job that ends, for ever; old jobs are cleared away now and then."""
    last, swept = (time.time(), 0), 0.0
    while True:
        for job in store.ended_after(*last):
            last = job.ended or 0.0, job.number
            summary[job.state] += 1
            yield Event(
                f"{job.kind} {job.id[:8]}",
                "done" if job.state == "done" else "rejected",
                job.error.get("message", "") or job.state,
                result=job.id,
            )
        if time.time() - swept > 600:
            _sweep(store, home, config.keep_days)
            swept = time.time()
        time.sleep(0.5)


def _sweep(store: JobStore, home: Path, days: float) -> None:
    """Delete what is older than `days`: ended jobs with their pictures, and uploads that no job names."""
    oldest = time.time() - days * 86_400
    gone: list[Job] = store.forget(oldest)
    for job in gone:
        shutil.rmtree(home / "results" / job.id, ignore_errors=True)
    used = store.uploads_in_use()
    for path in (home / "uploads").iterdir():
        with contextlib.suppress(OSError):
            if path.name not in used and path.stat().st_mtime < oldest:
                path.unlink()


def _socket(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{config.host}:{config.port} cannot be listened at: {error.strerror or error}.",
            "Another program has the port, perhaps: choose another --port, or 0 for a free one.",
        ) from error
    return listening


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
