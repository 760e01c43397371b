"""The `Run` that every stage returns: an iterable of `Event`s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

from triptych.store.folder import StageFolder


@dataclass(frozen=True)
class Event:
    """One finished unit of work: a photo, a triptych, a training step."""

    id: str
    status: Literal["done", "kept", "rejected"] = "done"
    note: str = ""
    stage: str = ""
    """Set where one run works through several stages: the name and the length of the inner run."""
    of: int = 0
    result: Any = None
    """What the unit made, or what of it was kept: the path of a file, a picture, or a record. None if that is
    nothing.
    """


class Run:
    """A stage at work: an iterable of `Event`s with a length, which does the work while it is iterated.

    Errors in the config or the inputs are raised when the stage is called, before the first event. `summary`
    grows as the work goes on and is complete after the last event. `text`, where a stage sets it by then,
    says the same for people. `failed` counts the units of work that came to nothing through a mistake; a
    command whose run has any ends with exit code 1.

    A run is gone through once. `finish` does what is left of it, `close` ends it early; used with `with`, it
    is closed at the end of the block.
    """

    text = ""
    failed = 0

    def __init__(self, name: str, total: int, events: Iterator[Event], summary: dict[str, Any]) -> None:
        self.name, self.total, self.summary, self._events = name, total, summary, events
        self._begun = self._closed = self._ended = False

    def __len__(self) -> int:
        """How many events there are in all; 0 if nobody knows that beforehand."""
        return self.total

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Event]:
        """The events, once.

        Raises:
            RuntimeError: the run was begun or closed before.
        """
        self._refuse_if_closed()
        if self._begun:
            raise RuntimeError(
                f"This run of {self.name} was begun before, and a run is gone through once. Use `finish()` "
                f"for what is left of it, or call {self.name} again: what is done is kept."
            )
        self._begun = True
        return self

    def __next__(self) -> Event:
        self._begun = True
        if self._closed:
            self.close()
            raise StopIteration
        try:
            return next(self._events)
        except StopIteration:
            self._ended = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the work now: the folder is let go, and what runs in the background stops.

        What is done stays, and the same call goes on from there. Another thread may close a run: the thread
        that works on it gets no event after the present one.
        """
        self._closed = True
        if close := getattr(self._events, "close", None):
            try:
                close()
            except ValueError as error:  # another thread works on it, and closes it after the present event
                if "already executing" not in str(error):
                    raise

    def nested(self) -> Iterator[Event]:
        """The events, marked with this run's name and length, to be passed on by a run that has this one as a
        part.
        """
        with self:
            for event in self:
                yield replace(event, stage=event.stage or self.name, of=event.of or self.total)

    def finish(self) -> dict[str, Any]:
        """Do all that is left; return the summary.

        Raises:
            RuntimeError: the run was closed before its end.
        """
        self._refuse_if_closed()
        while next(self, None) is not None:
            pass
        return self.summary

    def _refuse_if_closed(self) -> None:
        if self._closed and not self._ended:
            raise RuntimeError(
                f"This run of {self.name} is closed. Call {self.name} again: what is done is kept."
            )


def held(folder: StageFolder, work: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """The events of `work()`, made while `folder` is held for writing."""
    with folder.open():
        yield from work()
