"""`app`: the page on the server of `serve`. What stands in front of it, and the page in a real browser."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.test_serve import Client, served
from triptych.errors import ConfigError
from triptych.server.config import AppConfig
from triptych.server.verb import app

TOKEN = "a-long-enough-token"


@contextmanager
def running(work: Path, **options: Any) -> Iterator[str]:
    """The address of a page that is served meanwhile."""
    with served(
        app(AppConfig(**{"work": work, "device": "cpu", "dtype": "fp32", "port": 0, **options}))
    ) as at:
        yield at


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def uploads(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(tmp_path_factory.getbasetemp().glob("page*")) / "serve/uploads"


def test_the_guard_stands_before_the_page_too(address: str) -> None:
    client = Client(address)
    for path in ("/page/", "/page/config", "/page/gradio_api/run/predict", "/page/theme.css"):
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}):
            assert client("GET", path, **headers)[0] == 403, (path, headers)
    status, headers, _ = client("GET", "/page/")
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    other = f"http://127.0.0.1:{int(address.rpartition(':')[2]) + 1}"
    assert client("GET", "/page/", origin=other)[0] == 403, "another program of this machine"


@pytest.mark.parametrize(
    "path",
    [
        "info",
        "openapi.json",
        "proxy=http://127.0.0.1/",
        "runs",
        "vibe-code",
        "process_recording",
        "queue/join",
        "queue/data",
    ],
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


def _asked_by_hand(client: Client, file: Any) -> tuple[int, str]:
    """What the page's own event answers that takes the photo of the person."""
    config = json.loads(client("GET", "/page/config")[2])
    person = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "tryon-person")
    event = next(one for one in config["dependencies"] if [person, "change"] in one["targets"])
    values = [file if id == person else None for id in event["inputs"]]
    body = {"data": values, "fn_index": event["id"], "session_hash": "by-hand", "trigger_id": person}
    status, _, answer = client(
        "POST", "/page/gradio_api/run/predict", json.dumps(body).encode(), content_type="application/json"
    )
    return status, answer.decode()


def test_no_path_of_the_server_is_taken_from_the_browser(address: str, uploads: Path, tmp_path: Path) -> None:
    """Nobody can have a file of the server read, or another server asked, by naming it; a file that was sent
    is read.
    """
    client, secret = Client(address), tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    sent = _send(client, secret.read_bytes())
    link = Path(sent).with_name("link.png")
    link.symlink_to(secret)
    meta = {"meta": {"_type": "gradio.FileData"}}
    for path in (
        str(secret),
        "/etc/passwd",
        f"{uploads}/../jobs.sqlite",
        "../secret.png",
        f"{Path(sent).parent}/../../{secret}",
        str(link),
        "http://127.0.0.1:1/a.png",
        "\0",
        7,
    ):
        for file in ({"path": path}, {"path": path, "orig_name": "a.png", **meta}):
            assert _asked_by_hand(client, file)[0] == 403, path
    assert not any(uploads.iterdir())
    status, told = _asked_by_hand(client, {"path": sent, "orig_name": "a.png", **meta})
    assert status == 200 and json.loads(told)["data"] and len(list(uploads.iterdir())) == 1
    assert str(uploads.parent) not in told


def test_no_event_goes_through_the_queue(address: str) -> None:
    """Gradio closes the stream of answers after an event, even if another has been sent meanwhile."""
    events = json.loads(Client(address)("GET", "/page/config")[2])["dependencies"]
    assert len(events) > 20 and not [one for one in events if one["queue"]]


def _send(client: Client, data: bytes, status: int = 200) -> str:
    head = '--edge\r\nContent-Disposition: form-data; name="files"; filename="../../a.png"\r\n\r\n'
    body = head.encode() + data + b"\r\n--edge--\r\n"
    kind = "multipart/form-data; boundary=edge"
    answer = client("POST", "/page/gradio_api/upload", body, content_type=kind)
    assert answer[0] == status, answer
    return str(json.loads(answer[2])[0]) if status == 200 else ""


def test_what_is_sent_is_limited_and_looked_at(address: str, uploads: Path) -> None:
    client = Client(address)
    _send(client, bytes(21 << 20), 413)
    _, told = _asked_by_hand(client, {"path": _send(client, b"no picture at all")})
    assert "The upload is no usable picture" in told and "Send a JPEG, PNG or WebP" in told


def test_a_browser_gives_the_token_in_a_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", TOKEN)
    with running(tmp_path) as address:
        client = Client(address)
        assert client("GET", "/page/config")[0] == 401
        assert b'type="password"' in client("GET", "/", accept="text/html")[2], "it leads to the form"
        kind = "application/x-www-form-urlencoded"
        assert client("POST", "/login", b"token=wrong", content_type=kind)[0] == 401
        assert client("POST", "/login", b"token=" + TOKEN.encode(), origin="https://evil.example")[0] == 403
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


def test_a_missing_gradio_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("triptych.server.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match="needs the package gradio") as caught:
        app(AppConfig(work=tmp_path))
    assert "triptych[app]" in caught.value.hint


def test_help_and_the_api_alone_import_no_gradio() -> None:
    code = (
        "import sys; from triptych.cli import main; main(['app', '--help']); import triptych.server.verb, "
        "triptych.server.api; assert 'gradio' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--open-browser" in done.stdout, done.stderr
