"""What every part of `gpu.py` shares: rows of figures that are written as they come, limits of time,
clocks and memory."""

from __future__ import annotations

import gc
import importlib
import json
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

GIB = 2**30
Figures = dict[str, Any]


class OutOfTime(BaseException):
    """A part's time is up. Not an Exception: what a stage does about failures is not meant for it."""


class Skip(Exception):
    """A row or part that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Part:
    """seconds: it may take. home: `module:function` in this package; the function writes rows into the
    bench, and its docstring stands above their table."""

    name: str
    seconds: float
    home: str

    def load(self) -> Callable[[Bench], None]:
        module, _, function = self.home.partition(":")
        found: Callable[[Bench], None] = getattr(importlib.import_module(f"gpu_parts.{module}"), function)
        return found


@dataclass(frozen=True)
class Variant:
    """One thing to time. units: pictures or noise levels in one run. plan: the question to `triptych plan`
    (see `plans`). first: a shorter run of the same memory, before any is timed."""

    run: Callable[[], Any]
    units: int = 1
    plan: Figures | None = None
    first: Callable[[], Any] | None = None

    def cost(self, row: Figures) -> float:
        """Seconds that another run will take at most, by what was measured."""
        known = [float(one) * self.units for one in row.get("all_s", ())]
        return max(known) if known else float(row["first_s"])


class Bench:
    """Runs parts one after another until the budget is spent. `results` lies in results.json and as tables
    in results.md after each row."""

    def __init__(self, out: Path, work: Path, device: torch.device, tiny: bool, end: float) -> None:
        """work: a folder for models and embeddings. tiny: shapes that a CPU computes at once. end: of the
        budget, by time.monotonic()."""
        self.out, self.work, self.device, self.tiny = out, work, device, tiny
        self.card = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.card else torch.float32
        self.results: dict[str, Any] = {"about": {}, "parts": {}}
        self._end = self._part_end = end
        self._rows: dict[str, Figures] = {}
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds that the part at work still has."""
        return self._part_end - time.monotonic()

    def run(self, part: Part) -> None:
        """Measure a part, whatever happens in it; its state is `done`, `skipped: why`, `out of time` or
        `failed: why`."""
        about: dict[str, Any] = {"title": "", "state": "running", "rows": {}}
        self.results["parts"][part.name], self._rows = about, about["rows"]
        begun = time.monotonic()
        self._part_end = min(self._end, begun + part.seconds)
        if self.left < 1:
            about["state"] = "skipped: the budget is spent"
            return self.save()
        signal.signal(signal.SIGALRM, _time_is_up)
        signal.setitimer(signal.ITIMER_REAL, self.left)
        try:
            try:
                measure = part.load()
            except ImportError as error:  # without this no figure at all: no case for a quiet "skipped"
                raise RuntimeError(f"cannot be loaded: {error}") from error
            about["title"] = " ".join((measure.__doc__ or "").split())
            measure(self)
            about["state"] = "done"
        except (OutOfTime, Exception) as error:
            about["state"] = _state(error)
            about["traceback"] = traceback.format_exc()[-2000:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            about["seconds"] = round(time.monotonic() - begun, 1)
            self._clean()
            self.save()

    def row(self, name: str, measure: Callable[[], Figures]) -> bool:
        """One row: the figures that `measure` returns, or why there are none. A figure `equal` that is
        False counts as a failure."""
        if self.left <= 0:
            raise OutOfTime
        figures = self._rows.setdefault(name, {})
        try:
            figures.update(measure())
            good = True
        except Exception as error:
            figures["state"], good = _state(error), False
            figures["traceback"] = traceback.format_exc()[-2000:]
        self._clean()
        self.save()
        return good

    def compare(self, base: str, variants: dict[str, Variant], rounds: int, sharing: int = 1) -> None:
        """A row for each variant: before every run of one runs `base`, so that the ratio of the two is of the
        same moment.

        Medians over the rounds; the first run of each is not timed, but its memory is taken. What no longer
        fits into the part's time is left out. sharing: so many variants follow on one run of `base`.
        """
        alive = {
            name: one for name, one in variants.items() if self.row(name, lambda one=one: self._first(one))
        }
        against = alive.get(base)
        others = [name for name in alive if name != base] or [base]
        seconds: dict[str, list[float]] = {name: [] for name in alive}
        ratios: dict[str, list[float]] = {name: [] for name in alive}
        for _ in range(rounds):
            for number, name in enumerate(others):
                before = against is not None and name != base and number % sharing == 0
                needed = alive[name].cost(self._rows[name]) + (
                    against.cost(self._rows[base]) if before and against is not None else 0.0
                )
                if self.left < 1.2 * needed:
                    return
                if before and against is not None:
                    seconds[base].append(self.seconds(against.run) / against.units)
                seconds[name].append(self.seconds(alive[name].run) / alive[name].units)
                if against is not None and name != base:
                    ratios[name].append(seconds[base][-1] / seconds[name][-1])
                self._timed(base, name, seconds, ratios)

    def _timed(
        self, base: str, name: str, seconds: dict[str, list[float]], ratios: dict[str, list[float]]
    ) -> None:
        """Medians so far, into the rows of a variant and of what it is compared with."""
        for key in {base, name}:
            if times := seconds.get(key):
                self._rows[key] |= {"s": median(times), "times": len(times), "all_s": times}
        if ratios[name]:
            self._rows[name] |= {f"× {base}": median(ratios[name]), "all_ratios": ratios[name]}
        self.save()

    def _first(self, one: Variant) -> Figures:
        begun = time.monotonic()
        figures = self.memory(one.first or one.run)
        figures["first_s"] = time.monotonic() - begun
        return figures if one.plan is None else self.ask(figures, "planned_gib", one.plan)

    @staticmethod
    def ask(figures: Figures, column: str, plan: Figures) -> Figures:
        """The same figures with a question to `plan`, which answers when nothing is timed any more."""
        figures.setdefault("plans", {})[column] = plan
        return figures

    def seconds(self, run: Callable[[], Any]) -> float:
        self.wait()
        begun = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - begun

    def memory(self, run: Callable[[], Any]) -> Figures:
        """What the card's allocator holds at most while `run` runs, model included."""
        if not self.card:
            run()
            return {}
        self._clean()
        torch.cuda.reset_peak_memory_stats()
        run()
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        }

    def waits(self, run: Callable[[], Any]) -> dict[str, int]:
        """The lines at which the host waits for the card, by torch's own account."""
        if not self.card:
            run()
            return {}
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        lines = [
            f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)
        ]
        return {line: lines.count(line) for line in dict.fromkeys(lines)}

    def wait(self) -> None:
        if self.card:
            torch.cuda.synchronize()

    def free_gib(self) -> float:
        """Memory of the card that nobody has; of the CPU, as much as is asked for."""
        return torch.cuda.mem_get_info()[0] / GIB if self.card else float("inf")

    def _clean(self) -> None:
        if self.card:
            gc.collect()
            torch.cuda.empty_cache()

    @property
    def failures(self) -> list[str]:
        """Parts and rows that failed, and rows of which something is not equal that has to be."""
        found = []
        for name, part in self.results["parts"].items():
            states = {name: part, **{f"{name}, {row}": figures for row, figures in part["rows"].items()}}
            found += [
                key
                for key, one in states.items()
                if one.get("state", "").startswith("failed") or one.get("equal") is False
            ]
        return found

    def save(self) -> None:
        for name, text in (
            ("results.json", json.dumps(self.results, indent=1, default=str)),
            ("results.md", tables(self.results)),
        ):
            aside = self.out / f"{name}.part"
            aside.write_text(text, encoding="utf-8")
            aside.replace(self.out / name)


