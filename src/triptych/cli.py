"""The command line, made from the stage table. No logic of its own: parse, call the stage, show its progress.

Exit codes: 0 done; 1 a mistake in config or input, a line or picture that failed, or nothing made (one
sentence and a hint); 2 wrong usage; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, MutableMapping, Sequence
from importlib import metadata
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from triptych import __version__, progress
from triptych.config.marks import alone
from triptych.config.stage import StageConfig, load_config, section, validated
from triptych.errors import ConfigError, WorkError
from triptych.events import Run
from triptych.signals import ending_at_once
from triptych.terminal import completion, faults, hub, quiet, usage
from triptych.terminal.completion import ConfigFiles, Flags
from triptych.terminal.help import help_page, verbs_page, wants_help
from triptych.terminal.same_options import forgotten_config, same_options
from triptych.terminal.screen import Screen, Watch
from triptych.terminal.summary import next_line, text_of
from triptych.terminal.words import lines, speaks_unicode, strict, tolerate_encodings
from triptych.verbs import GROUPS, STAGES, Stage
from triptych.verbs.outcome import check_made
from triptych.wording import commands
from triptych.wording.docstrings import help_texts
from triptych.wording.settings import option

_FIRST = os.environ.get("RANK", "0") == "0"
"""Of several processes that do one training, the first one talks."""

_SEE = "`triptych --help` lists the verbs."
Speak = Callable[[commands.Same], None]


def main(argv: Sequence[str] | None = None, screen: Screen | None = None) -> int:
    """Run one command; the exit code."""
    words = _asked_for_help(list(sys.argv[1:] if argv is None else argv))
    screen = screen or Screen(quiet=not _FIRST)
    with commands.speaking() as speak:
        return _explained(words, screen, speak)


def _explained(words: list[str], screen: Screen, speak: Speak) -> int:
    """The exit code of a command; whatever ends it is said in a sentence."""
    asked = next((stage for stage in STAGES if words[: len(stage.words)] == stage.words), None)
    try:
        with ending_at_once():
            return _run(asked, words, screen, speak)
    except CycloptsError as error:
        screen.explain(*usage.mistake(error, asked))
        return 2
    except KeyboardInterrupt as error:
        screen.say(
            getattr(error, "message", "")
            or "stopped; what was finished is kept, and the same command does the rest"
        )
        return int(getattr(error, "exit_code", 130))
    except BrokenPipeError:  # whoever read our words has gone
        _let_go_of_pipes()
        return 141
    except Exception as error:
        message, hint = faults.sentence(error) or faults.fault(error, words, quiet.wanted(words))
        forgotten = (
            forgotten_config(error, asked.name, _work(words)) if asked and not _has_config(words) else ""
        )
        screen.explain(message, forgotten or hint)
        return 1


def _has_config(words: Sequence[str]) -> bool:
    with contextlib.suppress(ConfigError):
        return bool(config_files(words))
    return True


def _work(words: Sequence[str]) -> Path:
    """The work folder of a command line that was refused."""
    after = [word for option, word in pairwise(words) if option == "--work"]
    after += [word.removeprefix("--work=") for word in words if word.startswith("--work=")]
    return Path(after[-1] if after else "work")


def _asked_for_help(words: list[str]) -> list[str]:
    """`triptych help train` is `triptych train --help`."""
    return [*words[1:], "--help"] if words[:1] in (["help"], ["--help"], ["-h"]) else words


def _run(asked: Stage | None, words: list[str], screen: Screen, speak: Speak) -> int:
    plain = list(takewhile(lambda word: not word.startswith("-"), words))
    if plain[:1] == ["completion"]:
        if wrong := completion.mistake(plain[1:]):
            screen.explain(*wrong)
            return 2
        print(completion.script(plain[1]))
        return 0
    if asked is None and plain and plain not in [[name] for name in GROUPS]:
        screen.explain(*usage.unknown_verb(" ".join(plain[:2] if plain[0] in GROUPS else plain[:1])))
        return 2
    if wants_help(words) or (asked is None and words == plain):
        print(help_page(asked) if asked else verbs_page("".join(plain)))
        return 0
    if asked is None:
        if words[len(plain)] == "--version":
            print(__version__)
            return 0
        screen.explain(f"There is no option {words[len(plain)]} without a verb.", _SEE)
        return 2
    app = home = App(
        name="triptych",
        version=__version__,
        help_flags=(),  # terminal/help.py has the pages
        console=Console(),
        error_console=screen.console,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name in asked.words[:-1]:
        home = App(name=name, help_flags=())
        app.command(home)
    words = _named(asked, words)
    home.command(_command(asked, words, screen, speak), name=asked.words[-1])
    return app(words, exit_on_error=False, print_error=False) or 0


def _named(stage: Stage, words: list[str]) -> list[str]:
    """`lora convert IN OUT` is short for `lora convert --lora IN --out OUT`."""
    verb, rest = words[: len(stage.words)], words[len(stage.words) :]
    plain = list(takewhile(lambda word: not word.startswith("-"), rest))[: len(stage.positional)]
    named = [
        part
        for field, word in zip(stage.positional, plain, strict=False)
        for part in (f"--{field.replace('_', '-')}", word)
    ]
    return [*verb, *named, *_with_values(stage, rest[len(plain) :])]


def _with_values(stage: Stage, words: list[str]) -> list[str]:
    """The words, with the value that an option has which stands alone: `--refine` is `--refine 0.2`."""
    model = stage.config_class()
    values = {option(name): alone(model, name) for name in model.model_fields}
    filled = []
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        filled.append(word)
        if values.get(word) is not None and after.startswith("-"):
            filled.append(f"{values[word]:g}")
    return filled


def config_files(words: Sequence[str]) -> list[Path]:
    """The config files of a command line, in the order in which they stand there, whatever the spelling."""
    files, rest = [], iter(words)
    for word in rest:
        if word in ("-c", "--config"):
            files += [_named_file(after) for after in [next(rest, None)] if after is not None]
        elif word.startswith("--config="):
            files.append(_named_file(word.removeprefix("--config=")))
        elif word.startswith("-c") and len(word) > 2:
            files.append(_named_file(word.removeprefix("-c").removeprefix("=")))
    return files


def _named_file(word: str) -> Path:
    """An empty name is a variable of the shell that is not set: to go on without the config would be another
    run.
    """
    if not word.strip():
        raise ConfigError(
            "The option --config names no file.", "Give the path of a file, or leave the option out."
        )
    return Path(word)


def _command(stage: Stage, words: Sequence[str], screen: Screen, speak: Speak) -> Any:
    """The command of one stage: its config's fields as options; what no option says comes from the --config
    files.
    """
    model = stage.config_class()
    files = config_files(words)
    data = load_config(files, STAGES)
    speak(same_options(files, data, {}))
    # A verb that gets the whole config hands its shared keys to every stage itself, where a section's own
    # keys win over them.
    values = section({stage.name: data.get(stage.name)} if stage.whole_config else data, stage.name, model)
    validated(model, values, stage.name)

    def command(
        *, options: Any = None, config: ConfigFiles = None, json: Flags = False, verbose: Flags = False
    ) -> int:
        typed = (
            {name: getattr(options, name) for name in options.model_fields_set} if options is not None else {}
        )
        speak(same_options(files, data, typed))
        if note := usage.leave_server_out(typed, values):
            screen.say(note)
        given = validated(model, values.changed(typed), stage.name)
        hub.look(given, data)
        if stage.ask and not json and screen.is_terminal and sys.stdin.isatty():
            stage.load()[0](given)  # mistakes first, questions after
            given = _answered(stage, given, screen)
        with screen.watch(stage.words[-1]) as watch:
            given.check_early()
            progress.doing("loading libraries")
            function, _ = stage.load()
            run = function(given, data) if stage.whole_config else function(given)
            _follow(run, watch)
        if _FIRST:
            _print_summary(run, as_json=json)
        check_made(run.name, run.summary)
        if run.failed:
            raise WorkError(
                f"{run.failed} of {len(run) or run.failed} "
                f"{'lines ' if getattr(given, 'batch', None) else ''}failed.",
                "",
            )
        if not json and _FIRST and (line := next_line(stage.name, run.summary)):
            print(line)
        return 0

    command.__annotations__["options"] = Annotated[model | None, Parameter(name="*")]
    return command


def _answered(stage: Stage, options: StageConfig, screen: Screen) -> StageConfig:
    """The options, with what a person at the terminal says to the fields of `stage.ask` that are
    still empty.
    """
    answers = {}
    for field in stage.ask:
        if not getattr(options, field):
            screen.say(help_texts(type(options))[field])
            try:
                answers[field] = screen.console.input(f"[bold]{field}[/] (Enter: leave it open): ").strip()
            except EOFError:
                break
    return validated(type(options), {**options.model_dump(exclude_unset=True), **answers}, stage.name)


def _follow(run: Run, watch: Watch) -> None:
    watch.expect(len(run))
    for event in run:
        watch.event(event)


def _print_summary(run: Run, *, as_json: bool) -> None:
    if as_json:
        summary = strict(run.summary)
        if "next" in summary:
            summary["next"] = commands.typed(str(summary["next"]))
        print(json.dumps(summary, ensure_ascii=not speaks_unicode(sys.stdout), allow_nan=False))
    else:
        print(lines(commands.typed(run.text) if run.text else text_of(run.summary)))


def _let_go_of_pipes() -> None:
    """Python flushes its streams at the end; into a closed pipe or a full disk that would be one more
    message.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def settle_allocator(environment: MutableMapping[str, str], platform: str = sys.platform) -> None:
    """Let PyTorch's memory on a card grow in place, before torch is imported; what the user has set stays.

    Tensors of other sizes than were freed then fit. Windows cannot. Page-locked pieces of more than 16 MiB,
    the blocks of --blocks-to-swap, are not rounded up to a power of two where PyTorch knows that setting:
    2.13 does, and an earlier one may refuse to start.
    """
    if platform != "linux" or {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & environment.keys():
        return
    settings = ["expandable_segments:True"]
    if tuple(map(int, re.findall(r"\d+", metadata.version("torch"))[:2])) >= (2, 13):
        settings.append("pinned_max_round_threshold_mb:16")
    environment["PYTORCH_CUDA_ALLOC_CONF"] = ",".join(settings)


def entry() -> None:
    """The console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads of PyTorch wait for each other many thousand times a second. GCC's OpenMP lets them spin for so
    # long that a second busy program makes a small model's step four times slower; not to spin at all costs
    # half as much time again on a quiet machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    settle_allocator(os.environ)
    tolerate_encodings()
    screen = Screen(quiet=not _FIRST)
    quiet.settle(screen.say, quiet.wanted(sys.argv))
    code = main(screen=screen)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            screen.explain(*(faults.sentence(error) or ("The summary could not be written.", "")))
            code = code or 1
        _let_go_of_pipes()
    sys.exit(code)


__all__ = ["config_files", "entry", "main"]
