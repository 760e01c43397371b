"""`doctor`: what is wrong with a machine, each with its remedy."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from triptych.cli import main
from triptych.verbs import doctor as checks
from triptych.verbs.doctor import DoctorConfig, doctor


def test_a_machine_that_works_has_nothing_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert main(["doctor", "--work", str(tmp_path / "a/b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert time.monotonic() - begun < 10 and found["failed"] == 0
    names = {one["name"] for one in found["findings"]}
    assert {"Python", "PyTorch", "packages", "RAM", "disk", "work folder", "locks", "hub"} <= names
    assert all(one["fix"] for one in found["findings"] if one["state"] != "ok")
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert main(["doctor", "--work", str(tmp_path)]) == 1
    out = capsys.readouterr()
    text = out.out + out.err
    assert f"fail  work folder: {tmp_path}: Read-only file system" in text
    assert "Choose another one with --work" in text


def test_a_package_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = checks.importlib.metadata.version
    monkeypatch.setattr(
        checks.importlib.metadata, "version", lambda name: "0.1" if name == "diffusers" else real(name)
    )
    summary = doctor(DoctorConfig(work=tmp_path)).finish()
    (found,) = [one for one in summary["findings"] if one["name"] == "packages"]
    assert found["state"] == "fail" and "diffusers 0.1 is not" in found["detail"]


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: 1 / 0)
    summary = doctor(DoctorConfig(work=tmp_path)).finish()
    assert summary["failed"] == 1


def test_model_and_server_are_looked_for_when_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        summary = doctor(DoctorConfig(work=tmp_path, model="pocket", base_url=here)).finish()
        assert [one["state"] for one in summary["findings"][-2:]] == ["ok", "ok"]
    away = DoctorConfig(work=tmp_path, model=str(tmp_path / "no"), base_url="http://127.0.0.1:1/v1")
    summary = doctor(away).finish()
    assert [one["state"] for one in summary["findings"][-2:]] == ["fail", "fail"]
