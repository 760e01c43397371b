"""Silences libraries: their log lines, warnings and bars are for developers. `--verbose` or TRIPTYCH_DEBUG=1
shows them.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Environment variables that the libraries read when imported; values set by the user stay."""


KEPT = 1000
"""How many messages are remembered, so that none is shown twice; a server runs for months."""


class Handler(logging.Handler):
    """Sends log lines through the same function as progress, so that none lands inside a bar."""

    def __init__(self, say: Callable[[str], None], everybody: bool) -> None:
        super().__init__(logging.DEBUG if everybody else logging.WARNING)
        self._say, self._everybody, self._said = say, everybody, deque[str](maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.split(".")[0] == "triptych"
        if not (ours or self._everybody):
            return
        text = record.getMessage()
        if ours and not self._everybody:
            if text in self._said:  # a message that comes with every picture is shown once
                return
            self._said.append(text)
        word = record.levelname.lower()
        self._say(f"{word}: {text}" if ours else f"{word} {record.name}: {text}")
        if record.exc_info and self._everybody:
            self._say(logging.Formatter().formatException(record.exc_info))


def wanted(words: list[str]) -> bool:
    """Whether this command shows everything."""
    return "--verbose" in words or os.environ.get("TRIPTYCH_DEBUG", "") not in ("", "0")


def settle(say: Callable[[str], None], everything: bool) -> logging.Handler:
    """Set up logging and warnings of this process, before any library is imported. Returns the handler, for
    removal at the end.
    """
    handler = Handler(say, everything)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(min(root.level or logging.WARNING, logging.WARNING))
    if not everything:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        if "diffusers" in sys.modules:  # imported by the embedding program, which has set it up
            return handler
        warnings.simplefilter("ignore")
    logging.captureWarnings(True)  # libraries set filters of their own; what passes those ends in the handler
    return handler


__all__ = ["settle", "wanted"]
