"""Devices and pipes in place of files: every option that names a file to read says so at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from triptych.cli import main


@pytest.mark.parametrize("thing", ["/dev/zero", "fifo"])
@pytest.mark.parametrize(
    "option", ["--front", "--back", "--person", "--polygon", "--caption", "--batch", "--config"]
)
def test_tryon_refuses_what_is_no_file(
    option: str,
    thing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Image.new("RGB", (60, 80)).save("me.png")
    Path("p.json").write_text('{"polygons": [[[9, 9], [40, 9], [40, 60]]]}')
    given = {
        "--front": "me.png",
        "--person": "me.png",
        "--polygon": "p.json",
        "--model": "pocket",
        option: thing,
    }
    given |= {} if option == "--caption" else {"--vlm-model": "pocket"}
    out = "made" if option == "--batch" else "new.png"
    assert main(["tryon", "--out", out, *(word for pair in given.items() for word in pair)]) == 1
    assert "not a regular file" in capsys.readouterr().err
