"""The HTTP API: uploads, try-ons and triptychs as jobs, their progress and their pictures."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from triptych import __version__
from triptych.errors import InputError, TriptychError
from triptych.server.guard import TooLarge, problem
from triptych.server.jobs import ENDED, Job, JobStore, KeyReused, State
from triptych.server.metrics import Metrics
from triptych.server.requests import MODELS, PICTURES, Kind, checked, in_words_of_the_api, uploads_of
from triptych.server.schema import EVENT, PNG, PROBLEM, Health, JobAnswer, JobList, Served, Uploaded, describe
from triptych.server.uploads import Uploads
from triptych.server.worker import Worker

JobId = InPath(pattern=r"^[0-9a-f]{32}$", description="Id of a job.")
log = logging.getLogger(__name__)

REFRESH = 0.2
"""Seconds between looks at a job whose events are streamed."""


class Refused(Exception):
    """A request that cannot be done; becomes a problem document."""

    def __init__(self, status: int, title: str, detail: str, hint: str = "", wait: int = 0) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.hint, self.wait = status, title, detail, hint, wait


@dataclass(frozen=True)
class Server:
    """What the API serves from."""

    store: JobStore
    uploads: Uploads
    worker: Worker
    results: Path
    about: Mapping[str, Any]
    max_queue: int
    max_upload: int


def make_api(server: Server) -> FastAPI:
    """The application; its worker must be started apart."""
    app = FastAPI(
        title="triptych",
        version=__version__,
        summary="Virtual try-on by In-Context LoRA",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    metrics = Metrics(server)
    _errors(app)
    _uploads(app, server)
    _making(app, server)
    _jobs(app, server)

    @app.get("/healthz", tags=["server"], response_model=Health, responses={503: PROBLEM})
    def health() -> dict[str, Any]:
        """Whether the server works: its queue can be read and its worker is alive."""
        if not server.worker.is_alive():
            raise Refused(503, "Service Unavailable", "The worker has ended.", "Start the server again.")
        return {"status": "ok", "version": __version__, "queued": server.store.counts()["queued"]}

    @app.get("/v1/model", tags=["server"], response_model=Served)
    def model() -> dict[str, Any]:
        """The model and LoRA that pictures are made with."""
        return dict(server.about)

    @app.get(
        "/metrics",
        tags=["server"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def measures() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    describe(app)
    return app


def _errors(app: FastAPI) -> None:
    def answer(status: int, title: str, detail: str, hint: str = "", wait: int = 0) -> Response:
        _, body = problem(status, title, detail, hint)
        headers = {"Retry-After": str(wait)} if wait else {}
        return Response(body, status, headers, media_type="application/problem+json")

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return answer(error.status, error.title, error.detail, error.hint, error.wait)

    @app.exception_handler(TriptychError)
    def mistake(request: Request, error: TriptychError) -> Response:
        words = (in_words_of_the_api(error.message), in_words_of_the_api(error.hint))
        if isinstance(error, KeyReused):
            return answer(409, "Conflict", *words)
        return answer(422, "Unprocessable Content", *words)

    @app.exception_handler(TooLarge)
    def too_large(request: Request, error: TooLarge) -> Response:
        return answer(413, "Content Too Large", error.detail, error.hint)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["loc"][0] == "path":
            hint = "An id has 32 digits of 0 to 9 and a to f; a number counts from 0."
            return answer(422, "Unprocessable Content", "The address names no job or picture.", hint)
        where = ".".join(str(part) for part in first["loc"])
        return answer(422, "Unprocessable Content", f"{where}: {first['msg']}.")

    @app.exception_handler(Exception)  # a fault of ours, or of a library
    def fault(request: Request, error: Exception) -> Response:
        told = f"{request.method} {request.url.path}", type(error).__name__, error
        log.error("%s failed: %s: %s", *told, exc_info=error)
        return answer(500, "Internal Server Error", "The server failed.", "The server's log says more.")

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        made = answer(error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail))
        made.headers.update(error.headers or {})
        return made


def _uploads(app: FastAPI, server: Server) -> None:
    form = {"schema": {"type": "object", "properties": {"file": PNG}, "required": ["file"]}}
    body = {"required": True, "content": {"image/*": {"schema": PNG}, "multipart/form-data": form}}

    @app.post(
        "/v1/uploads",
        status_code=201,
        tags=["uploads"],
        response_model=Uploaded,
        openapi_extra={"requestBody": body},
        responses={400: PROBLEM, 413: PROBLEM, 422: PROBLEM},
    )
    async def upload(request: Request) -> dict[str, Any]:
        """Keep a picture on the server: the body is the picture, or a form with a field `file`."""
        if _is_form(request):
            async with request.form(max_files=1, max_fields=1) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise InputError("The form has no file.", "Name the field 'file'.")
                data = await file.read()
        else:
            data = await request.body()
        return await asyncio.to_thread(_keep, server, data)


def _keep(server: Server, data: bytes) -> dict[str, Any]:
    if len(data) > server.max_upload:
        raise Refused(
            413,
            "Content Too Large",
            f"An upload has at most {server.max_upload >> 20} MB.",
            "Scale the picture down.",
        )
    kept = server.uploads.add(data)
    return {"upload": kept.id, "width": kept.size[0], "height": kept.size[1]}


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def _settings(request: Request, kind: Kind, server: Server) -> dict[str, Any]:
    """The settings of a request: its JSON body; or of a form the field `settings` as JSON, and pictures."""
    if not _is_form(request):
        return _object(await request.body())
    async with request.form(max_files=20, max_fields=4) as form:
        given = _object(str(form.get("settings") or "{}").encode())
        for name, value in form.multi_items():
            if name == "settings":
                continue
            if not isinstance(value, UploadFile):
                raise InputError(f"The field {name[:80]} is no file.", "Settings go as JSON into 'settings'.")
            if name not in PICTURES[kind] and not (kind == "generate" and name.startswith("panels.")):
                raise InputError(
                    f"There is no picture {name[:80]}.", f"There are {', '.join(PICTURES[kind])}."
                )
            kept = await asyncio.to_thread(_keep, server, await value.read())
            home, _, role = name.partition(".")
            if home == "reference":
                given.setdefault(home, []).append(kept["upload"])
            elif role:
                given.setdefault(home, {})[role] = kept["upload"]
            else:
                given[name] = kept["upload"]
    return given


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError("The body is no JSON.", "Send an object of settings.") from error
    if not isinstance(found, dict):
        raise InputError("The body is no JSON object.", "Send an object of settings.")
    return found


def _making(app: FastAPI, server: Server) -> None:
    for kind in MODELS:
        _make_route(app, server, kind)


def _make_route(app: FastAPI, server: Server, kind: Kind) -> None:
    help = {
        "tryon": "Dress a given person: only the inside of the polygons or the mask changes.",
        "generate": "Make a person who wears a garment, from a prompt and product photos.",
    }

    @app.post(
        f"/v1/{kind}",
        status_code=202,
        tags=["pictures"],
        response_model=JobAnswer,
        name=kind,
        summary=help[kind],
        responses={400: PROBLEM, 409: PROBLEM, 413: PROBLEM, 422: PROBLEM, 429: PROBLEM},
    )
    async def make(
        request: Request,
        response: Response,
        idempotency_key: str | None = Header(default=None, max_length=200),
    ) -> dict[str, Any]:
        settings = await _settings(request, kind, server)
        job, new = await asyncio.to_thread(queue, server, kind, settings, idempotency_key)
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        if not new:
            response.headers["Idempotent-Replayed"] = "true"
        return _shown(server, job)


def queue(
    server: Server, kind: Kind, settings: Mapping[str, Any], key: str | None = None
) -> tuple[Job, bool]:
    """(the job, whether it is new) of a request.

    Raises:
        InputError: an impossible setting, or an upload that is not there. KeyReused: see `JobStore.add`.
        Refused: too many jobs wait.
    """
    asked = checked(kind, settings)
    for field, id in uploads_of(asked):
        server.uploads.path(id, field)
    server.worker.check(kind, asked)
    if server.store.counts()["queued"] >= server.max_queue:
        raise Refused(
            429, "Too Many Requests", f"{server.max_queue} jobs are waiting already.", "Come again later.", 30
        )
    found = server.store.add(kind, asked, key)
    server.worker.wake()
    return found


def _jobs(app: FastAPI, server: Server) -> None:
    @app.get("/v1/jobs", tags=["jobs"], response_model=JobList, responses={422: PROBLEM})
    def jobs(
        state: State | None = None,
        limit: int = Query(default=50, ge=1, le=500),
        before: int | None = Query(default=None, ge=0, le=1 << 62),
    ) -> dict[str, Any]:
        """Jobs, newest first. `before`: those with a lower number; give the last one's for more."""
        found = server.store.newest(limit, before, state)
        return {"jobs": [_shown(server, job) for job in found], "counts": server.store.counts()}

    @app.get("/v1/jobs/{id}", tags=["jobs"], response_model=JobAnswer, responses={404: PROBLEM, 422: PROBLEM})
    def job(id: str = JobId) -> dict[str, Any]:
        """State, progress and results of a job."""
        return _shown(server, _found(server, id))

    @app.delete(
        "/v1/jobs/{id}", tags=["jobs"], response_model=JobAnswer, responses={404: PROBLEM, 422: PROBLEM}
    )
    def cancel(id: str = JobId) -> dict[str, Any]:
        """Cancel a job: at once if it waits, at its next step if it runs. What has ended stays."""
        _found(server, id)
        ended = server.store.cancel(id)
        assert ended is not None
        return _shown(server, ended)

    @app.get(
        "/v1/jobs/{id}/events",
        tags=["jobs"],
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": EVENT}}},
            404: PROBLEM,
            422: PROBLEM,
        },
    )
    async def events(request: Request, id: str = JobId) -> StreamingResponse:
        """The job as server-sent events: one whenever something changes, the last one when it has ended."""
        await asyncio.to_thread(_found, server, id)
        return StreamingResponse(_events(server, id, request), media_type="text/event-stream")

    @app.get(
        "/v1/jobs/{id}/results/{number}",
        tags=["jobs"],
        response_class=FileResponse,
        responses={
            200: {"content": {"image/png": {"schema": PNG}}},
            404: PROBLEM,
            422: PROBLEM,
        },
    )
    def result(id: str = JobId, number: int = InPath(ge=0, le=999)) -> FileResponse:
        """A picture of a job, with all its settings inside."""
        path = found_result(server, id, number)
        return FileResponse(path, media_type="image/png", filename=path.name)


