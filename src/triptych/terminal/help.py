"""`triptych --help`: the verbs. `triptych VERB --help`: the options of a verb in groups, from the marks and
docstrings of its config.
"""

from __future__ import annotations

import inspect
import shutil
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from triptych.config.marks import Alone, Group, group
from triptych.config.stage import StageConfig
from triptych.verbs import GROUPS, STAGES, Stage
from triptych.wording.docstrings import help_texts
from triptych.wording.settings import option

WIDEST = 100  # columns; longer lines are hard to read
_OPTIONS = 26  # columns: the text of a longer option begins on the next line

EVERY_VERB = (
    (
        "--config -c PATH",
        "YAML file with shared keys and a section per verb; options on the command line win. May be "
        "repeated.",
    ),
    ("--json", "Print one JSON object to stdout, everything else to stderr."),
    (
        "--verbose",
        "Also say what libraries log, and show the traceback of a fault. TRIPTYCH_DEBUG=1 does the same.",
    ),
)
"""What every command takes besides its config: (option, help)."""
_WHAT = (
    "Virtual try-on by In-Context LoRA: from folders of product photos to a trained LoRA and try-on pictures."
)
_ANYWHERE = (
    ("--help -h", "Show this page, or after a verb the page of that verb."),
    ("--version", "Show the version."),
)
_TIED = "\N{NO-BREAK SPACE}"  # no line ends here
_KINDS = {Path: "PATH", str: "TEXT", int: "INT", float: "NUMBER"}


def wants_help(words: Iterable[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in ("--help", "-h") for word in words)


def verbs_page(group: str = "", width: int | None = None) -> str:
    """The output of `triptych --help`, or of `triptych GROUP --help`: its verbs. width: see `help_page`."""
    width = _width(width)
    inside = [stage for stage in STAGES if stage.words[:-1] == ([group] if group else [])]
    verbs = [(stage.words[-1], stage.help) for stage in inside] + ([] if group else [*GROUPS.items()])
    command = f"triptych {group}".strip()
    more = f"`{command} VERB --help` explains a verb."
    if not group:
        more = (
            f"`triptych demo --out demo` shows everything without any input. {more} `triptych completion "
            "bash` (or zsh, fish) prints what that shell needs to complete commands."
        )
    parts = [f"Usage: {command} VERB [OPTIONS]", "", *wrap(GROUPS.get(group, _WHAT), width)]
    parts += ["", "Verbs:", *_table(verbs, width)]
    parts += ["", "Options:", *_table(_ANYWHERE, width)]
    return "\n".join([*parts, "", *wrap(more, width)])


def help_page(stage: Stage, width: int | None = None) -> str:
    """The output of `triptych VERB --help`, in lines of at most `width` characters; by default as wide as the
    terminal.
    """
    width = _width(width)
    model = stage.config_class()
    texts = help_texts(model)
    groups: dict[Group, list[tuple[str, str]]] = {each: [] for each in Group}
    for name, field in sorted(model.model_fields.items(), key=lambda item: _home(model, item[0])):
        groups[group(model, name)].append((_option(name, field), texts[name] + _default(field)))
    *first, folders = groups.items()
    titled = [(title.value.format(how=model.how), rows) for title, rows in first if rows]
    titled += [("Every verb", list(EVERY_VERB)), (folders[0].value, folders[1])]
    given = "".join(f" {name.upper()}" for name in stage.positional)
    usage = [f"Usage: triptych {' '.join(stage.words)}{given} [OPTIONS]", "", *wrap(stage.help, width), ""]
    example = wrap(stage.example, width - 6, break_long_words=False, break_on_hyphens=False)
    parts = [*usage, "Example:", "  " + " \\\n    ".join(example)]  # can be copied as it stands
    for title, rows in titled:
        parts += ["", f"{title}:", *_table(rows, width)]
    return "\n".join(parts).replace(_TIED, " ")


def _width(given: int | None) -> int:
    return min(given or shutil.get_terminal_size().columns, WIDEST) or WIDEST


def _home(model: type[StageConfig], name: str) -> int:
    """The distance to the class that defines a field: a verb's own fields come before shared ones."""
    return next(n for n, each in enumerate(model.__mro__) if name in inspect.get_annotations(each))


def _table(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Options on the left, their texts on the right."""
    left = min(_OPTIONS, max(len(option) for option, _ in rows))
    lines = []
    for head, text in rows:
        right = wrap(text, max(width - left - 4, 20), break_on_hyphens=False)
        if len(head) > left:
            lines.append(f"  {head}")
            head = ""
        lines += [f"  {head if not n else '':{left}}  {line}" for n, line in enumerate(right)]
    return lines


def _option(name: str, field: FieldInfo) -> str:
    """`--batch-size INT`."""
    kind = field.annotation
    if kind is bool or bool in get_args(kind):
        return option(name).replace("--", "--[no-]", 1) if field.default else option(name)
    if get_origin(kind) is dict:
        return f"{option(name)}.NAME {_kind(get_args(kind)[1])}"
    shown = _kind(kind)
    return (
        f"{option(name)} {f'[{shown}]' if any(isinstance(mark, Alone) for mark in field.metadata) else shown}"
    )


def _kind(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(parts[0])
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin is list:
        return f"{_kind(parts[0])} …"
    return _KINDS.get(kind, "TEXT")


def _default(field: FieldInfo) -> str:
    """The value without any option, unless the text already names it."""
    default = field.default
    if default in (None, "", [], {}) and default is not False and default != 0:
        return ""
    if isinstance(default, bool):
        return f" [default:{_TIED}on]" if default else ""
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f" [default:{_TIED}{shown}]"


__all__ = ["EVERY_VERB", "help_page", "verbs_page", "wants_help"]
