"""`serve`: the same pictures over HTTP as from the command line, in a queue that outlives the process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych.errors import ConfigError, InputError, WorkError
from triptych.evaluation.rendered import held_out_items
from triptych.events import Run
from triptych.server.config import ServeConfig
from triptych.server.jobs import TRIES, JobStore, KeyReused
from triptych.server.requests import checked
from triptych.server.verb import serve
from triptych.store.folder import StageFolder
from triptych.verbs.tryon import TryonConfig, tryon

PROMPT = "one dress <IMAGE 1> its front <IMAGE 2> its back <IMAGE 3> somebody in the dress"


class Client:
    """The standard library's HTTP, as a shop's program would use it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.address + path, body, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def json(self, method: str, path: str, data: Any = None, **headers: str) -> tuple[int, Any]:
        body = None if data is None else json.dumps(data).encode()
        kind = {} if data is None else {"content_type": "application/json"}
        status, _, answer = self(method, path, body, **kind, **headers)
        return status, json.loads(answer)

    def upload(self, picture: Path) -> str:
        status, _, answer = self("POST", "/v1/uploads", picture.read_bytes(), content_type="image/png")
        assert status == 201, answer
        return str(json.loads(answer)["upload"])

    def ended(self, id: str) -> dict[str, Any]:
        for _ in range(600):
            _, job = self.json("GET", f"/v1/jobs/{id}")
            if job["state"] in ("done", "failed", "cancelled"):
                return dict(job)
            time.sleep(0.1)
        raise AssertionError(job)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    item, folder = held_out_items(1, seed=9)[0], tmp_path_factory.mktemp("photos")
    pictures = {"front": item.front, "back": item.back, "person": item.view(2, item.other()).image}
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pictures}


@contextmanager
def served(run: Run) -> Iterator[str]:
    """The address of a server that works meanwhile."""
    address = next(iter(run)).result
    yield address
    run.close()


@pytest.fixture
def client(tiny_flux: Path, tmp_path: Path) -> Iterator[Client]:
    options = {"device": "cpu", "dtype": "fp32", "port": 0}
    with served(serve(ServeConfig(work=tmp_path, model=str(tiny_flux), **options))) as address:
        yield Client(address)


def options(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "num_inference_steps": 2, "mask": "auto:dress", **changes}


