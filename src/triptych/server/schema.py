"""What the API answers, as its OpenAPI document says it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from triptych.server.jobs import State
from triptych.server.requests import MODELS, PICTURES, Kind

PROBLEM = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
PNG: dict[str, Any] = {"type": "string", "format": "binary"}
EVENT = {
    "type": "object",
    "properties": {"event": {"enum": ["progress", "end"]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
"""One event of a job. data: the job as JSON, without its settings."""
_EVERYWHERE = {
    "401": "The token is missing or wrong.",
    "403": "Another machine without a token, or a page of another origin.",
    "413": "The body is too large.",
}
"""Answers that any request may get before it is looked at, see `Guard`."""


class Problem(BaseModel):
    """A request that cannot be done (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="One sentence: what is wrong.")
    hint: str = Field(default="", description="What to do about it.")


class Uploaded(BaseModel):
    """A picture that is kept."""

    upload: str = Field(description="Its id: the sha256 of its bytes.")
    width: int
    height: int


class Health(BaseModel):
    """The server works."""

    status: str
    version: str
    queued: int


class Served(BaseModel):
    """The model and LoRA that pictures are made with."""

    model: str
    lora: bool
    panels: list[str]


class Progress(BaseModel):
    """What a running job is doing: `step`, 3 of 28. share: the finished part of the job, in [0, 1]."""

    doing: str
    done: int
    of: int
    share: float = Field(ge=0, le=1)
    eta_seconds: float | None


class Sentence(BaseModel):
    """Why a job failed, and what to do about it."""

    message: str
    hint: str


class JobAnswer(BaseModel):
    """A job. Times are seconds since 1970. ahead: number of jobs that wait before it. results: addresses of
    its pictures, once it is done.
    """

    id: str
    number: int
    kind: Kind
    state: State
    created: float
    started: float | None
    ended: float | None
    settings: dict[str, Any]
    ahead: int
    results: list[str]
    warnings: list[str]
    error: Sentence | None
    progress: Progress | None


class JobList(BaseModel):
    """Jobs, newest first, and the number of all jobs by state."""

    jobs: list[JobAnswer]
    counts: dict[State, int]


def describe(app: FastAPI) -> None:
    """Complete the application's OpenAPI document: bodies that are read by hand, problems, and the token."""
    usual = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        schema = usual()
        parts = schema.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"token": []}]  # a server without a token answers its own machine
        for kind, request in MODELS.items():
            made = request.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= made.pop("$defs", {})
            schemas[request.__name__] = made
            schema["paths"][f"/v1/{kind}"]["post"]["requestBody"] = _body(kind, request.__name__)
        for path in schema["paths"].values():
            for operation in path.values():
                for status, said in _EVERYWHERE.items():
                    operation["responses"].setdefault(status, {"description": said, **PROBLEM})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _body(kind: Kind, name: str) -> dict[str, Any]:
    files = dict.fromkeys(PICTURES[kind], PNG)
    form = {
        "type": "object",
        "properties": {"settings": {"type": "string"}, **files},
        "additionalProperties": False,
    }
    if kind == "generate":
        form["patternProperties"] = {r"^panels\.[a-z]+$": PNG}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}},
            "multipart/form-data": {"schema": form},
        },
    }
