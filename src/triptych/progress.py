"""Progress within one unit of work. A stage's events report finished units; this reports the one in progress.

A loop calls `step` or `doing`; the display of progress listens. Without a listener nothing happens. The
listener belongs to the context (thread, task) that iterates the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """The current activity: `denoising`, 3 `of` 28. `of` is 0 if the total is unknown.

    `share` is the finished part of the current unit (picture, batch, training step), in [0, 1]; None if the
    unit has not begun.
    """

    doing: str
    done: int = 0
    of: int = 0
    share: float | None = None


Listener = Callable[[Moment], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within this context, `listener` receives every moment."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def within(what: str) -> Iterator[None]:
    """Within this context, moments belong to `what`, which precedes their own words. They do not count
    towards the current unit.
    """
    outer = _listener.get()
    if outer is None:
        yield
        return
    with listening(lambda moment: outer(Moment(f"{what}, {moment.doing}", moment.done, moment.of))):
        yield


def step(doing: str, done: int, of: int) -> None:
    """Report that a loop over one unit has finished `done` of `of` rounds."""
    if listener := _listener.get():
        listener(Moment(doing, done, of, done / of if of else None))


def doing(what: str, done: int = 0, of: int = 0) -> None:
    """Report work before the units, such as reading examples: `done` of `of` are finished."""
    if listener := _listener.get():
        listener(Moment(what, done, of))


__all__ = ["Listener", "Moment", "doing", "listening", "step", "within"]
