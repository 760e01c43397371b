"""Requests that mean harm: 40 that look for files outside, 15 without the right token, 10 uploads that abuse.

Each goes over a real socket as raw bytes, has one exact answer, and leaves nothing outside the folder of the
server.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving import png
from triptych.server.config import ServeConfig
from triptych.server.verb import serve

TOKEN = "a-long-enough-Token"
SECRET = "what nobody may read"
NO_JOB, NO_UPLOAD = "0" * 32, "0" * 64
LIMIT = 1 << 20
SMALL = zlib.compress(bytes(16))
"""The rows of 8 × 8 black pixels."""
PICTURE = png(Image.new("RGB", (8, 8), "red"))


@dataclass
class Target:
    """A server, its folder, and the folder around it, which must stay as it is."""

    port: int
    around: Path

    @property
    def home(self) -> Path:
        return self.around / "work/serve"

    def send(self, data: bytes) -> tuple[int, str]:
        """(status, body) of the answer to these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            line.sendall(data)
            answer = b""
            while more := line.recv(1 << 16):
                answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        assert SECRET not in answer.decode("latin-1") and str(self.around) not in answer.decode("latin-1")
        return int(head.split()[1]), body.decode("utf-8", "replace")

    def ask(self, method: str, path: str, *headers: str | bytes, body: bytes = b"") -> tuple[int, str]:
        """The answer to a request; a path is sent as it is."""
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Connection: close"]
        lines += [header.encode() if isinstance(header, str) else header for header in headers]
        if body and not any(line.lower().startswith(b"transfer-encoding") for line in lines):
            lines.append(b"Content-Length: %d" % len(body))
        return self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def post(self, path: str, data: Any) -> tuple[int, str]:
        return self.ask("POST", path, "Content-Type: application/json", body=json.dumps(data).encode())

    def form(self, path: str, *parts: tuple[str, bytes]) -> tuple[int, str]:
        """A form of parts (what follows `form-data;`, content)."""
        body = b"".join(
            f"--edge\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
            for head, content in parts
        )
        kind = "Content-Type: multipart/form-data; boundary=edge"
        return self.ask("POST", path, kind, body=body + b"--edge--\r\n")

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything outside the server's folder: (size, time of the last change)."""
        found = (path for path in self.around.rglob("*") if path.is_file() and self.home not in path.parents)
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def started(model: Path, around: Path, **changes: Any) -> Iterator[Target]:
    (around / "secret.txt").write_text(SECRET)
    (around / "work").mkdir()
    (around / "work/secret.txt").write_text(SECRET)
    own = {"work": around / "work", "model": str(model), "device": "cpu", "dtype": "fp32", "port": 0}
    run = serve(ServeConfig(**own, max_upload_mb=1, **changes))
    address = next(iter(run)).result
    yield Target(int(address.rpartition(":")[2]), around)
    run.close()