def test_the_picture_of_the_command_line(
    client: Client, tiny_flux: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    """Hash for hash: the file that the API serves is the one that `tryon` writes."""
    ids = {name: client.upload(path) for name, path in photos.items()}
    assert ids["front"] == hashlib.sha256(photos["front"].read_bytes()).hexdigest()
    status, job = client.json("POST", "/v1/tryon", options(**ids, seed=4, num_images_per_prompt=2))
    assert (status, job["kind"], job["results"]) == (202, "tryon", [])
    done = client.ended(job["id"])
    assert done["state"] == "done" and len(done["results"]) == 2, done
    own = {"model": str(tiny_flux), "device": "cpu", "dtype": "fp32", "seed": 4, "num_images_per_prompt": 2}
    config = TryonConfig(**own, **photos, **options(mask=Path("auto:dress")), out=tmp_path / "new.png")
    images = tryon(config).finish()["images"]
    for path, result in zip(images, done["results"], strict=True):
        status, headers, data = client("GET", result)
        assert (status, headers["content-type"]) == (200, "image/png")
        assert hashlib.sha256(data).digest() == hashlib.sha256(Path(path).read_bytes()).digest()


def test_the_documented_client(
    client: Client, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs/serve.md").read_text()
    code = page.rsplit("```python\n", 1)[1].split("```")[0].replace("http://127.0.0.1:7860", client.address)
    monkeypatch.chdir(photos["front"].parent)
    exec(compile(code, "docs/serve.md", "exec"), {})
    made = Path("new.png")
    assert json.loads(Image.open(made).text["triptych"])["seed"] == 4  # type: ignore[attr-defined]
    made.unlink()
    assert len(code.splitlines()) <= 42


def test_a_form_with_everything_and_the_same_job_for_the_same_key(
    client: Client, photos: dict[str, Path]
) -> None:
    edge, parts = "edge", []
    for name, path in photos.items():
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="../../{name}"\r\n\r\n'
        parts.append(head.encode() + path.read_bytes() + b"\r\n")
    settings = options(mask=None, polygons=[[[10, 20], [40, 20], [40, 60], [10, 60]]])
    head = f'--{edge}\r\nContent-Disposition: form-data; name="settings"\r\n\r\n{json.dumps(settings)}\r\n'
    body = head.encode() + b"".join(parts) + f"--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    answers = [
        client("POST", "/v1/tryon", body, content_type=kind, idempotency_key="order 7") for _ in range(2)
    ]
    jobs = [json.loads(answer[2]) for answer in answers]
    assert [answer[0] for answer in answers] == [202, 202] and jobs[0]["id"] == jobs[1]["id"]
    assert answers[1][1]["idempotent-replayed"] == "true"
    assert answers[0][1]["location"] == f"/v1/jobs/{jobs[0]['id']}"
    assert client.ended(jobs[0]["id"])["state"] == "done"
    status, other = client.json("POST", "/v1/tryon", {"person": "0" * 64}, idempotency_key="order 7")
    assert status in (409, 422) and "hint" in other
    assert client.json("GET", "/v1/jobs")[1]["counts"]["done"] == 1


def test_events_tell_the_progress_until_the_end(client: Client, photos: dict[str, Path]) -> None:
    ids = {name: client.upload(path) for name, path in photos.items() if name != "back"}
    _, job = client.json("POST", "/v1/tryon", options(**ids, num_inference_steps=12))
    status, headers, data = client("GET", f"/v1/jobs/{job['id']}/events")
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [json.loads(part.split("data: ", 1)[1]) for part in data.decode().split("\n\n") if part]
    assert data.decode().count("event: end") == 1 and events[-1]["state"] == "done"
    assert any(event["progress"] for event in events) and "settings" not in events[0]


def test_mistakes_are_problems_with_a_hint_and_without_paths(
    client: Client, photos: dict[str, Path], tmp_path: Path
) -> None:
    ids = {name: client.upload(path) for name, path in photos.items()}
    for data, words in (
        (options(**ids, device="cpu"), "device"),
        (options(**ids, model="x"), "model"),
        (options(**ids, out="/tmp/x.png"), "out"),
        (options(**ids | {"person": "../../etc/passwd"}), "person"),
        (options(**ids | {"person": "0" * 64}), "There is no upload"),
        (options(**ids, mask="/etc/passwd"), "There is no upload"),
        (options(**ids, num_inference_steps=1000), "at most 100"),
        (options(**ids, strength=0), "strength"),
        (options(**ids, strength="NaN"), "strength"),
        (options(**ids, mask="auto:hat"), "no kind of garment 'hat'"),
        (options(**ids, mask=None), "The option polygons is missing"),
        (options(**ids, prompt=" "), "There is no prompt"),
        (options(**ids, mask=None, polygons=[[[0, 0], [1, 0]]]), "The polygon"),
        ([], "no JSON object"),
    ):
        status, problem = client.json("POST", "/v1/tryon", data)
        assert status == 422 and words in problem["detail"], problem
        assert problem["status"] == 422 and problem["type"] == "about:blank"
    outside = [[[5000, 5000], [6000, 5000], [6000, 6000]]]
    _, job = client.json("POST", "/v1/tryon", options(**ids, mask=None, polygons=outside))
    failed = client.ended(job["id"])
    assert failed["state"] == "failed" and "photo" in failed["error"]["message"], "found with the photo alone"
    assert str(tmp_path) not in json.dumps(client.json("GET", "/v1/jobs")[1])
    for path in ("/v1/jobs/x", f"/v1/jobs/{'0' * 32}", "/v1/jobs/../../etc/passwd", "/nothing"):
        status, problem = client.json("GET", path)
        assert status in (404, 422) and problem["title"]
    status, problem = client.json("GET", f"/v1/jobs/{job['id']}/results/0")
    assert status == 404 and "failed" in problem["hint"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
    ],
)
def test_what_is_no_picture_is_not_kept(client: Client, tmp_path: Path, data: bytes) -> None:
    status, _, answer = client("POST", "/v1/uploads", data, content_type="image/png")
    assert status == 422 and json.loads(answer)["hint"]
    assert list((tmp_path / "serve/uploads").iterdir()) == []