def _time_is_up(*_: Any) -> None:
    raise OutOfTime


def _state(error: BaseException) -> str:
    if isinstance(error, OutOfTime):
        return "out of time"
    words = (str(error) or repr(error)).strip().splitlines()[0][:200]
    if isinstance(error, (Skip, ImportError, torch.OutOfMemoryError)):
        return f"skipped: {words}"
    return f"failed: {type(error).__name__}: {words}"


def tables(results: dict[str, Any]) -> str:
    """All results as markdown."""
    lines = ["; ".join(f"{key} {value}" for key, value in results["about"].items())]
    for name, part in results["parts"].items():
        took = f" ({part['seconds']} s)" if "seconds" in part else ""
        lines += ["", f"### {name}: {part['state']}{took}", "", part["title"]]
        lines += table(part["rows"]) if part["rows"] else []
    return "\n".join(lines) + "\n"


def table(rows: dict[str, Figures]) -> list[str]:
    shown = {
        name: {k: v for k, v in row.items() if not isinstance(v, (list, dict)) and k != "traceback"}
        for name, row in rows.items()
    }
    columns = list(dict.fromkeys(key for row in shown.values() for key in row))
    lines = ["", "| " + " | ".join(["", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    return [
        *lines,
        *(
            "| " + " | ".join([name, *(_cell(row.get(key)) for key in columns)]) + " |"
            for name, row in shown.items()
        ),
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
