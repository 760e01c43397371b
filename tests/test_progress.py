"""Progress: signs of life in logs, bars that move, counts and times that are right."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from triptych import cli, progress
from triptych.events import Event, Run
from triptych.progress import Moment
from triptych.terminal.screen import Row, Screen


def slow_run(units: int, steps: int, pause: float) -> Run:
    def work() -> Iterator[Event]:
        progress.doing("loading the model")
        time.sleep(pause)
        for unit in range(units):
            for done in range(1, steps + 1):
                time.sleep(pause)
                progress.step("step", done, steps)
            yield Event(f"picture {unit}")

    return Run("generate", units, work(), {})


def follow(shown: Screen, run: Run) -> None:
    with shown.watch(run.name) as watch:
        cli._follow(run, watch)


def test_a_log_file_gets_a_sign_of_life_also_within_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    follow(Screen(interval=0.1), slow_run(units=2, steps=4, pause=0.12))
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("generate 0/2, loading the model") for line in lines)
    assert any(re.match(r"generate 0/2, step [1-4]/4", line) for line in lines)
    assert lines[-1].startswith("generate: 2/2 in ")
    follow(Screen(), Run("train", 1000, iter([Event(f"step {n}") for n in range(1000)]), {}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 1000 to do" and lines[1].startswith("train: 1000/1000 in ") and len(lines) == 2


def test_a_server_that_waits_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Iterator[Event]:
        yield Event("listening")
        time.sleep(0.6)
        yield Event("tryon 1")
        time.sleep(0.4)

    follow(Screen(interval=0.1), Run("serve", 0, work(), {}))
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert [line for line in lines if not line.startswith("serve:")] == ["serve 1", "serve 2"]


def test_a_bar_takes_one_line_however_narrow_the_terminal_is() -> None:
    shown, drawn = Screen(), io.StringIO()
    shown.console = Console(file=drawn, force_terminal=True, width=60)
    with shown.watch("roles") as watch:
        watch.expect(8)
        watch.event(Event("a-long-name.jpeg", "rejected", "the answer names no role, or several"))
    *_, bar = (line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue()).splitlines() if line)
    assert "roles" in bar and "1/8" in bar and len(bar) <= 60
    assert not [line for line in drawn.getvalue().splitlines() if "or several" in line]


def test_a_bar_moves_within_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Screen()
    shown.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    seen: list[float] = []
    with shown.watch("generate") as watch:
        hear = watch.hear

        def spy(moment: progress.Moment) -> None:
            hear(moment)
            if watch._bars is not None and watch._bars.tasks:
                seen.append(watch._bars.tasks[0].completed)

        with progress.listening(spy):
            cli._follow(slow_run(units=2, steps=4, pause=0.01), watch)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 0.99, 1.25, 1.5, 1.75, 1.99])
    assert "2/2" in shown.console.file.getvalue()  # type: ignore[attr-defined]


def test_counts_of_several_runs_of_one_stage_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Iterator[Event]:
        for one in range(6):
            yield from Run("tryon", 1, iter([Event(str(one))]), {}).nested()

    follow(Screen(), Run("demo", 0, work(), {}))
    assert "tryon: 6/6 in" in capsys.readouterr().err.splitlines()[-1]


def test_what_was_kept_does_not_count_for_the_time_that_is_left() -> None:
    row = Row("train", 100)
    for one in range(50):
        row.finish(Event(str(one), "kept"))
    assert row.left() == ""
    row.began -= 30
    row.hear(Moment("pass", 1, 2, 0.5))
    assert row.left() == ""  # the first units load and warm up
    for one in range(3):
        row.finish(Event(str(one)))
    assert row.left() == "about 7 min 50 s left"


def test_a_picture_within_a_unit_is_no_part_of_it() -> None:
    heard: list[Moment] = []
    with progress.listening(heard.append), progress.within("validation picture"):
        progress.step("step", 7, 8)
    row = Row("train", 20)
    row.hear(heard[0])
    assert (row.doing(), row.share) == ("validation picture, step 7/8", 0.0)
