"""Completion in a real bash, from the script that `triptych completion bash` prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.cli import main
from triptych.verbs import STAGES

TRY = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
$(complete -p triptych | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""What bash does when the key is pressed behind the words given."""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, written by a process that must not need torch."""
    code = (
        "import sys; from triptych.cli import main; code = main(['completion', 'bash']);"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers'} & set(sys.modules);"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "triptych"
    path.write_text(done.stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], {"train", "tryon"}),
        ([""], {stage.words[0] for stage in STAGES} | {"completion"}),
        (["lora", ""], {"convert", "inspect"}),
        (["tryon", "--rough", ""], {"none", "paint", "paste"}),
        (["train", "--lora-d"], {"--lora-dropout"}),
        (["train", "--no-gradient"], {"--no-gradient-checkpointing"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",  # sets have no order
)
def test_bash_offers(script: Path, words: list[str], offered: set[str]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", TRY, "bash", str(script), "triptych", *words],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_shell_gets_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    written = capsys.readouterr().out
    assert all(stage.words[-1] in written for stage in STAGES)
    assert (written.splitlines()[0] == "#compdef triptych") == (shell == "zsh")


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"], ["--help"]])
def test_a_shell_that_is_not_known_is_a_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", *words]) == 2
    error = capsys.readouterr().err
    assert "shell" in error.splitlines()[0] and "bash, zsh or fish" in error
