"""`app`: the page on the server of `serve`. What stands in front of it, and the page in a real browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.test_serve import Client
from triptych.server.config import AppConfig
from triptych.server.verb import app

TOKEN = "a-long-enough-token"


@contextmanager
def running(work: Path, **options: Any) -> Iterator[str]:
    """The address of a page that is served meanwhile."""
    run = app(AppConfig(**{"work": work, "device": "cpu", "dtype": "fp32", "port": 0, **options}))
    events, stop = iter(run), threading.Event()
    address = next(events).result

    def go_on() -> None:
        while not stop.is_set():
            time.sleep(0.05)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    yield address
    stop.set()
    run.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("page")) as found:
        yield found


def test_the_guard_stands_before_the_page_too(address: str) -> None:
    client = Client(address)
    for path in ("/page/", "/page/config", "/page/gradio_api/queue/join", "/page/theme.css"):
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}):
            assert client("GET", path, **headers)[0] == 403, (path, headers)
    status, headers, _ = client("GET", "/page/")
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    other = f"http://127.0.0.1:{int(address.rpartition(':')[2]) + 1}"
    assert client("GET", "/page/", origin=other)[0] == 403, "another program of this machine"


@pytest.mark.parametrize(
    "path", ["info", "openapi.json", "proxy=http://127.0.0.1/", "runs", "vibe-code", "process_recording"]
)
def test_what_the_page_never_asks_for_is_closed(address: str, path: str) -> None:
    for method in ("GET", "POST"):
        assert Client(address)(method, f"/page/gradio_api/{path}")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "pyproject.toml",
        "/proc/self/environ",
        "....//....//etc/passwd",
        "\\etc\\passwd",
        "%00/etc/passwd",
        "WORK/serve/jobs.sqlite",
    ],
)
def test_no_file_of_the_server_comes_out(address: str, path: str, tmp_path_factory: Any) -> None:
    path = path.replace("WORK", next(tmp_path_factory.getbasetemp().glob("page*")).as_posix())
    for place in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
        status, _, answer = Client(address)("GET", f"/page/{place}{path}")
        assert status in (400, 403, 404, 422) and b"root:" not in answer, (place, status)


def test_a_browser_gives_the_token_in_a_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", TOKEN)
    with running(tmp_path) as address:
        client = Client(address)
        assert client("GET", "/page/config")[0] == 401
        assert b'type="password"' in client("GET", "/", accept="text/html")[2], "it leads to the form"
        kind = "application/x-www-form-urlencoded"
        assert client("POST", "/login", b"token=wrong", content_type=kind)[0] == 401
        assert client("POST", "/login", b"token=" + TOKEN.encode(), origin="https://evil.example")[0] == 403
        import http.client

        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        connection.request("POST", "/login", b"token=" + TOKEN.encode(), {"content-type": kind})
        answer = connection.getresponse()
        cookie = answer.getheader("set-cookie") or ""
        assert answer.status == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert TOKEN not in cookie
        pair = cookie.partition(";")[0]
        assert client("GET", "/page/config", cookie=pair)[0] == 200
        assert client("GET", "/v1/jobs", cookie=pair)[0] == 200
        assert client("GET", "/v1/jobs", cookie=pair, origin="https://evil.example")[0] == 403
        assert client("GET", "/v1/jobs", cookie="triptych=x")[0] == 401
        assert client("GET", "/v1/jobs", cookie=f"triptych={TOKEN}")[0] == 401
