"""Small things that every tab uses: help texts, messages, and errors shown in place."""

from __future__ import annotations

import functools
import html
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from triptych.config.stage import StageConfig
from triptych.errors import TriptychError
from triptych.server.api import Refused
from triptych.server.requests import in_words_of_the_api
from triptych.wording.docstrings import help_texts

log = logging.getLogger(__name__)

PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False}
"""For every event: gradio's own clients have no business here, there is an API; and no event goes through
gradio's queue. All of a visitor's events share one stream there, which gradio 6 closes after the last event
even if another has been sent meanwhile: what that one returns is never shown. So an event is one request with
one answer, and what takes longer is a job that a timer looks at.
"""
QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
"""For events that nobody waits for."""


_HERE = {
    "front": "Drop a photo of the garment's front. It is needed.",
    "back": "Drop a photo of its back; without it the front is used twice.",
    "person": "Drop a photo of the person. It is needed.",
    "context": "noisy: as in the paper. clean: sampling is faster; the default for FLUX.2. native: as FLUX.2 "
    "sees its references.",
    "model": "Give a hub id, a folder in the work folder, or pocket or pocket-klein, which only know "
    "rendered clothes.",
    "checkpointing_steps": "Save the whole state every so many steps; Go on continues there.",
    "optimizer": "adamw8bit (package bitsandbytes) keeps its state in a quarter of the memory; prodigy "
    "(package prodigyopt) finds the learning rate itself: set Learning rate to 1.",
}
"""Help in the page's words, where that of the command line names what the page does not have, or is long."""


def help_of(config: type[StageConfig], name: str) -> str:
    """The help text of a setting: the page's own, else as `--help` has it, in the words of the API."""
    return _HERE.get(name) or in_words_of_the_api(help_texts(config)[name])


def help_line(config: type[StageConfig], name: str) -> str:
    """The help text of a setting as a line, for components that have no place for it."""
    return f'<p class="triptych-help">{html.escape(help_of(config, name))}</p>'


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that needs a model, or much memory: one visitor after the other."""
    lock = threading.Lock()

    @functools.wraps(function)
    def wrapped(*given: Any) -> Any:
        with lock:
            return function(*given)

    return wrapped


def message(elem_id: str | None = None) -> gr.HTML:
    """A place for what went wrong: the last output of a function wrapped by `told`."""
    return gr.HTML(elem_id=elem_id, elem_classes="triptych-message")


def sentence(error: TriptychError | Mapping[str, str]) -> str:
    """An error, or the error of a job, as HTML: its sentence and its hint."""
    found = {"message": error.message, "hint": error.hint} if isinstance(error, TriptychError) else error
    hint = f"<p>{html.escape(found['hint'])}</p>" if found.get("hint") else ""
    return f'<div role="alert"><p><strong>{html.escape(found["message"])}</strong></p>{hint}</div>'


def work_named(work: Path) -> str:
    """The name of the work folder, as HTML; not its whole path, which no browser is told."""
    return html.escape(work.resolve().name or "work")


def where(work: Path) -> str:
    """From where a command that names the work folder is run, as HTML."""
    return f"Run it in the folder that has <code>{work_named(work)}</code>, the work folder of this page."


def paged(board: str, page: int, pages: int) -> tuple[Any, ...]:
    """A board, its page, and its rows of filters and of page buttons, shown only where they do something."""
    return board, page, gr.Row(visible=pages > 0), gr.Row(visible=pages > 1)


def told(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a function behind an event with `outputs` outputs: one more is added, a `message`.

    The function returns a tuple (or one value, if `outputs` is 1). If it raises a TriptychError, the message
    shows it and the other outputs stay as they are; if it raises anything else, the log has it and the
    message says so.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*given: Any) -> Any:
            try:
                made = function(*given)
            except TriptychError as error:
                return _only([gr.skip()] * outputs, sentence(error))
            except Refused as error:
                about = {"message": error.detail, "hint": error.hint}
                return _only([gr.skip()] * outputs, sentence(about))
            except Exception as error:  # a fault of ours
                log.exception("the page failed")
                about = {
                    "message": f"That did not work: {type(error).__name__}.",
                    "hint": "The server's log says more.",
                }
                return _only([gr.skip()] * outputs, sentence(about))
            return _only(list(made) if outputs > 1 else [made] * outputs, "")

        return wrapped

    return wrap


def _only(values: list[Any], message: str) -> Any:
    return (*values, message) if values else message