def test_a_body_that_is_too_large_is_refused_early(client: Client) -> None:
    status, _, answer = client("POST", "/v1/uploads", bytes(21 << 20), content_type="image/png")
    assert status == 413 and "at most 20 MB" in json.loads(answer)["detail"]


def test_a_job_that_waits_or_runs_is_cancelled(client: Client, photos: dict[str, Path]) -> None:
    ids = {name: client.upload(path) for name, path in photos.items()}
    jobs = [
        client.json("POST", "/v1/tryon", options(**ids, seed=seed, num_inference_steps=100))[1]
        for seed in range(3)
    ]
    while client.json("GET", f"/v1/jobs/{jobs[0]['id']}")[1]["state"] == "queued":
        time.sleep(0.02)
    for job in jobs:
        assert client.json("DELETE", f"/v1/jobs/{job['id']}")[0] == 200
    assert [client.ended(job["id"])["state"] for job in jobs] == ["cancelled"] * 3
    _, job = client.json("POST", "/v1/tryon", options(**ids))
    assert client.ended(job["id"])["state"] == "done", "the server goes on"


def test_health_and_measures(client: Client) -> None:
    status, health = client.json("GET", "/healthz")
    assert status == 200 and health["status"] == "ok"
    text = client("GET", "/metrics")[2].decode()
    assert 'triptych_jobs{state="queued"} 0.0' in text and "triptych_worker_alive 1.0" in text
    assert client.json("GET", "/v1/model")[1]["panels"] == ["front", "back", "worn"]
    schema = client.json("GET", "/openapi.json")[1]
    assert "strength" in schema["components"]["schemas"]["TryonRequest"]["properties"]
    assert "model" not in schema["components"]["schemas"]["TryonRequest"]["properties"]


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}]
)
def test_pages_of_others_may_not_ask(client: Client, headers: dict[str, str]) -> None:
    status, _, answer = client("GET", "/v1/jobs", **headers)
    assert status == 403 and json.loads(answer)["title"] == "Forbidden"


def test_another_address_needs_a_token(
    tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"work": tmp_path, "model": str(tiny_flux), "device": "cpu", "port": 0}
    with pytest.raises(ConfigError, match="there is no token"):
        serve(ServeConfig(**own, host="0.0.0.0"))
    monkeypatch.setenv("TRIPTYCH_TOKEN", "short")
    with pytest.raises(ConfigError, match="too short"):
        serve(ServeConfig(**own))
    monkeypatch.setenv("TRIPTYCH_TOKEN", token := "a-long-enough-token")
    run = serve(ServeConfig(**own))
    client = Client(next(iter(run)).result)
    try:
        assert client.json("GET", "/healthz")[0] == 200
        for given in (
            {},
            {"authorization": "Bearer x"},
            {"authorization": token},
            {"authorization": "Basic a"},
        ):
            status, headers, _ = client("GET", "/v1/jobs", **given)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert client("GET", "/v1/jobs", authorization=f"Bearer {token}")[0] == 200
    finally:
        run.close()


