"""Every command in README, docs and examples: its verb, options and values are such as triptych takes; those
on the embedded models run.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any, get_origin

import pytest
from PIL import Image

from tests.doc_commands import PAGES, ROOT, blocks, commands
from triptych.cli import config_files, main
from triptych.config.files import packaged
from triptych.config.marks import alone
from triptych.config.stage import validated
from triptych.verbs import STAGES, Stage
from triptych.wording.settings import option

EVERY = {"--json": 0, "--verbose": 0, "--help": 0, "--config": 1, "-c": 1}
"""Options of every verb, and how many words each takes."""
WORDS = {"completion", "help", "--help", "--version"}
"""First words that are no verbs."""


FOREIGN = {
    *("--only", "--true-labels"),  # benchmarks
    *("--start-from", "--no-related-boards", "--steps", "--tiny"),  # recipes
    *("--machine_rank", "--fuse_qkv_projections"),  # accelerate, diffusers' scripts
}
"""Options of other programs that pages speak of."""


def verb_of(words: list[str]) -> Stage:
    """The verb of a command."""
    return next(stage for stage in STAGES if words[: len(stage.words)] == stage.words)


def settings_of(stage: Stage, words: list[str]) -> dict[str, Any]:
    """The options of a command as values for its config; fails at one that the verb does not have."""
    model = stage.config_class()
    fields = {option(name): name for name in model.model_fields}
    rest = words[len(stage.words) :]
    found: dict[str, Any] = {}
    for name in stage.positional:
        if rest and not rest[0].startswith("-"):
            found[name] = rest.pop(0)
    while rest:
        word = rest.pop(0)
        word, _, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word in EVERY:
            rest = rest[EVERY[word] :]
            continue
        if word == "…":
            continue
        name = fields.get(word) or fields.get(word.replace("--no-", "--"))
        if name is None and "." in word:  # --panel-weights.worn 2
            name, key = fields[word.split(".")[0]], word.split(".")[1]
            found.setdefault(name, {})[key] = rest.pop(0)
            continue
        assert name is not None, f"`triptych {' '.join(words)}`: no option {word}"
        kind = model.model_fields[name].annotation
        if kind is bool or kind == bool | None:
            found[name] = word == option(name)
            continue
        if not value and alone(model, name) is not None and (not rest or rest[0].startswith("-")):
            found[name] = alone(model, name)
            continue
        value = value or rest.pop(0)
        if get_origin(kind) is list or "list[" in str(kind):
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_commands_of_a_page_are_such_as_triptych_takes(page: Path) -> None:
    for words in commands(page):
        if not words or words[0] in WORDS:
            continue
        stage = verb_of(words)
        validated(stage.config_class(), settings_of(stage, words), stage.name)
        for path in config_files(words):
            # a preset that the package has, or a file that the reader writes
            assert packaged(path) != path or path.suffix == ".yaml", path


def test_every_page_with_shell_blocks_has_its_commands_found() -> None:
    """So that no command goes unseen: as many as lines that begin with triptych."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        lines = [
            line
            for language, content in blocks(text)
            if language in {"", "bash", "sh"}
            for line in content.splitlines()
            if re.match(r"\s*(\.venv/bin/)?triptych ", line)
        ]
        assert len(commands(page)) >= len(lines), page
    assert sum(len(commands(page)) for page in PAGES) > 60


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_in_a_page_can_be_compiled(page: Path) -> None:
    for language, content in blocks((ROOT / page).read_text(encoding="utf-8")):
        if language == "python":
            compile(textwrap.dedent(content), str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_options_in_the_text_exist(page: Path) -> None:
    """Options in code, of some verb or of the tools that a page is about."""
    if page.name == "benchmarks.md":
        pytest.skip("options of the benchmarks")
    known = {option(name) for stage in STAGES for name in stage.config_class().model_fields}
    known |= {name.replace("--", "--no-", 1) for name in known} | set(EVERY)
    text = re.sub(r"^( *)```.*?^\1```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(--[^`]+)`", text):
        name = re.split(r"[ =.]", code)[0].replace("[no-]", "")
        if name not in known:
            assert name in FOREIGN, f"{page}: {code}"


def runnable() -> list[tuple[Path, list[str]]]:
    """(folder, words) of the commands that need nothing but the repository: pictures on embedded models."""
    found = []
    for page in PAGES:
        for words in commands(page):
            given = dict(zip(words, words[1:], strict=False))
            embedded = given.get("--model", "").startswith("pocket") and "--lora" not in words
            if words[:1] in (["tryon"], ["generate"]) and embedded and "demo/" not in " ".join(words):
                folder = (ROOT / page).parent if page.parts[0] == "examples" else ROOT
                found.append((folder, words))
    return found


@pytest.mark.parametrize(
    ("folder", "words"), runnable(), ids=[f"{folder.name}-{words[-1]}" for folder, words in runnable()]
)
def test_commands_on_embedded_models_run(
    folder: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand in the page, but for the number of steps and where they write."""
    monkeypatch.chdir(folder)
    at = words.index("--out") + 1
    out = tmp_path / Path(words[at]).name
    words = [*words[:at], str(out), *words[at + 1 :], "--num-inference-steps", "2", "--work", str(tmp_path)]
    assert main(words) == 0
    pictures = [out] if out.is_file() else sorted(out.glob("*.png"))
    assert pictures
    if words[0] == "tryon":
        person = words[words.index("--person") + 1]
        assert Image.open(pictures[0]).size == Image.open(folder / person).size


def test_every_example_is_run() -> None:
    folders = {folder.name for folder, _ in runnable()}
    assert folders >= {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert len(folders) == 4