@pytest.fixture(scope="module")
def bare(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from started(tiny_flux, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def guarded(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_TOKEN", TOKEN)
        yield from started(tiny_flux, tmp_path_factory.mktemp("guarded"))


@pytest.fixture
def target(bare: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The server without a token. Afterwards: nothing outside, and inside only names that are hashes."""
    monkeypatch.chdir(bare.around)
    before = bare.files()
    yield bare
    assert bare.files() == before
    assert all(re.fullmatch("[0-9a-f]{64}", path.name) for path in (bare.home / "uploads").iterdir())
    assert all(re.fullmatch("[0-9a-f]{32}", path.name) for path in (bare.home / "results").iterdir())


PATHS = [
    ("GET", "/v1/jobs/../../../secret.txt", 404),
    ("GET", "/v1/jobs/..", 422),
    ("GET", "/v1/jobs/%2e%2e", 422),
    ("GET", "/v1/jobs/.%2e", 422),
    ("GET", "/v1/jobs/..%2fjobs.sqlite", 404),
    ("GET", "/v1/jobs/%2e%2e%2fjobs.sqlite", 404),
    ("GET", "/v1/jobs/%252e%252e%252fjobs.sqlite", 422),
    ("GET", "/v1/jobs/..%5cjobs.sqlite", 422),
    ("GET", "/v1/jobs/..\\jobs.sqlite", 422),
    ("GET", "/v1/jobs/%00", 422),
    ("GET", f"/v1/jobs/{NO_JOB}%00.png", 422),
    ("GET", f"/v1/jobs/{NO_JOB}%0a", 422),
    ("GET", "/v1/jobs/..%c0%af..%c0%afsecret.txt", 422),
    ("GET", "/v1/jobs/%e0%80%ae%e0%80%ae", 422),
    ("GET", "/v1/jobs/%ff%fe", 422),
    ("GET", "/v1/jobs/..;/jobs.sqlite", 404),
    ("DELETE", "/v1/jobs/%2e%2e", 422),
    ("GET", "/v1/jobs/%2e%2e/events", 422),
    ("GET", "/v1/jobs/..%2f..%2fserve/results/0", 404),
    ("GET", "/v1/jobs/%2e%2e/results/0", 422),
    ("GET", f"/v1/jobs/{NO_JOB}/results/..%2f0", 404),
    ("GET", f"/v1/jobs/{NO_JOB}/results/%2e%2e", 422),
    ("GET", f"/v1/jobs/{NO_JOB}/results/-1", 422),
    ("GET", f"/v1/jobs/{NO_JOB}/results/0%00", 422),
    ("GET", f"/v1/jobs/{NO_JOB}/results/{'9' * 30}", 422),
    ("GET", f"/v1/uploads/{NO_UPLOAD}", 404),
]
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("tryon", {"person": "../../secret.txt"}, "person"),
    ("tryon", {"person": "/etc/passwd"}, "person"),
    ("tryon", {"person": NO_UPLOAD + "\n"}, "person"),
    ("tryon", {"person": "\0" + "0" * 63}, "person"),
    ("tryon", {"person": NO_UPLOAD, "front": "..\\..\\secret.txt"}, "front"),
    ("tryon", {"person": NO_UPLOAD, "reference": ["../../secret.txt"]}, "reference"),
    ("tryon", {"person": NO_UPLOAD, "garments": {"../top": NO_UPLOAD}}, "garments"),
    ("generate", {"panels": {"../../front": NO_UPLOAD}}, "panels"),
    ("generate", {"prompt": "…", "out": "../../evil"}, "out"),
]
FORMS: list[tuple[str, str, int]] = [
    ("uploads", 'name="file"; filename="../../evil.png"', 201),
    ("uploads", 'name="file"; filename="/tmp/evil.png"', 201),
    ("uploads", 'name="file"; filename="a.png"; filename*=UTF-8\'\'..%2f..%2fevil.png', 201),
    ("tryon", 'name="person/../../evil"; filename="a.png"', 422),
    ("generate", 'name="panels.../../evil"; filename="a.png"', 422),
]


@pytest.mark.parametrize(("method", "path", "status"), PATHS)
def test_no_path_leads_outside(target: Target, method: str, path: str, status: int) -> None:
    found, body = target.ask(method, path)
    assert found == status and json.loads(body)["status"] == status


@pytest.mark.parametrize(("kind", "data", "field"), BODIES)
def test_no_setting_leads_outside(target: Target, kind: str, data: dict[str, Any], field: str) -> None:
    status, body = target.post(f"/v1/{kind}", data)
    assert status == 422 and field in json.loads(body)["detail"]


@pytest.mark.parametrize(("where", "head", "status"), FORMS)
def test_no_name_in_a_form_leads_outside(target: Target, where: str, head: str, status: int) -> None:
    assert target.form(f"/v1/{where}", (head, PICTURE))[0] == status


def test_there_are_40_cases_of_traversal() -> None:
    assert len(PATHS) + len(BODIES) + len(FORMS) == 40


BASIC = base64.b64encode(f"user:{TOKEN}".encode()).decode()
WRONG: list[tuple[str, str, list[str | bytes]]] = [
    ("GET", "/v1/jobs", []),
    ("GET", "/v1/jobs", ["Authorization:"]),
    ("GET", "/v1/jobs", ["Authorization: Bearer"]),
    ("GET", "/v1/jobs", ["Authorization: Bearer another-long-Token"]),
    ("GET", "/v1/jobs", [f"Authorization: Bearer {TOKEN[:-1]}"]),
    ("GET", "/v1/jobs", [f"Authorization: Bearer {TOKEN}x"]),
    ("GET", "/v1/jobs", [f"Authorization: Bearer {TOKEN.lower()}"]),
    ("GET", "/v1/jobs", [f"Authorization: {TOKEN}"]),
    ("GET", "/v1/jobs", [f"Authorization: Basic {BASIC}"]),
    ("GET", "/v1/jobs", ["Authorization: Bearer tök\u00e9n".encode("latin-1")]),
    ("GET", f"/v1/jobs?token={TOKEN}&access_token={TOKEN}", []),
    ("GET", "/v1/jobs", [f"Cookie: token={TOKEN}; Authorization={TOKEN}"]),
    ("GET", "/v1/jobs", [f"X-Api-Key: {TOKEN}", f"Proxy-Authorization: Bearer {TOKEN}"]),
    ("GET", "/openapi.json", []),
    ("GET", "/healthz/../v1/jobs", []),
]


@pytest.mark.parametrize(("method", "path", "headers"), WRONG)
def test_without_the_token_nothing_is_told(
    guarded: Target, method: str, path: str, headers: list[str | bytes]
) -> None:
    before = guarded.files()
    status, body = guarded.ask(method, path, *headers)
    assert status == 401 and json.loads(body)["title"] == "Unauthorized" and TOKEN not in body
    assert guarded.files() == before


def test_there_are_15_cases_of_tokens_and_the_right_one_is_let_in(guarded: Target) -> None:
    assert len(WRONG) == 15
    for scheme in ("Bearer", "bearer", "Bearer "):
        assert guarded.ask("GET", "/v1/jobs", f"Authorization: {scheme} {TOKEN}")[0] == 200
    status, _ = guarded.ask("POST", "/v1/uploads", "Content-Type: image/png", body=PICTURE)
    assert status == 401 and list((guarded.home / "uploads").iterdir()) == []


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def drawn(width: int, height: int, rows: bytes, before: bytes = b"") -> bytes:
    """A black-and-white PNG of this size, whatever its rows are. before: chunks before them."""
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def padded(length: int) -> bytes:
    """A good picture of so many bytes."""
    return drawn(8, 8, SMALL, chunk(b"paDd", bytes(length - len(drawn(8, 8, SMALL, chunk(b"paDd", b""))))))


@functools.cache
def blown_up() -> bytes:
    """200 MB of zeros in 0.2 MB."""
    packer, rows = zlib.compressobj(9), bytes(5001 * 400)
    return b"".join(packer.compress(rows) for _ in range(100)) + packer.flush()


def frames() -> bytes:
    file, images = io.BytesIO(), [Image.new("L", (8, 8), number) for number in range(256)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n"


ABUSES: list[tuple[str, bytes, int]] = [
    ("40,000 × 40,000 pixels", drawn(40_000, 40_000, blown_up()), 422),
    ("dimensions beyond all memory", drawn(2**31 - 1, 2**31 - 1, zlib.compress(b"\0")), 422),
    ("a truncated photo", PICTURE[: len(PICTURE) // 2], 422),
    ("a page that ends as a picture", b"<html><script>alert(1)</script>" + PICTURE, 422),
    (
        "a drawing with a script",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>x()</script></svg>',
        422,
    ),
    ("a text of 200 MB", drawn(8, 8, SMALL, chunk(b"zTXt", b"a\0\0" + blown_up())), 422),
    ("nothing", b"", 422),
    ("one byte too many", padded(LIMIT + 1), 413),
]


@pytest.mark.parametrize(("what", "data", "status"), ABUSES, ids=[what for what, _, _ in ABUSES])
def test_an_upload_that_abuses_is_not_kept(target: Target, what: str, data: bytes, status: int) -> None:
    kept = sorted((target.home / "uploads").iterdir())
    found, body = target.ask("POST", "/v1/uploads", "Content-Type: image/png", body=data)
    assert found == status and json.loads(body)["detail"]
    assert sorted((target.home / "uploads").iterdir()) == kept


def test_a_body_of_unknown_length_is_counted(target: Target) -> None:
    body = chunked(bytes(6 * LIMIT + 1))
    assert target.ask("POST", "/v1/uploads", "Transfer-Encoding: chunked", body=body)[0] == 413


def test_a_form_of_many_parts_is_refused(target: Target) -> None:
    parts = [(f'name="file"; filename="{number}.png"', PICTURE) for number in range(30)]
    assert target.form("/v1/uploads", *parts)[0] == 400


def test_there_are_10_abuses_and_what_is_just_allowed_is_kept(target: Target) -> None:
    """An archive behind a picture is kept: uploads are never served, so nobody opens it as one. Of many
    frames the first is the picture, as for the commands.
    """
    assert len(ABUSES) + 2 == 10
    for data in (padded(LIMIT), PICTURE + b"PK\x03\x04 an archive", frames()):
        status, body = target.ask("POST", "/v1/uploads", "Content-Type: text/html", body=data)
        assert status == 201, body
