"""What a person sees of a command: sentences for every mistake, signs of life, and a summary without Python
in it.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from triptych import cli, progress
from triptych.cli import main
from triptych.errors import InputError, WorkError
from triptych.events import Event, Run
from triptych.progress import Moment
from triptych.terminal import faults, hub, quiet, screen
from triptych.terminal.same_options import same_options
from triptych.terminal.screen import Row, Screen
from triptych.terminal.summary import next_line, text_of
from triptych.terminal.words import plain, strict
from triptych.verbs import init as init_stage
from triptych.verbs.outcome import check_made
from triptych.wording import commands
from triptych.wording.amounts import duration, number

TRIPTYCH = [sys.executable, "-m", "triptych"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "item1").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "item1" / "a.png")
    return tmp_path


def init_words(shop: Path, *more: str) -> list[str]:
    return ["init", "--photos", str(shop / "photos"), "--out", str(shop / "t.yaml"), *more]


@pytest.mark.parametrize(
    ("words", "sentence", "hint"),
    [
        (
            "train --batch-size many",
            "--batch-size is many; it takes a whole number of at least 1.",
            "train --help",
        ),
        ("train --batch-size 0", "--batch-size is 0; it takes a whole number of at least 1.", "train --help"),
        (
            "train --batch-size",
            "--batch-size needs a value; it takes a whole number of at least 1.",
            "train --help",
        ),
        (
            "tryon --strength 1.5",
            "--strength is 1.5; it takes a number above 0 and at most 1.",
            "tryon --help",
        ),
        (
            "tryon --strength nan",
            "--strength is nan; it takes a number above 0 and at most 1.",
            "tryon --help",
        ),
        ("train --context foo", "--context is foo; it takes noisy or clean.", "train --help"),
        ("caption --do-check=perhaps", "--do-check is perhaps; it takes true or false.", "caption --help"),
        (
            "generate --seed 18446744073709551616",
            "it takes a whole number from 0 to 18446744073709551615.",
            "generate --help",
        ),
        ("train --rank=4 --rank=8", "--rank is given more than once.", "Keep one"),
        ("train --lr 3", "`triptych train` has no option --lr.", "--learning-rate?"),
        ("train --steps 3", "has no option --steps.", "--max-train-steps?"),
        ("generate --steps=3", "has no option --steps.", "--num-inference-steps?"),
        ("generate --cfg 3", "has no option --cfg.", "--true-cfg-scale?"),
        ("generate --size 3", "has no option --size.", "--panel-width?"),
        ("tryon --mask x.png", "has no option --mask.", "--polygon?"),
        ("train --resume", "has no option --resume.", "same command again"),
        ("train --strange 3", "has no option --strange.", "train --help"),
        (
            "tryon k.safetensors",
            "'k.safetensors' stands there without an option before it.",
            "--lora k.safetensors?",
        ),
        ("help trian", "There is no verb 'trian'.", "triptych train"),
        ("nonsense", "There is no verb 'nonsense'.", "init, clean"),
        ("lora expect", "There is no verb 'lora expect'.", "lora inspect"),
    ],
)
def test_wrong_usage_is_one_sentence_and_a_hint(
    words: str, sentence: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    error, hinted = err.splitlines()
    assert out == ""
    assert error.startswith("error: ") and error.endswith(sentence)
    assert hinted.startswith("hint: ") and hint in hinted
    assert "pydantic" not in err


def test_help_is_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "init"]) == 0
    assert "--photos" in capsys.readouterr().out


def test_config_files_keep_their_order_in_every_spelling() -> None:
    words = ["run", "--config=a", "-c", "b", "--work", "w", "--config", "c", "-cd", "-c=e"]
    assert list(map(str, cli.config_files(words))) == ["a", "b", "c", "d", "e"]


# --- What ends a command
# ------------------------------------------------------------------------------------------------


def test_a_fault_is_a_sentence_and_its_details_are_in_a_file(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a\x1b[31mb")

    monkeypatch.setattr(init_stage, "write_text", broken)
    monkeypatch.setattr(faults.tempfile, "gettempdir", lambda: str(shop))
    assert main(init_words(shop)) == 1
    error, hint = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "hint"))
    ]
    assert re.fullmatch(r"error: This is a fault in triptych: KeyError: .*\. Please report it\.", error)
    assert "\x1b" not in error
    (file,) = shop.glob("triptych-fault-*.txt")
    assert str(file) in hint
    assert "Traceback" in file.read_text() and "triptych init --photos" in file.read_text()
    assert main(init_words(shop, "--verbose")) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "w/x"), "w/x: the disk is full.", "room"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full.", "room"),
        (OSError(errno.EACCES, "Permission denied", "w"), "w: it may not be read or written.", "rights"),
        (OSError(errno.EROFS, "Read-only file system", "w"), "w: the disk can only be read.", "--work"),
        (OSError(errno.ENOENT, "No such file", "w"), "w: there is no such file or folder.", "path"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "w"), "w: its name is too long.", "shorter"),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"),
            "a → b: Invalid cross-device link.",
            "disk",
        ),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "The connection failed: ", "network"),
        (MemoryError(), "The machine has too little memory for this.", "--batch-size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "The device has too little",
            "plan",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "The device has too little", "plan"),
        (InputError("No.", "Try."), "No.", "Try."),
    ],
)
def test_what_the_system_refuses_is_said_with_a_hint_that_fits(
    error: BaseException, sentence: str, hint: str
) -> None:
    said = faults.sentence(error)
    assert said is not None
    assert said[0].startswith(sentence)
    assert hint in said[1]


def test_only_the_unforeseen_is_a_fault() -> None:
    assert faults.sentence(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert faults.sentence(ValueError("x")) is None


@pytest.mark.parametrize(
    ("name", "summary", "sentence"),
    [
        (
            "clean",
            {"photos": 3, "human": 0, "garment": 0, "rejected": 2, "reasons": {"blank": 2}},
            "of 3 photos .*often: blank",
        ),
        ("concat", {"items": 2, "triptychs": 0, "reasons": {"no photo": 2}}, "of 2 items none"),
        ("caption", {"triptychs": 5, "captioned": 0, "kept": 0, "brought": 0}, "of 5 triptychs none"),
        ("embed", {"triptychs": 0, "embedded": 0, "kept": 0, "rejected": 4}, "of 4 triptychs none"),
    ],
)
def test_a_command_that_made_nothing_has_failed(name: str, summary: dict, sentence: str) -> None:
    with pytest.raises(WorkError, match=sentence):
        check_made(name, summary)
    made = {key: value or 1 for key, value in summary.items()}
    check_made(name, made)
    check_made("train", summary)


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (3, 1)])
def test_lines_that_failed_end_with_exit_code_one(
    failed: int, code: int, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(config: object) -> Run:
        run = Run("init", 12, iter([Event(str(n)) for n in range(12)]), {"made": 9})
        run.failed = failed
        return run

    monkeypatch.setattr(init_stage, "init", init)
    assert main(init_words(shop, "--json")) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"made": 9}
    assert ("error: 3 of 12 failed." in err) == bool(failed)


# --- Terminals, pipes and encodings
# -------------------------------------------------------------------------------------


def run_triptych(words: list[str], **options) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [*TRIPTYCH, *words], stderr=subprocess.PIPE, text=True, timeout=120, env=env, **options
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_show_is_replaced(shop: Path, encoding: str) -> None:
    (shop / "photos").rename(shop / "写真 ✂")
    words = ["init", "--photos", str(shop / "写真 ✂"), "--out", str(shop / "t.yaml"), "--json"]
    done = run_triptych(words, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding, "LANG": "C"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 1
    again = run_triptych(words, stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding, "LANG": "C"})
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_a_closed_pipe_and_a_full_log_are_no_traceback(shop: Path) -> None:
    shell = f"{' '.join(TRIPTYCH)} --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    with open("/dev/full", "w") as full:
        assert (
            subprocess.run(
                [*TRIPTYCH, *init_words(shop)], stdout=subprocess.PIPE, stderr=full, timeout=120
            ).returncode
            == 0
        )
        (shop / "t.yaml").unlink()
        done = run_triptych(init_words(shop), stdout=full)
    assert done.returncode == 1
    assert "error: The disk is full." in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\xff"),
        ("[bold]Rot[/] 赤い", "[bold]Rot[/] 赤い"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_names_never_steer_the_terminal(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(text) == shown
    Screen().say(text)
    assert capsys.readouterr().err == shown.encode("utf-8", "replace").decode() + "\n"
    Screen().explain(text, text)
    assert capsys.readouterr().err == f"error: {shown}\nhint: {shown}\n"
    assert text_of({"name": text, text: {text: 2}}) == text_of({"name": shown, shown: {shown: 2}})


# --- Progress
# -----------------------------------------------------------------------------------------------------------


def slow_run(units: int, steps: int, pause: float) -> Run:
    def work() -> Iterator[Event]:
        progress.doing("loading the model")
        time.sleep(pause)
        for unit in range(units):
            for done in range(1, steps + 1):
                time.sleep(pause)
                progress.step("step", done, steps)
            yield Event(f"picture {unit}")

    return Run("generate", units, work(), {})


def follow(shown: Screen, run: Run) -> None:
    with shown.watch(run.name) as watch:
        cli._follow(run, watch)


def test_a_log_file_gets_a_sign_of_life_also_within_a_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen, "INTERVAL", 0.1)
    follow(Screen(), slow_run(units=2, steps=4, pause=0.12))
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("generate 0/2, loading the model") for line in lines)
    assert any(re.match(r"generate 0/2, step [1-4]/4", line) for line in lines)
    assert lines[-1].startswith("generate: 2/2 in ")
    monkeypatch.setattr(screen, "INTERVAL", 30.0)
    follow(Screen(), Run("train", 1000, iter([Event(f"step {n}") for n in range(1000)]), {}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 1000 to do" and lines[1].startswith("train: 1000/1000 in ") and len(lines) == 2


def test_a_bar_moves_within_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Screen()
    shown.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    seen: list[float] = []
    with shown.watch("generate") as watch:
        hear = watch.hear

        def spy(moment: progress.Moment) -> None:
            hear(moment)
            if watch._bars is not None and watch._bars.tasks:
                seen.append(watch._bars.tasks[0].completed)

        with progress.listening(spy):
            cli._follow(slow_run(units=2, steps=4, pause=0.01), watch)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 0.99, 1.25, 1.5, 1.75, 1.99])
    assert "2/2" in shown.console.file.getvalue()  # type: ignore[attr-defined]


def test_counts_of_several_runs_of_one_stage_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Iterator[Event]:
        for one in range(6):
            yield from Run("tryon", 1, iter([Event(str(one))]), {}).nested()

    follow(Screen(), Run("demo", 0, work(), {}))
    assert "tryon: 6/6 in" in capsys.readouterr().err.splitlines()[-1]


def test_what_was_kept_does_not_count_for_the_time_that_is_left() -> None:
    row = Row("train", 100)
    for one in range(50):
        row.finish(Event(str(one), "kept"))
    assert row.left() == ""
    row.began -= 30
    row.hear(Moment("pass", 1, 2, 0.5))
    assert row.left() == ""  # the first units load and warm up
    for one in range(3):
        row.finish(Event(str(one)))
    assert row.left() == "about 7 min 50 s left"


def test_a_picture_within_a_unit_is_no_part_of_it() -> None:
    heard: list[Moment] = []
    with progress.listening(heard.append), progress.within("validation picture"):
        progress.step("step", 7, 8)
    row = Row("train", 20)
    row.hear(heard[0])
    assert (row.doing(), row.share) == ("validation picture, step 7/8", 0.0)


def test_init_counts_photos(shop: Path) -> None:
    run = init_stage.init(init_stage.InitConfig(photos=shop / "photos", out=shop / "new.yaml"))
    assert len(run) == len(list(run)) == run.summary["photos"] + run.summary["rejected"]


# --- Summaries
# ----------------------------------------------------------------------------------------------------------


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


# --- Libraries
# ----------------------------------------------------------------------------------------------------------


def test_only_our_own_words_are_said_and_each_once() -> None:
    for everything, expected in (
        (False, ["warning: ours"]),
        (True, ["warning: ours", "warning: ours", "warning bitsandbytes.cpu: theirs"]),
    ):
        said: list[str] = []
        handler = quiet.Handler(said.append, everything)
        for name, text in (("triptych.x", "ours"), ("triptych.x", "ours"), ("bitsandbytes.cpu", "theirs")):
            handler.handle(
                logging.makeLogRecord({"name": name, "msg": text, "levelno": 30, "levelname": "WARNING"})
            )
        assert said == expected


@pytest.mark.parametrize("verb", ["concat", "caption", "generate"])
def test_a_model_that_is_not_here_is_said_in_our_words_and_once(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "triptychs").mkdir()
    Image.new("RGB", (48, 32)).save(tmp_path / "triptychs/a.png")
    (tmp_path / "triptychs/a.txt").write_text("mine")
    more = {"generate": ["--prompt", "p"], "caption": [], "concat": []}[verb]
    main([verb, "--work", str(tmp_path), "--model", "no-such/model", *more])
    said = " ".join((caplog.text + capsys.readouterr().err).split())
    assert (
        said.count("no-such/model is not on this machine and the hub cannot be reached.") == 1
        and "An error happened" not in said
    )
    assert ("hf download no-such/model" in said) == (verb == "generate")
    assert ("576 × 768 px and captions of 512 tokens are assumed" in said) == (verb != "generate")


def test_the_command_line_wins_over_the_servers_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.yaml").write_text(
        f"work: {tmp_path}\ncaption:\n  vlm_model: m\n  base_url: http://127.0.0.1:9/v1\n"
    )
    words = ["caption", "--config", str(tmp_path / "t.yaml")]
    for more, note in (
        (["--vlm-model", "pocket"], True),
        (["--vlm-model", "pocket", "--base-url", ""], False),
    ):
        assert main([*words, *more]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "is left out: --vlm-model pocket runs on this machine" in said
        ) == note and "There are no triptychs" in said
    assert main(["run", "--base-url", "http://127.0.0.1:9/v1"]) == 2
    assert "Put `base_url:` under `caption:` in the config." in capsys.readouterr().err


def test_a_hub_that_is_down_is_found_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    config = cli.STAGES[2].config_class()(model="some/model")
    begun = time.monotonic()
    hub.look(config, {})
    hub.look(config, {})
    assert time.monotonic() - begun < 6
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not hub.is_hub_id("pocket") and not hub.is_hub_id("./a/b") and not hub.is_hub_id("gpt-4.1-mini")
