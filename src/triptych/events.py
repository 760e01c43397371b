"""The `Run` that every stage returns: an iterable of `Event`s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

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


class Run:
    """A stage at work: an iterable of `Event`s with a length, which does the work while it is iterated.

    Errors in the config or the inputs are raised when the stage is called, before the first event. `summary`
    grows as the work goes on and is complete after the last event. `text`, where a stage sets it by then,
    says the same for people. `failed` counts the units of work that came to nothing through a mistake; a
    command whose run has any ends with exit code 1.
    """

    text = ""
    failed = 0

    def __init__(self, name: str, total: int, events: Iterator[Event], summary: dict[str, Any]) -> None:
        self.name, self.total, self.summary, self._events = name, total, summary, events

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def nested(self) -> Iterator[Event]:
        """The events, marked with this run's name and length, to be passed on by a run that has this one as a
        part.
        """
        for event in self:
            yield replace(event, stage=event.stage or self.name, of=event.of or self.total)

    def finish(self) -> dict[str, Any]:
        """Do all that is left; return the summary."""
        for _ in self:
            pass
        return self.summary


def held(folder: StageFolder, work: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """The events of `work()`, made while `folder` is held for writing."""
    with folder.open():
        yield from work()
