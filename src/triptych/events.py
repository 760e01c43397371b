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
    """Set if one run consists of several stages: the name and the length of the inner run."""
    of: int = 0
    result: Any = None
    """The result of the unit, new or kept: a file's path, a picture, or a record. None if there is none.
    """


class Run:
    """A stage at work: an iterable of `Event`s with a length. The work is done while it is iterated.

    Errors in the config or the inputs are raised when the stage is called, before the first event. `summary`
    grows during the work and is complete after the last event. `text`, which some stages set by then, is the
    summary for people. `failed` counts the units that failed through a mistake; the command of such a run
    ends with exit code 1.

    A run is iterated once. `finish` does the rest of it, `close` ends it early; a `with` block closes it at
    its end.
    """

    text = ""
    failed = 0

    def __init__(self, name: str, total: int, events: Iterator[Event], summary: dict[str, Any]) -> None:
        self.name, self.total, self.summary, self._events = name, total, summary, events
        self._begun = self._closed = self._ended = False

    def __len__(self) -> int:
        """The number of events in all; 0 if it is unknown beforehand."""
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
        """End the work now: release the folder and stop all background work.

        Finished work stays, and the same call continues from there. Another thread may close a run: the
        thread that works on it gets no event after the current one.
        """
        self._closed = True
        if close := getattr(self._events, "close", None):
            try:
                close()
            except ValueError as error:  # another thread works on it, and closes it after the current event
                if "already executing" not in str(error):
                    raise

    def nested(self) -> Iterator[Event]:
        """The events, marked with this run's name and length, for a run that contains this one."""
        with self:
            for event in self:
                yield replace(event, stage=event.stage or self.name, of=event.of or self.total)

    def finish(self) -> dict[str, Any]:
        """Do the rest of the work; return the summary.

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
    """The events of `work()`; `folder` is held for writing meanwhile."""
    with folder.open():
        yield from work()
