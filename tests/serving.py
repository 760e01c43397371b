"""A server without a socket, for tests: the application behind its guard, with a real worker."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.server.api import Server, make_api
from triptych.server.guard import Guard
from triptych.server.jobs import JobStore
from triptych.server.maker import Maker
from triptych.server.requests import RequestReader
from triptych.server.uploads import Uploads
from triptych.server.worker import Worker
from triptych.session import Session

PROMPT = "one dress <IMAGE 1> its front <IMAGE 2> its back <IMAGE 3> somebody in the dress"


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@contextmanager
def served(
    model: Path, folder: Path, *, token: str = "", max_upload: int = 1 << 20, max_queue: int = 1000
) -> Iterator[tuple[Server, Guard]]:
    """(its parts, the application), at work in a folder."""
    own: dict[str, Any] = {"model": str(model), "device": "cpu", "dtype": "fp32"}
    session = Session(**own)
    store, uploads, results = (
        JobStore(folder / "jobs.sqlite"),
        Uploads(folder / "uploads"),
        folder / "results",
    )
    reader = RequestReader(own, uploads, results)
    worker = Worker(store, reader, [Maker(reader, lambda: session)])
    about = {"model": "tiny", "lora": False, "panels": list(session.layout().roles)}
    server = Server(store, uploads, worker, results, about, max_queue, max_upload)
    worker.start()
    try:
        yield server, Guard(make_api(server), token, 6 * max_upload)
    finally:
        worker.stop()
        store.close()
