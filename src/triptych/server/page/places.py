"""Names and paths between the server and a browser: no path of the server goes out, none comes in."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triptych.errors import InputError, TriptychError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def shown(text: str, work: Path) -> str:
    """A sentence without the place of the work folder: what lies in it is named from there."""
    for folder in {str(work), os.path.abspath(work), os.path.realpath(work)} - {".", "/"}:
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(/|(?![\w-]))", lambda found: _inside(found[1]), text)
    return text


def _inside(slash: str) -> str:
    return "" if slash else "the work folder"


def without_paths(work: Path) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a function behind an event: its TriptychErrors name no place of the server."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*given: Any) -> Any:
            try:
                return function(*given)
            except TriptychError as error:
                raise type(error)(shown(error.message, work), shown(error.hint, work)) from error

        return wrapped

    return wrap


def folder_named(work: Path, name: str, what: str) -> Path:
    """A folder right in the work folder, by a name that somebody typed.

    Raises:
        InputError: the name is no plain word, or leads out of the work folder.
    """
    name = name.strip()
    path = work / name
    if not _NAME.fullmatch(name) or Path(os.path.realpath(path)).parent != Path(os.path.realpath(work)):
        raise InputError(
            f"'{name[:80]}' is no name for {what}.",
            "Take letters, digits, '.', '_' and '-'; the folder lies in the work folder.",
        )
    return path


__all__ = ["folder_named", "shown", "without_paths"]
