"""The command line as a user meets it: exit codes, JSON on stdout, help without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import __version__
from triptych.cli import main
from triptych.terminal.help import help_page, verbs_page
from triptych.verbs import GROUPS, STAGES, Stage


def test_help_lists_every_verb_in_order_and_imports_no_torch() -> None:
    code = (
        "import sys; from triptych.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'transformers', 'diffusers', 'sklearn', 'openai'} & set(sys.modules);"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "set()" in done.stderr
    positions = [done.stdout.index(f" {stage.words[0]} ") for stage in STAGES]
    assert positions == sorted(positions)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("group", ["", *GROUPS])
def test_the_page_of_all_verbs_looks_like_that_of_one(group: str, width: int) -> None:
    page, one = verbs_page(group, width), help_page(STAGES[0], width)
    lines = page.splitlines()
    assert lines[0] == f"Usage: triptych {group} VERB [OPTIONS]".replace("  ", " ")
    assert max(map(len, lines)) <= min(width, max(100, width // 2), max(map(len, one.splitlines())))
    rows = [line for line in lines if line.startswith("  ") and line[2] != " "]
    inside = [stage for stage in STAGES if stage.words[:-1] == [group][: bool(group)]]
    verbs = [stage.words[-1] for stage in inside] + ([] if group else list(GROUPS))
    assert [row.split()[0] for row in rows] == [*verbs, "--help", "--version"]
    for stage in inside:
        assert stage.help.split()[0] in next(row for row in rows if row.split()[0] == stage.words[-1])


def test_the_page_of_all_verbs_is_shown_whenever_no_verb_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, group in (
        ([], ""),
        (["--help"], ""),
        (["-h"], ""),
        (["help"], ""),
        (["lora"], "lora"),
        (["lora", "-h"], "lora"),
        (["help", "lora"], "lora"),
    ):
        assert main(words) == 0
        assert capsys.readouterr().out == verbs_page(group) + "\n"
    for words in (["-h", "train"], ["train", "-h"]):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("Usage: triptych train")
    for words in (["--version"], ["train", "--version"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"{__version__}\n"
    for words in (["--rank", "8"], ["lora", "--rank", "8"]):
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == (
            "error: There is no option --rank without a verb.\nhint: `triptych --help` lists the verbs.\n"
        )


@pytest.mark.parametrize("words", [stage.words for stage in STAGES], ids=" ".join)
def test_every_verb_explains_work_config_and_json(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--work", "--config -c", "--json", "Example:"):
        assert option in out


def test_what_a_verb_needs_stands_before_what_all_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tryon", "--help"]) == 0
    out = capsys.readouterr().out
    titles = (
        *("What you give:", "What you get:", "How it is sampled:", "The machine:", "Rarely needed:"),
        *("Every verb:", "Folders:"),
    )
    order = [out.index(title) for title in titles]
    assert order == sorted(order)
    assert order[0] < out.index(" --front ", order[0]) < out.index("Needed.") < order[1]
    for option, title in (("prompt", 0), ("out", 1), ("strength", 2), ("quantize", 3), ("token-bucket", 4)):
        assert order[title] < out.index(f" --{option} ", order[0]) < order[title + 1], option
    assert " --work " in out[order[-1] :]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_help_page_names_every_option_once_and_fits_the_terminal(stage: Stage, width: int) -> None:
    page = help_page(stage, width)
    options = [line.split()[0] for line in page.splitlines() if line.startswith("  --")]
    ours = [f"--{name.replace('_', '-')}" for name in stage.config_class().model_fields]
    plain = [word.replace("[no-]", "").removesuffix(".NAME") for word in options]
    assert sorted(plain) == sorted([*ours, "--config", "--json", "--verbose"])
    if width >= 80:
        assert max(map(len, page.splitlines())) <= width


def test_an_option_says_what_it_takes_and_its_default() -> None:
    page = help_page(next(stage for stage in STAGES if stage.name == "train"), 100)
    for words in (
        "--rank INT ",
        "--context noisy|clean|native\n",
        "--[no-]gradient-checkpointing",
        "--shard-base ",
        "--panel-weights.NAME NUMBER",
        "[default: 0.0001]",
    ):
        assert words in page
    assert "[default: on]" in page
    assert "[default: off]" not in page
    assert "How it is trained:" in page


def test_help_asks_for_no_config_and_stands_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "none.yaml", "--rank", "8", "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: triptych train [OPTIONS]")
    assert main(["help", "lora", "inspect"]) == 0
    assert capsys.readouterr().out.startswith("Usage: triptych lora inspect LORA [OPTIONS]")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nonsense"], 2),
        (["clean", "--nonsense"], 2),
        (["train", "--batch-size", "many"], 2),
        (["train", "--batch-size", "0"], 2),
        (["clean", "--photos", "no-such-folder"], 1),
        (["embed", "--work", "no-such-folder"], 1),
        (["embed", "--model", "./no-such-model"], 1),
        (["run"], 1),
        (["run", "--config", "no-such.yaml"], 1),
        (["train", "--config", ""], 1),
        (["train", "--config="], 1),
        (["generate", "--model", "pocket", "--prompt", "a coat", "--out", "coat.png"], 1),
        (["tryon"], 1),
        (["generate"], 1),
    ],
)
def test_exit_codes(
    words: list[str],
    code: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    if code == 1:
        lines = [
            line for line in captured.err.splitlines() if line.strip() and "loading libraries" not in line
        ]  # on a slow machine
        assert len(lines) == 2, captured.err
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("hint: ")


def test_json_is_one_object_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = tmp_path / "photos" / "item1"
    item.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(item / "a.png")
    words = ["init", "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "t.yaml"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 1
    assert main(words) == 1, "an existing config is not overwritten"


def test_options_win_over_the_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "item1").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "item1" / "a.png")
    config = tmp_path / "c.yaml"
    config.write_text(f"init:\n  photos: {tmp_path}\n  out: {tmp_path / 'from-file.yaml'}\n")
    assert main(["init", "-c", str(config), "--json"]) == 0
    assert (tmp_path / "from-file.yaml").exists()
    assert main(["init", "--config", str(config), "--out", str(tmp_path / "from-option.yaml")]) == 0
    assert (tmp_path / "from-option.yaml").exists()
    capsys.readouterr()
    config.write_text("init:\n  photoes: x\n")
    assert main(["init", "-c", str(config)]) == 1
    assert "Did you mean 'photos'" in capsys.readouterr().err


def test_no_config_and_no_help_page_imports_what_is_heavy() -> None:
    """One process for all verbs. What one of them imports, the others would pay for too."""
    code = (
        "import sys; from triptych.cli import main\n"
        f"for words in {[stage.words for stage in STAGES]}:\n"
        "    assert main([*words, '--help']) == 0\n"
        "    heavy = {'torch', 'numpy', 'PIL', 'transformers', 'diffusers', 'peft', 'sklearn', 'scipy', "
        "'openai', 'bitsandbytes'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_needs_no_torch_to_be_told_is_told_without_it(tmp_path: Path) -> None:
    """Its import takes seconds. One process for all."""
    lines = [
        ["tryon", "--model", "pocket"],
        ["generate", "--model", "pocket"],
        ["train"],
        ["embed", "--model", "./none"],
        ["evaluate"],
        ["reproduce"],
        ["reproduce", "none.png"],
        ["lora", "inspect"],
        ["lora", "inspect", "none.safetensors"],
        ["lora", "convert", "none.safetensors", "new.safetensors"],
    ]
    code = (
        "import sys; from triptych.cli import main\n"
        f"for words in {lines}:\n"
        "    assert main(words) == 1, words\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(lines)