def _found(server: Server, id: str) -> Job:
    job = server.store.get(id)
    if job is None:
        raise Refused(404, "Not Found", "There is no such job.", "Finished jobs are deleted after some days.")
    return job


def found_result(server: Server, id: str, number: int) -> Path:
    """The file of a picture of a job.

    Raises:
        Refused: there is none.
    """
    found = _found(server, id)
    if number >= len(found.results):
        raise Refused(404, "Not Found", "The job has no such picture.", f"Its state is {found.state}.")
    path = server.results / id / found.results[number]
    if not path.is_file():
        raise Refused(404, "Not Found", "The picture is no longer there.")
    return path


def _shown(server: Server, job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    shown: dict[str, Any] = {
        "id": job.id,
        "number": job.number,
        "kind": job.kind,
        "state": job.state,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "settings": job.request,
        "ahead": server.store.ahead_of(job),
        "results": [f"/v1/jobs/{job.id}/results/{number}" for number in range(len(job.results))],
        "warnings": job.warnings,
        "error": job.error or None,
        "progress": None,
    }
    if job.state == "running" and (now := server.worker.moments.get(job.id)):
        shown["progress"] = {
            "doing": now.doing,
            "done": now.done,
            "of": now.of,
            "share": round(now.share, 4),
            "eta_seconds": None if now.eta is None else round(now.eta, 1),
        }
    return shown


async def _events(server: Server, id: str, request: Request) -> AsyncIterator[str]:
    last, quiet = "", time.monotonic()
    while True:
        job = await asyncio.to_thread(server.store.get, id)
        shown = {} if job is None else await asyncio.to_thread(_shown, server, job)
        ended = job is None or job.state in ENDED
        told = json.dumps({k: v for k, v in shown.items() if k not in ("settings",)}, ensure_ascii=True)
        if told != last:
            yield f"event: {'end' if ended else 'progress'}\ndata: {told}\n\n"
            last, quiet = told, time.monotonic()
        elif time.monotonic() - quiet > 15:  # so that nobody between the two takes the connection for dead
            yield ": still here\n\n"
            quiet = time.monotonic()
        if ended or await request.is_disconnected():
            return
        await asyncio.sleep(REFRESH)