def test_a_second_server_in_a_work_folder_is_told_of_the_first(tmp_path: Path) -> None:
    with (
        StageFolder(tmp_path / "serve", "serve", {}).open(),
        pytest.raises(WorkError, match="A server is running") as told,
    ):
        serve(ServeConfig(work=tmp_path, model="pocket-klein", device="cpu", port=0))
    assert "another --work" in told.value.hint and "Wait" not in told.value.hint


def test_the_queue_recovers(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    jobs = [store.add("tryon", {"seed": seed})[0] for seed in range(3)]
    assert [job.id for job in store.waiting(10)] == [job.id for job in jobs]
    store.begin([jobs[0].id, jobs[1].id])
    store.end(jobs[0].id, "done", results=["a.png"])
    store.close()
    store = JobStore(tmp_path / "jobs.sqlite")
    assert store.recover() == 1
    assert store.get(jobs[0].id).results == ["a.png"]  # type: ignore[union-attr]
    for _ in range(TRIES - 1):
        store.begin([jobs[1].id])
        store.recover()
    found = store.get(jobs[1].id)
    assert found and found.state == "failed" and "ended 3 times" in found.error["message"]
    with pytest.raises(KeyReused):
        store.add("tryon", {"seed": 1}, "key"), store.add("tryon", {"seed": 2}, "key")
    ended = store.ended_after(0.0)
    assert {job.id for job in ended} == {jobs[0].id, jobs[1].id} and ended[0].ended <= ended[1].ended  # type: ignore[operator]
    assert store.ended_after(ended[0].ended or 0, ended[0].number) == ended[1:]
    assert len(store.forget(time.time() + 1)) == 2 and len(store.newest()) == 2


def test_settings_keep_only_what_differs_from_the_defaults() -> None:
    ids = {"person": "a" * 64, "front": "b" * 64}
    assert checked("tryon", {**ids, "strength": 0.9, "seed": 3}) == {**ids, "seed": 3}
    with pytest.raises(InputError, match=r"garments\.hat"):
        checked("tryon", {**ids, "garments": {"hat": "c" * 64}})


def test_a_kill_loses_no_job_and_repeats_none(
    tiny_flux: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    """kill -9 while a job runs and others wait; the next server makes what is left, once each."""
    words = [sys.executable, "-m", "triptych", "serve", "--work", str(tmp_path), "--model", str(tiny_flux)]
    words += ["--device", "cpu", "--dtype", "fp32", "--port"]
    random.seed(os.getpid())
    port = str(random.randrange(20_000, 60_000))

    def start() -> tuple[subprocess.Popen[bytes], Client]:
        process = subprocess.Popen([*words, port], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        client = Client(f"http://127.0.0.1:{port}")
        for _ in range(600):
            try:
                client.json("GET", "/healthz")
                return process, client
            except OSError:
                assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
                time.sleep(0.1)
        raise AssertionError("it does not listen")

    process, client = start()
    ids = {name: client.upload(path) for name, path in photos.items()}
    steps = [2, 60, 2, 2]
    jobs = [
        client.json("POST", "/v1/tryon", options(**ids, seed=seed, num_inference_steps=count))[1]["id"]
        for seed, count in enumerate(steps)
    ]
    client.ended(jobs[0])
    before = client("GET", f"/v1/jobs/{jobs[0]}/results/0")[2]
    while client.json("GET", f"/v1/jobs/{jobs[1]}")[1]["state"] != "running":
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = next((tmp_path / "serve/results" / jobs[0]).glob("picture.png")).stat().st_mtime_ns
    process, client = start()
    try:
        assert [client.ended(job)["state"] for job in jobs] == ["done"] * 4
        assert client("GET", f"/v1/jobs/{jobs[0]}/results/0")[2] == before
        assert next((tmp_path / "serve/results" / jobs[0]).glob("picture.png")).stat().st_mtime_ns == made
        for job in jobs:
            data = client("GET", f"/v1/jobs/{job}/results/0")[2]
            Image.open(io.BytesIO(data)).load()
    finally:
        process.terminate()
        process.wait(20)
