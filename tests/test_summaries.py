"""Summaries for people and as JSON, and the commands that they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych.cli import main
from triptych.terminal.same_options import same_options
from triptych.terminal.summary import next_line, text_of
from triptych.terminal.words import strict
from triptych.wording import commands
from triptych.wording.amounts import duration, number


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "item1").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "item1" / "a.png")
    return tmp_path


def init_words(shop: Path, *more: str) -> list[str]:
    return ["init", "--photos", str(shop / "photos"), "--out", str(shop / "t.yaml"), *more]


def test_a_summary_has_no_python_in_it() -> None:
    summary = {
        "photos": 12,
        "rejected": 7,
        "reasons": {"blank": 2, "too small": 5},
        "items_without_human": [],
        "stale": [],
        "loss": 0.16617500000000002,
        "validation_loss": None,
        "seconds": {"clean": 21.04, "total": 15990.0},
        "images": [f"{n}.png" for n in range(9)],
        "identical": True,
        "panels": [576, 768],
        "failed_before": 0,
        "next": "Look.",
        "train": {
            "train_steps": 3000,
            "lora": "w/lora.safetensors",
            "bytes": 37 << 20,
            "triptychs": 4,
            "gone": [],
        },
    }
    assert text_of(summary).splitlines() == [
        "rejected   7",
        "reasons    5 too small, 2 blank",
        "photos     12",
        "loss       0.1662",
        "seconds    clean 21 s, total 4 h 26 min",
        "images     9: 0.png, 1.png, 2.png, 3.png, …",
        "identical  yes",
        "panels     576 × 768",
        "train",
        "  train steps  3,000",
        "  lora         w/lora.safetensors",
        "  bytes        37.0 MiB",
        "  triptychs    4",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (9.6, "9.6 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (0.0018, "1.8 ms"),
        (4.9e-05, "49 µs"),
        (0, "0 s"),
        (383760 / 24, "4 h 26 min"),
        (3600, "1 h"),
        (266400, "3 d 2 h"),
    ],
)
def test_durations_are_for_people(value: float, words: str) -> None:
    assert duration(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(1300.0, "1,300"), (1.3e3 + 0.4, "1,300"), (0.5, "0.5"), (4.9e-05, "4.90e-05")]
)
def test_numbers_are_for_people(value: float, words: str) -> None:
    assert number(value) == words


def test_the_command_that_follows_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(init_words(shop)) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].endswith(f", then: triptych run --config {shop / 't.yaml'}")
    )


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        (
            ["my a.yaml"],
            {},
            "triptych generate --config 'my a.yaml' --model MODEL --lora 'w w/l' --front FRONT.jpg",
        ),
        (
            [],
            {"work": ".", "model": "pocket", "rank": 4},
            "triptych generate --work . --model pocket --lora 'w w/l' --front FRONT.jpg",
        ),
    ],
)
def test_a_printed_command_can_be_typed(files: list[str], given: dict[str, Any], said: str) -> None:
    with commands.speaking() as speak:
        speak(same_options([Path(file) for file in files], {}, given))
        assert next_line("run", {"train": {"lora": "w w/l"}}).startswith(f"next: {said}")
        retry = commands.typed(
            "lies there: `triptych caption --retry-failed` brings it back; `triptych train --help`"
        )
        assert commands.typed(retry) == retry  # completed once
        start = "--config 'my a.yaml' --model MODEL" if files else "--work . --model pocket"
        assert (
            f"`triptych caption {start} --vlm-model VLM_MODEL --retry-failed`" in retry
            and "`triptych train --help`" in retry
        )


def test_a_config_that_lies_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    (tmp_path / "w/triptych.yaml").write_text("model: pocket")
    assert main(["concat", "--work", "w"]) == 1
    assert "w/triptych.yaml lies here: add --config w/triptych.yaml" in capsys.readouterr().err
    assert main(["concat"]) == 1
    assert "lies here" not in capsys.readouterr().err


def test_a_nested_nothing_is_a_zero() -> None:
    cache = {"reused": 0, "read": 2, "held": 0, "held_gib": 0.0}
    assert text_of({"context_cache": cache}) == "context cache  reused 0, read 2, held 0 (0.0 GiB)"
    assert (
        text_of({"seconds": {"clean": 0.0, "train_all": 90.0}}) == "seconds  clean 0 s, train all 1 min 30 s"
    )
    assert text_of({"peak_memory_gib": 3.25}) == "peak memory  3.2 GiB"


def test_json_is_strict() -> None:
    value = strict({"a": float("inf"), "b": [float("nan"), 1.5], "c": Path("x"), 1: (True, None)})
    assert json.dumps(value, allow_nan=False) == '{"a": null, "b": [null, 1.5], "c": "x", "1": [true, null]}'
