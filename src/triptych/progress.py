"""Signs of life from within one unit of work: a stage's events say what is finished, this says what is under
way.

A loop calls `step` or `doing`; whoever shows progress listens. Without a listener nothing happens. The
listener belongs to the context (thread, task) that iterates the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """What is being done now: `denoising`, 3 `of` 28. `of` is 0 where nobody knows how much there is.

    `share` is the part of the present unit (picture, batch, training step) that is finished, in [0, 1]; None
    if the unit has not begun.
    """

    doing: str
    done: int = 0
    of: int = 0
    share: float | None = None


Listener = Callable[[Moment], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within it, `listener` is told of every moment."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def within(what: str) -> Iterator[None]:
    """Moments in it belong to `what`, which stands before their own words; they are no share of the present
    unit.
    """
    outer = _listener.get()
    if outer is None:
        yield
        return
    with listening(lambda moment: outer(Moment(f"{what}, {moment.doing}", moment.done, moment.of))):
        yield


def step(doing: str, done: int, of: int) -> None:
    """A loop that makes one unit has finished `done` of `of` rounds."""
    if listener := _listener.get():
        listener(Moment(doing, done, of, done / of if of else None))


def doing(what: str, done: int = 0, of: int = 0) -> None:
    """Work that comes before the units, such as the reading of examples: `done` of `of` are behind us."""
    if listener := _listener.get():
        listener(Moment(what, done, of))


__all__ = ["Listener", "Moment", "doing", "listening", "step", "within"]
