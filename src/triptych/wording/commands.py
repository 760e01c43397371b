"""Completes commands in messages, so that users can type them: with the config, model and folders of the
command at work.

The command line supplies these once with `speaking`; without it, commands stay as written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

Same = Callable[[str], Sequence[str]]
"""Options by verb, each as typed: `--config triptych.yaml`."""

_same: ContextVar[Same | None] = ContextVar("same_options", default=None)
_COMMAND = re.compile(
    r"(?:(?<=`)|(?<=: )|^)triptych "
    r"(clean|concat|caption|embed|train|generate|tryon|run|plan)(?![\w-])([^`]*+)(?!` (?:has|needs)\b)"
)


@contextmanager
def speaking() -> Iterator[Callable[[Same], None]]:
    """Within this context, the function given to the yielded one completes commands."""
    token = _same.set(None)
    try:
        yield lambda same: (_same.set(same), None)[1]
    finally:
        _same.reset(token)


def typed(text: str) -> str:
    """Complete the commands in a text: those in backticks, after a colon, or at its start. A command that a
    sentence is only about stays as it is (`triptych run` needs …). No command is completed twice.
    """
    same = _same.get()
    return _COMMAND.sub(lambda found: _completed(found, same), text) if same else text


def _completed(found: re.Match[str], same: Same) -> str:
    verb, rest = found.groups()
    if {"--help", "--config", "-c"} & set(rest.split()):
        return found[0]
    more = [option for option in same(verb) if option.split()[0] not in rest.split()]
    return " ".join([f"triptych {verb}", *more]) + rest


__all__ = ["Same", "speaking", "typed"]
