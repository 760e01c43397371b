"""What the page shows besides gradio's own: the canvas's module, previews of uploads, small results."""

from __future__ import annotations

import io
from functools import lru_cache
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi import Path as InPath
from fastapi.responses import Response
from PIL import Image

from triptych.pictures.images import load_image
from triptych.server.api import JobId, found_result
from triptych.server.page.context import Context

PREVIEW, THUMB = 1600, 360
"""Longest side in pixels of a photo on the canvas, and of a small result."""


def add_routes(api: FastAPI, context: Context) -> None:
    """Add the routes to the API's application; they stand behind the same guard."""

    @api.get("/files/polygon_canvas.js", include_in_schema=False)
    def canvas() -> Response:
        module = resources.files("triptych") / "web" / "polygon_canvas.js"
        return Response(module.read_bytes(), media_type="text/javascript; charset=utf-8")

    @api.get("/files/preview/{id}", include_in_schema=False)
    def preview(id: str = InPath(pattern=r"^[0-9a-f]{64}$")) -> Response:
        return Response(_small(context.uploads.path(id, "photo"), PREVIEW), media_type="image/jpeg")

    @api.get("/files/upload/{id}", include_in_schema=False)
    def small(id: str = InPath(pattern=r"^[0-9a-f]{64}$")) -> Response:
        return Response(_small(context.uploads.path(id, "photo"), THUMB), media_type="image/jpeg")

    @api.get("/files/thumb/{id}/{number}", include_in_schema=False)
    def thumb(id: str = JobId, number: int = InPath(ge=0, le=999)) -> Response:
        return Response(_small(found_result(context.server, id, number), THUMB), media_type="image/jpeg")


def upload(id: str) -> str:
    """The address of a small upload."""
    return f"../files/upload/{id}"


def thumbnail(job: str, number: int) -> str:
    """The address of a small result, as the page asks for it."""
    return f"../files/thumb/{job}/{number}"


def result(job: str, number: int) -> str:
    """The address of a result: the file with all its settings inside."""
    return f"../v1/jobs/{job}/results/{number}"


@lru_cache(maxsize=256)
def _small(path: Path, longest: int) -> bytes:
    image, data = load_image(path, longest=longest), io.BytesIO()
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    image.save(data, "JPEG", quality=88)
    return data.getvalue()
