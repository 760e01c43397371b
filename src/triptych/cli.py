"""The command line, made from the stage table. No logic of its own: parse, call the stage, show its progress.

Exit codes: 0 done, 1 a mistake in config or input (one sentence and a hint) or parts of the work that failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from triptych import __version__
from triptych.config import StageConfig, load_config, section, validated
from triptych.errors import TriptychError
from triptych.signals import ending_at_once
from triptych.stages import GROUPS, STAGES, Stage
from triptych.store import Run

_FIRST = os.environ.get("RANK", "0") == "0"
"""Of several processes that do one training, the first one talks."""

Flags = Annotated[bool, Parameter(negative=())]
ConfigFiles = Annotated[list[Path] | None, Parameter(name=["--config", "-c"], negative=(), consume_multiple=False)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    show = Console(stderr=True)
    app = App(
        name="triptych",
        version=__version__,
        help="Virtual try-on by In-Context LoRA: from folders of product photos to a trained LoRA and try-on pictures.",
        help_epilogue="`triptych demo --out demo` shows everything without any input. `triptych VERB --help` explains a verb.",
        console=Console(),
        error_console=show,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    try:
        asked = next((stage for stage in STAGES if words[: len(stage.words)] == stage.words), None)
        words = _named(asked, words) if asked else words
        groups = {name: App(name=name, help=text, sort_key=len(STAGES)) for name, text in GROUPS.items()}
        for order, stage in enumerate(STAGES):
            *group, verb = stage.words
            home = groups[group[0]] if group else app
            command = _command(app, stage, words, show) if stage is asked else _not_loaded
            home.command(command, name=verb, help=f"{stage.help}\n\nExample: `{stage.example}`", sort_key=order)
        for home in groups.values():
            app.command(home)
        with ending_at_once():
            return app(words, exit_on_error=False, print_error=True) or 0
    except TriptychError as error:
        return _explain(show, error.message, error.hint)
    except CycloptsError:
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _explain(show, "The device has too little memory for this.", "Lower --batch-size or the panel size, or use a larger card.")
    except OSError as error:
        return _explain(show, str(error), "Check that the disk has space and that files and folders may be read and written.")
    except KeyboardInterrupt as error:
        said = getattr(error, "message", "") or "stopped; what was finished is kept, and the same command does the rest"
        show.print(_plain(said), highlight=False, soft_wrap=True)
        return getattr(error, "exit_code", 130)


def _explain(show: Console, message: str, hint: str) -> int:
    show.print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    if hint:
        show.print(f"[bold]hint:[/] {_plain(hint)}", highlight=False, soft_wrap=True)
    return 1


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _named(stage: Stage, words: list[str]) -> list[str]:
    """`lora convert IN OUT` is short for `lora convert --lora IN --out OUT`."""
    verb, rest = words[: len(stage.words)], words[len(stage.words) :]
    plain = list(takewhile(lambda word: not word.startswith("-"), rest))[: len(stage.positional)]
    named = [part for field, word in zip(stage.positional, plain, strict=False) for part in (f"--{field.replace('_', '-')}", word)]
    return [*verb, *named, *rest[len(plain) :]]


def _not_loaded() -> None:
    """Stands in the command list of `triptych --help`; its verb is imported only when it is the one asked for."""


def _command(app: App, stage: Stage, words: Sequence[str], show: Console) -> Any:
    """The command of one stage: its config's fields as options, filled from --config files first."""
    model = stage.config_class()
    files = [Path(after) for word, after in zip(words, words[1:], strict=False) if word in ("-c", "--config")]
    for word in words:
        if word.startswith("--config="):
            files.append(Path(word.removeprefix("--config=")))
        elif word.startswith("-c") and len(word) > 2:
            files.append(Path(word.removeprefix("-c").removeprefix("=")))
    data = load_config(files, [other.name for other in STAGES])
    # A verb that gets the whole config hands its shared keys to every stage itself, where a section's own keys win over them.
    values = section({stage.name: data.get(stage.name)} if stage.whole_config else data, stage.name, model)
    validated(model, values, stage.name)
    app.config = Dict(_nested(stage.words, values), source=", ".join(map(str, files)))

    def command(*, options: Any = None, config: ConfigFiles = None, json: Flags = False) -> int:
        """
        Parameters
        ----------
        config
            YAML file with shared keys and a section per verb; options on the command line win. May be repeated.
        json
            Print one JSON object to stdout, everything else to stderr.
        """
        options = options or model()
        function, _ = stage.load()
        if stage.ask and not json and show.is_terminal and sys.stdin.isatty():
            function(options)  # mistakes first, questions after
            options = _answered(stage, options, show)
        run = function(options, data) if stage.whole_config else function(options)
        show.quiet = not _FIRST
        summary = follow(run, show)
        if run.text and not json:
            print(run.text)
        elif _FIRST:
            _print_summary(summary, as_json=json)
        return 1 if run.failed else 0

    command.__annotations__["options"] = Annotated[model | None, Parameter(name="*")]
    return command


def _answered(stage: Stage, options: StageConfig, show: Console) -> StageConfig:
    """The options, with what a person at the terminal says to the fields of `stage.ask` that are still empty."""
    answers = {}
    for field in stage.ask:
        if not getattr(options, field):
            about = " ".join((type(options).model_fields[field].description or "").split())
            show.print(_plain(about), highlight=False)
            try:
                answers[field] = show.input(f"[bold]{field}:[/] ").strip()
            except EOFError:
                break
    return validated(type(options), {**options.model_dump(exclude_unset=True), **answers}, stage.name)


def _nested(path: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], values)} if path else values


def follow(run: Run, show: Console) -> dict[str, Any]:
    """Exhaust a run with a progress bar that shows count, time left and the last note."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=show, disable=not show.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}
        done: Counter[str] = Counter()
        for event in run:
            name, total = event.stage or run.name, event.of or len(run)
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total or None, note="")
            done[name] += 1
            progress.update(tasks[name], advance=1, note=f"{event.id} {event.note}".strip()[:60])
            if not show.is_terminal and (done[name] % max(1, total // 10) == 0 or event.status == "rejected"):
                words = f"{name} {done[name]}/{total} {event.id} {event.status} {event.note}".rstrip()
                show.print(_plain(words), highlight=False, soft_wrap=True)
    return run.summary


def _print_summary(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, default=str, ensure_ascii=False))
        return
    for key, value in summary.items():
        print(f"{key}: {json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, (dict, list)) else value}")


def entry() -> None:
    """The console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads of PyTorch wait for each other many thousand times a second. GCC's OpenMP lets them spin for so long that a second busy
    # program makes a small model's step four times slower; not to spin at all costs half as much time again on a quiet machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it tells every process which of its CUDA kernels it did not load
    sys.exit(main())


__all__ = ["entry", "follow", "main"]
