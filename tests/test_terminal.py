"""What a person sees of a command: sentences for every mistake, signs of life, and a summary without Python
in it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from triptych import cli
from triptych.backbones.settings import family_of, model_settings
from triptych.cli import main
from triptych.errors import InputError, WorkError
from triptych.events import Event, Run
from triptych.terminal import faults, hub, quiet
from triptych.terminal.screen import Screen
from triptych.terminal.summary import text_of
from triptych.terminal.words import plain
from triptych.verbs import init as init_stage
from triptych.verbs.outcome import check_made

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
        ("train --context foo", "--context is foo; it takes noisy, clean or native.", "train --help"),
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
        ("tryon --inpaint-mask x.png", "has no option --inpaint-mask.", "--mask?"),
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
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), "The device has too", "plan"),
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


def test_init_counts_photos(shop: Path) -> None:
    run = init_stage.init(init_stage.InitConfig(photos=shop / "photos", out=shop / "new.yaml"))
    assert len(run) == len(list(run)) == run.summary["photos"] + run.summary["rejected"]


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


def test_well_known_models_are_known_without_a_network(caplog: pytest.LogCaptureFixture) -> None:
    large = model_settings("stabilityai/stable-diffusion-3.5-large")
    assert (large.panel_width, large.panel_height, large.max_sequence_length) == (480, 640, 256)
    assert "Its panels of 480 × 640 px and captions of 256 tokens are assumed" in caplog.text
    assert model_settings("black-forest-labs/FLUX.2-klein-4B").num_inference_steps == 4
    assert family_of("black-forest-labs/FLUX.2-klein-4B").name == "flux2"


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
    (stage,) = (stage for stage in cli.STAGES if stage.name == "concat")
    config = stage.config_class()(model="some/model")
    begun = time.monotonic()
    hub.look(config, {})
    hub.look(config, {})
    assert time.monotonic() - begun < 6
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not hub.is_hub_id("pocket") and not hub.is_hub_id("./a/b") and not hub.is_hub_id("gpt-4.1-mini")
