"""Copies to and from object stores: whole, once, resumed, and never outside the folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from triptych.errors import ConfigError, InputError, TriptychError
from triptych.verbs import sync as module
from triptych.verbs.sync import SyncConfig, sync

FILES = {"item1/front.jpg": b"f" * 3000, "item1/worn 1.jpg": b"w" * 10, "item2/ä.jpg": b"", "top.txt": b"t"}


@pytest.fixture
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def fill(system: Any, folder: str) -> None:
    for name, data in FILES.items():
        with system.open(f"{folder}/{name}", "wb") as file:
            file.write(data)


def run(work: Path, source: object, target: object, **changes: Any) -> dict[str, Any]:
    return sync(SyncConfig(work=work, source=str(source), target=str(target), **changes)).finish()


def held(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_store_is_copied_here_once_and_what_changed_again(tmp_path: Path, store: Any) -> None:
    fill(store, "/shop")
    first = run(tmp_path, "memory://shop", tmp_path / "photos")
    assert (first["copied"], first["kept"], first["bytes"]) == (4, 0, sum(map(len, FILES.values())))
    assert held(tmp_path / "photos") == FILES
    assert (again := run(tmp_path, "memory://shop", tmp_path / "photos"))["kept"] == 4 and not again["copied"]
    time.sleep(0.01)
    with store.open("/shop/top.txt", "wb") as file:
        file.write(b"T")
    (tmp_path / "photos/item1/front.jpg").unlink()
    third = run(tmp_path, "memory://shop", tmp_path / "photos")
    assert (third["copied"], third["kept"]) == (2, 2), "same size, other content; a lost file"
    assert held(tmp_path / "photos") == FILES | {"top.txt": b"T"}


def test_results_are_copied_into_a_store(tmp_path: Path, store: Any) -> None:
    for name, data in FILES.items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(data)
    (tmp_path / "made" / "link.jpg").symlink_to("/etc/hostname")
    made = run(tmp_path, tmp_path / "made", "memory://shop/results")
    assert (made["copied"], made["refused"]) == (4, 1)
    assert {name: store.cat(f"/shop/results/{name}") for name in FILES} == FILES
    assert run(tmp_path, tmp_path / "made", "memory://shop/results")["kept"] == 4
    assert run(tmp_path, "memory://shop/results", "memory://other")["copied"] == 4


@pytest.mark.parametrize("name", ["../out.jpg", "a/../../out.jpg", "a\\..\\out.jpg", "a/b\n.jpg", "x" * 300])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path, store: Any) -> None:
    stores = module.Stores("memory://shop", str(tmp_path / "photos"))
    listing = {f"{stores.from_folder}/{name}": {"size": 1}, f"{stores.from_folder}/good.jpg": {"size": 1}}
    stores.from_ = type("Listed", (), {"find": lambda self, folder, detail: listing})()
    files, refused = stores.files()
    assert [file.name for file in files] == ["good.jpg"]
    assert [reason for _, reason in refused] == ["not a file name"]


def test_a_copy_that_is_ended_goes_on(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "/shop")
    whole, opened = store.open, []

    def breaks(path: str, mode: str) -> Any:
        opened.append(path)
        if len(opened) == 3:
            raise OSError("the line is dead")
        return whole(path, mode)

    monkeypatch.setattr(store, "open", breaks)
    with pytest.raises(InputError, match="the line is dead"):
        run(tmp_path, "memory://shop", tmp_path / "photos", concurrency=1)
    assert len(held(tmp_path / "photos")) == 2
    rest = run(tmp_path, "memory://shop", tmp_path / "photos")
    assert (rest["kept"], rest["copied"]) == (2, 2) and held(tmp_path / "photos") == FILES


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("", "x", "Two folders are needed"),
        ("x", "x/", "one folder"),
        ("memory://nothing", "x", "There (is no|are no files in) memory"),
        ("nothing", "x", "There (is no|are no files in) nothing"),
        ("ftpx://a", "x", "no address"),
    ],
)
def test_mistakes_are_told(source: str, target: str, said: str, tmp_path: Path, store: Any) -> None:
    with pytest.raises((ConfigError, InputError), match=said) as caught:
        run(tmp_path, source, target)
    assert caught.value.hint


@pytest.mark.s3
def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that speaks S3, on this machine."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "5599"], stderr=subprocess.DEVNULL)
    try:
        address = "http://127.0.0.1:5599"
        for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = s3fs.S3FileSystem()
        for _ in range(100):
            try:
                system.mkdir("shop")
                break
            except Exception:
                time.sleep(0.3)
        fill(system, "shop/photos")
        assert run(tmp_path, "s3://shop/photos", tmp_path / "photos")["copied"] == 4
        assert held(tmp_path / "photos") == FILES
        assert run(tmp_path, "s3://shop/photos", tmp_path / "photos")["kept"] == 4
        assert run(tmp_path, tmp_path / "photos", "s3://shop/results")["copied"] == 4
        s3fs.S3FileSystem.clear_instance_cache()
        assert s3fs.S3FileSystem().cat("shop/results/item1/front.jpg") == FILES["item1/front.jpg"]
        with pytest.raises(TriptychError, match="no-such-bucket"):
            run(tmp_path, "s3://no-such-bucket/x", tmp_path / "y")
    finally:
        server.kill()
        os.waitpid(server.pid, 0)
