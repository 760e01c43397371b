"""Progress for people: one bar of one line per stage at a terminal; in a log file plain lines, one a minute.

Everything goes to stderr. A log that cannot be written (because its disk is full) never ends the work; a
closed pipe does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from triptych import progress
from triptych.events import Event
from triptych.progress import Moment
from triptych.terminal.words import plain
from triptych.wording.amounts import duration
from triptych.wording.commands import typed

INTERVAL = 60.0
"""Seconds without a line after which a log file gets one."""
WARM_UP = 3
"""Finished units that an estimate of the remaining time needs: the first units load and warm up. A run of few
units has long ones, so there the parts of a unit count too.
"""
NOTE = 60
"""Most characters of a note beside a bar."""


@dataclass
class Row:
    """The progress of one stage. Kept units took no time, so only the others count for the remaining time."""

    name: str
    total: int = 0
    done: int = 0
    kept: int = 0
    share: float = 0.0
    note: str = ""
    moment: Moment | None = None
    started: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)
    """Start time of the first unit that takes time."""
    task: TaskID | None = None

    def hear(self, moment: Moment) -> None:
        self.moment = moment
        if moment.share is not None:
            self.share = min(moment.share, 0.99)
        elif self.done == self.kept:
            self.began = time.monotonic()

    def finish(self, event: Event) -> None:
        if event.of and self.done >= self.total:  # another run of the same stage: add up their counts
            self.total += event.of
        self.done, self.share, self.moment = self.done + 1, 0.0, None
        if event.status == "kept":
            self.kept += 1
            if self.done == self.kept:
                self.began = time.monotonic()
        self.note = f"{event.id} {event.note}".strip()

    def count(self) -> str:
        return f"{self.done}/{self.total}" if self.total else str(self.done) if self.done else ""

    def left(self) -> str:
        """`about 4 min left`; empty while unknown."""
        fresh, spent = self.done - self.kept + self.share, time.monotonic() - self.began
        if not self.total or fresh <= 0 or spent < 2 or self.done >= self.total:
            return ""
        if fresh < WARM_UP and self.total - self.kept > 3 * WARM_UP:
            return ""
        return f"about {duration(max(1, round(spent / fresh * (self.total - self.done - self.share))))} left"

    def doing(self) -> str:
        if self.moment is None:
            return ""
        return self.moment.doing + (f" {self.moment.done}/{self.moment.of}" if self.moment.of else "")

    def words(self) -> str:
        """The row as a line of a log."""
        parts = [
            f"{self.name} {self.count()}".rstrip(),
            self.doing(),
            self.note.removesuffix("."),
            duration(time.monotonic() - self.started),
            self.left(),
        ]
        return ", ".join(part for part in parts if part)


class _Column(ProgressColumn):
    """A part of a row, drawn again at every refresh."""

    def __init__(self, part: str, style: str = "") -> None:
        # At a narrow terminal the last part alone becomes shorter: a bar that wraps is no bar.
        super().__init__(Column(no_wrap=part != "rest"))
        self._part, self._style = part, style

    def render(self, task: Task) -> Text:
        row: Row = task.fields["row"]
        if self._part == "elapsed":
            return self._line(duration(round(task.finished_time or task.elapsed or 0)))
        if self._part == "rest":
            return self._line(plain(" ".join(part for part in (row.doing(), row.note) if part))[:NOTE])
        return self._line(plain(row.name) if self._part == "name" else getattr(row, self._part)())

    def _line(self, text: str) -> Text:
        return Text(text, self._style, no_wrap=True, overflow="ellipsis")


class Screen:
    """The output of a command."""

    def __init__(self, quiet: bool = False, interval: float = INTERVAL) -> None:
        """interval: in seconds, see `INTERVAL`."""
        self.interval = interval
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._lock = threading.Lock()
        self._last = time.monotonic()

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def say(self, text: str, style: str = "") -> None:
        """Print one line. If the log cannot be written, the line is lost, but the work goes on."""
        with self._lock:
            self._last = time.monotonic()
            try:
                self.console.print(Text(plain(typed(text)), style), soft_wrap=True)
            except BrokenPipeError:
                raise
            except OSError:
                pass

    def explain(self, message: str, hint: str = "") -> None:
        """Print an error and its hint."""
        for word, text, style in (("error:", message, "bold red"), ("hint:", hint, "bold")):
            if text:
                with self._lock, contextlib.suppress(OSError):
                    self.console.print(Text.assemble((word, style), " ", plain(typed(text))), soft_wrap=True)

    @contextlib.contextmanager
    def watch(self, name: str) -> Iterator[Watch]:
        """Show the progress of a stage, even before its first event; `name` is shown until an event gives
        another one.
        """
        watch = Watch(self, name)
        with progress.listening(watch.hear), watch.shown():
            yield watch

    def silent_for(self) -> float:
        return time.monotonic() - self._last


class Watch:
    """The rows of one command."""

    def __init__(self, screen: Screen, name: str) -> None:
        self._screen, self._bars = (
            screen,
            None if not screen.is_terminal or screen.console.quiet else _bars(screen.console),
        )
        self._rows: dict[str, Row] = {}
        self._row = Row(name)
        self._name, self._total = name, 0
        self._told = name, -1

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        if self._bars is not None:
            with self._bars:
                self._place(self._row)
                yield
                self._settle()
            return
        stop = threading.Event()
        pulse = threading.Thread(target=self._pulse, args=(stop,), name="progress", daemon=True)
        pulse.start()
        try:
            yield
            self._settle()
        finally:
            stop.set()
            pulse.join()

    def _pulse(self, stop: threading.Event) -> None:
        interval = self._screen.interval
        while not stop.wait(min(1.0, interval / 4)):
            row = self._row
            # What has no end, such as a server, waits for most of its time: that is said once.
            waits = not row.total and row.done and row.moment is None and self._told == (row.name, row.done)
            if self._screen.silent_for() >= interval and not waits:
                with contextlib.suppress(OSError):  # the next line of the work itself will meet the error too
                    self._tell(row)

    def _tell(self, row: Row) -> None:
        """Say how a row is, as a line of a log."""
        self._told = row.name, row.done
        self._screen.say(row.words())

    def hear(self, moment: Moment) -> None:
        if (
            self._row.total and self._row.done >= self._row.total
        ):  # the following moments belong to a stage whose name is not known yet
            self._settle()
            self._row = Row(self._name)
            if self._bars is not None:
                self._place(self._row)
        self._row.hear(moment)
        if self._bars is not None and self._row.task is not None:
            self._bars.update(self._row.task, completed=self._row.done + self._row.share)

    def expect(self, total: int) -> None:
        """Set the number of expected units, if it is known."""
        self._total = self._row.total = total
        if self._bars is not None and self._row.task is not None:
            self._bars.update(self._row.task, total=total or None)

    def event(self, event: Event) -> None:
        """Show that a unit of work is finished."""
        name = event.stage or self._name
        if name not in self._rows:
            self._begin(name, event.of or self._total)
        row = self._rows[name]
        if (
            self._row is not row
            and self._bars is not None
            and self._row.task is not None
            and not self._row.done
        ):
            self._bars.remove_task(self._row.task)
        self._row = row
        row.finish(event)
        if self._bars is not None:
            assert row.task is not None
            self._bars.update(row.task, completed=row.done, total=row.total or None)
        elif event.status == "rejected":
            self._screen.say(f"{row.name} {row.count()} {event.id} rejected: {event.note}".rstrip(": "))
        elif self._screen.silent_for() >= self._screen.interval:
            self._tell(row)

    def _begin(self, name: str, total: int) -> None:
        self._settle()
        row = self._rows[name] = Row(name, total)
        if not self._row.done:  # the row so far stood for this stage, before its first event
            row.task, row.started, row.began = self._row.task, self._row.started, self._row.began
        self._row = row
        if self._bars is None:
            self._screen.say(f"{name}: {total} to do" if total else f"{name}: begun")
        elif row.task is None:
            self._place(row)
        else:
            self._bars.update(row.task, row=row, total=total or None)

    def _place(self, row: Row) -> None:
        assert self._bars is not None
        row.task = self._bars.add_task(row.name, total=row.total or None, row=row)

    def _settle(self) -> None:
        """The last stage has ended: print its last line."""
        row = self._row
        if not row.done:
            return
        row.moment, row.note = None, ""
        if self._bars is None:
            self._screen.say(f"{row.name}: {row.count()} in {duration(time.monotonic() - row.started)}")
        elif row.task is not None:
            self._bars.update(row.task, total=row.done, completed=row.done)
            self._bars.stop_task(row.task)


def _bars(console: Console) -> Progress:
    columns = (
        SpinnerColumn(finished_text=" ", table_column=Column(no_wrap=True)),
        _Column("name", "bold"),
        BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
        _Column("count"),
        _Column("elapsed", "dim"),
        _Column("left", "cyan"),
        _Column("rest", "dim"),
    )
    return Progress(*columns, console=console, refresh_per_second=5)


__all__ = ["INTERVAL", "Row", "Screen", "Watch"]
