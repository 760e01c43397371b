"""`serve --engine ray`: replicas on Ray Serve make what the server alone makes. Run by `make test-ray`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from triptych.errors import ConfigError, ModelError
from triptych.server.config import ServeConfig
from triptych.server.verb import serve

from .test_serve import Client, options, served
from .test_serve import photos as photos  # a fixture

pytestmark = pytest.mark.ray
LONG = {"num_inference_steps": 100, "num_images_per_prompt": 4}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def client(tiny_flux: Path, work: Path) -> Iterator[Client]:
    """Of a server with two replicas; afterwards nothing of it is left on the cluster."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    with served(serve(config(tiny_flux, work, engine="ray", replicas=2))) as address:
        client = Client(address)
        while len(_replicas()) < 2:
            time.sleep(0.2)
        yield client
    assert not _replicas()
    ray.shutdown()


def config(model: Path, work: Path, **more: Any) -> ServeConfig:
    return ServeConfig(work=work, model=str(model), device="cpu", dtype="fp32", port=0, **more)


def _replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "ray::ServeReplica:triptych" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


def post(client: Client, photos: dict[str, Path], **more: Any) -> str:
    ids = {name: client.upload(path) for name, path in photos.items()}
    status, job = client.json("POST", "/v1/tryon", options(**ids, **more))
    assert status == 202, job
    return str(job["id"])


def both_at_work(client: Client) -> list[str]:
    """The ids of two jobs that are sampled at the same time."""
    for _ in range(1200):
        _, found = client.json("GET", "/v1/jobs?state=running")
        ids = [job["id"] for job in found["jobs"] if (job["progress"] or {}).get("doing") == "step"]
        if len(ids) == 2:
            return ids
        time.sleep(0.05)
    raise AssertionError(found)


def test_what_has_no_cluster_to_run_on_is_refused(tiny_flux: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no effect without --engine ray"):
        serve(config(tiny_flux, tmp_path, replicas=2))
    with pytest.raises(ConfigError, match="cannot be reached through ray://head:10001"):
        serve(config(tiny_flux, tmp_path, engine="ray", address="ray://head:10001")).finish()


def test_a_cluster_where_nobody_listens_is_told(tiny_flux: Path, tmp_path: Path) -> None:
    """Before this process uses a cluster."""
    pytest.importorskip("ray")
    with pytest.raises(ModelError, match=r"127.0.0.1:1 cannot be reached: .*refused"):
        serve(config(tiny_flux, tmp_path, engine="ray", address="127.0.0.1:1")).finish()


def test_the_pictures_of_the_server_alone(
    client: Client, tiny_flux: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    ids = [post(client, photos, seed=seed) for seed in range(4)]
    made = [client("GET", client.ended(id)["results"][0])[2] for id in ids]
    with served(serve(config(tiny_flux, tmp_path))) as address:
        alone = Client(address)
        for seed, picture in enumerate(made):
            job = alone.ended(post(alone, photos, seed=seed))
            assert alone("GET", job["results"][0])[2] == picture
    bad = post(client, photos, mask=None, polygons=[[[5000, 5000], [6000, 5000], [6000, 6000]]])
    error = client.ended(bad)["error"]
    assert "photo" in error["message"] and error["hint"] and str(tmp_path.parent) not in str(error)


def test_one_is_cancelled_and_the_replica_goes_on(client: Client, photos: dict[str, Path]) -> None:
    for seed in range(2):
        post(client, photos, seed=seed, **LONG)
    first, second = both_at_work(client)
    client.json("DELETE", f"/v1/jobs/{first}")
    assert client.ended(first)["state"] == "cancelled"
    assert client.ended(post(client, photos, seed=3))["state"] == "done"
    assert client.json("GET", f"/v1/jobs/{second}")[1]["state"] == "running", "it was made by the other one"
    client.json("DELETE", f"/v1/jobs/{second}")


def test_a_replica_that_is_killed_loses_no_job(client: Client, photos: dict[str, Path], work: Path) -> None:
    for seed in range(2):
        post(client, photos, seed=seed, **LONG)
    jobs, (victim, other) = both_at_work(client), _replicas()
    victim.kill()
    assert [client.ended(id)["state"] for id in jobs] == ["done"] * 2
    with sqlite3.connect(work / "serve/jobs.sqlite") as table:
        tries = [table.execute("SELECT tries FROM jobs WHERE id = ?", [id]).fetchone()[0] for id in jobs]
    assert sorted(tries) == [1, 2]
    while len(now := _replicas()) < 2:  # Ray Serve starts another one
        time.sleep(0.2)
    assert other in now and victim not in now
    assert client.json("GET", "/healthz")[0] == 200
