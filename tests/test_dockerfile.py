"""The Dockerfile: linted where hadolint is; its words are such as triptych takes. It is built elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.server.config import ServeConfig
from triptych.wording.settings import option

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
LINTER = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(LINTER is None, reason="no hadolint for this machine")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(LINTER), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_serves_without_rights_from_a_pinned_image() -> None:
    images = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)
    assert images and all(
        re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", each) for each in images
    )
    (user,) = re.findall(r"^USER (\d+)", TEXT, re.MULTILINE)
    assert int(user) > 0
    assert "/healthz" in TEXT[TEXT.index("HEALTHCHECK") :]
    entry, more = (
        json.loads(re.findall(rf"^{name} (\[.*\])", TEXT, re.MULTILINE)[0]) for name in ("ENTRYPOINT", "CMD")
    )
    assert entry[:2] == ["triptych", "serve"]
    options = {option(name) for name in ServeConfig.model_fields}
    assert {word for word in [*entry, *more] if word.startswith("--")} <= options


def test_what_it_copies_is_let_through() -> None:
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", TEXT, re.MULTILINE)
    assert {name for line in copied for name in line.split()} == let
    assert all((ROOT / name).exists() for name in let)
