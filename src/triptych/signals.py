"""Handles Ctrl-C and the signals that end a process: at once as an exception, or after the current step."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)

# Sent by a terminal, a closed session, `kill`, `docker stop`, SLURM, a spot machine and torchrun.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AGAIN = 1.0
"""Seconds after which a second Ctrl-C counts. A launcher passes the first one on, so that it arrives twice.
"""


class Stopped(KeyboardInterrupt):
    """A signal ends the run. `message` tells the user the state of the work; it may be empty."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number, self.message = number, message

    @property
    def exit_code(self) -> int:
        """The exit code that a shell expects after a signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


@dataclass
class Request:
    """The signal that asked the process to end, or None."""

    number: int | None = None
    at: float = 0.0


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Within this context, SIGTERM and SIGHUP raise `Stopped` at once, as Ctrl-C does: files are closed,
    locks released.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled_by(end):
        yield


@contextlib.contextmanager
def ending_after_this_step() -> Iterator[Request]:
    """Within this context, the first signal is noted in the request, which the loop checks between steps; a
    second Ctrl-C ends the run at once. Only the main thread gets signals: elsewhere the request stays empty.
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if request.number is None:
            request.number, request.at = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                log.warning("Stopping when this step is done and saved; another Ctrl-C stops at once.")
        elif number == signal.SIGINT and time.monotonic() - request.at > _AGAIN:
            raise Stopped(number, "stopped at once; the same command goes on from the last checkpoint")

    with _handled_by(note):
        yield request


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Set a handler for all signals that end a process, except those that the process was started to ignore
    (nohup, `&`).
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            with contextlib.suppress(ValueError):  # an unfinished run is discarded in another thread
                signal.signal(number, old)
