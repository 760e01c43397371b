"""Nothing that a library says reaches the user of a command, at a terminal or in a log file."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from triptych.evaluation.rendered import held_out_items
from triptych.pocket.raw_catalogue import write_raw_catalogue

TRIPTYCH = [sys.executable, "-m", "triptych"]
OURS = re.compile(
    r"(warning|error|hint): [^`]|Listening at http|\w+( \d+)?, |"
    r"\w+: (\d+ to do|begun|\d+/\d+ in |\d+ in )|\w+ \d+(/\d+)?( [\w./-]+ rejected: |, )|stopped; what was"
)
"""How a line of ours begins: progress, what was rejected, warnings, and the words at the end."""
THEIRS = (
    "torchvision",
    "kernels",
    "torchao",
    "it/s]",
    "Loading weights",
    "Warning",
    "Traceback",
    "longer than",
)
OPTIONS = ["--model", "pocket", "--num-inference-steps", "1", "--device", "cpu"]


def environment() -> dict[str, str]:
    """Without what a developer or pytest has set, and with every warning on."""
    set_here = ("HF_HUB_", "TRANSFORMERS_", "DIFFUSERS_", "TRIPTYCH_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(set_here)}
    return own | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "always", "COLUMNS": "100"}


def theirs(said: str) -> list[str]:
    """The lines that are not ours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    return [line for line in plain.splitlines() if line.strip() and not OURS.match(line)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_raw_catalogue(folder, items=2, seed=0)
    item = held_out_items(1, seed=9)[0]
    item.front.save(folder / "front.png")
    item.view(2, item.other()).image.save(folder / "person.png")
    return folder


def words(shop: Path, verb: str) -> list[str]:
    """The command line of a verb: a folder with broken photos, a prompt that is cut, a quantised model."""
    prompt = "<IMAGE 1> a dress " + "very " * 600
    files = {name: str(shop / name) for name in ("photos", "labels/human", "labels/garment", "front.png")}
    masked = ["--person", str(shop / "person.png"), "--mask", "auto:dress", "--quantize", "int8"]
    dressed = ["--front", files["front.png"], "--prompt", prompt, *OPTIONS]
    examples = ["--human", files["labels/human"], "--garment", files["labels/garment"]]
    given = {
        "clean": ["--photos", files["photos"], *examples],
        "generate": dressed,
        "tryon": [*dressed, *masked],
    }
    return [verb, *given[verb], "--work", str(shop / "work")]


@pytest.mark.parametrize("verb", ["clean", "generate", "tryon"])
def test_a_log_holds_only_our_lines(shop: Path, verb: str) -> None:
    done = subprocess.run([*TRIPTYCH, *words(shop, verb)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert theirs(done.stderr) == []
    assert not [word for word in THEIRS if word in done.stdout + done.stderr]


def test_a_terminal_shows_one_bar(shop: Path) -> None:
    """What is on the screen when the command has ended, line by line."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [*TRIPTYCH, *words(shop, "generate")], stdout=subprocess.DEVNULL, stderr=other, env=environment()
    )
    os.close(other)
    said = b""
    while process.poll() is None or select.select([main], [], [], 0)[0]:
        if select.select([main], [], [], 0.2)[0]:
            try:
                said += os.read(main, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(main)
    assert process.wait() == 0
    text = said.decode()
    assert not [word for word in THEIRS if word in text]
    rows = {row.split("\r")[-1].strip() for row in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n")}
    bars = {re.sub(r"[^A-Za-z:]", "", row)[:8] for row in rows if row}
    assert bars <= {"generate", "warning:"}, rows


def test_a_server_is_quiet_about_what_is_no_http(shop: Path) -> None:
    line = [*TRIPTYCH, "serve", "--model", "pocket", "--port", "0", "--work", str(shop / "served")]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stderr
    first = process.stderr.readline()
    while not first.startswith("Listening"):
        assert process.poll() is None and OURS.match(first), first
        first = process.stderr.readline()
    port = int(re.search(r":(\d+)$", first.strip())[1])  # type: ignore[index]
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 400")
    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").read()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert theirs(err) == [] and not [word for word in THEIRS if word in out + err]
