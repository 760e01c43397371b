"""Libraries are quiet: what they log, warn of and draw is for their developers. `--verbose` or
TRIPTYCH_DEBUG=1 brings it back.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}
"""Read by the libraries when they are imported; what the user has set stays."""


class Handler(logging.Handler):
    """Log lines through the same door as progress, so that none lands inside a bar."""

    def __init__(self, say: Callable[[str], None], everybody: bool) -> None:
        super().__init__(logging.DEBUG if everybody else logging.WARNING)
        self._say, self._everybody, self._said = say, everybody, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.split(".")[0] == "triptych"
        if not (ours or self._everybody):
            return
        text = record.getMessage()
        if ours and not self._everybody:
            if text in self._said:  # what is told once a picture is told once
                return
            self._said.add(text)
        word = record.levelname.lower()
        self._say(f"{word}: {text}" if ours else f"{word} {record.name}: {text}")
        if record.exc_info and self._everybody:
            self._say(logging.Formatter().formatException(record.exc_info))


def wanted(words: list[str]) -> bool:
    """Whether this command is to say everything."""
    return "--verbose" in words or os.environ.get("TRIPTYCH_DEBUG", "") not in ("", "0")


def settle(say: Callable[[str], None], everything: bool) -> logging.Handler:
    """Set up logging and warnings of this process, before any library is imported; the handler, to be removed
    at the end.
    """
    handler = Handler(say, everything)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(min(root.level or logging.WARNING, logging.WARNING))
    if not everything:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        if "diffusers" in sys.modules:  # imported by somebody else, who has set it up
            return handler
        warnings.simplefilter("ignore")
    logging.captureWarnings(everything)
    return handler


__all__ = ["settle", "wanted"]
