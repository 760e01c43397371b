"""A run: gone through once, closed by whoever wants it to end, and its events carry what was made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.errors import WorkError
from triptych.events import Event, Run, held
from triptych.store.folder import StageFolder


def a_run(folder: Path, units: int = 3, *, ended: list[str] | None = None) -> Run:
    """A run that writes a file per unit while it holds `folder`."""
    summary = {"made": 0}

    def work() -> Iterator[Event]:
        try:
            for unit in range(units):
                file = folder / f"{unit}.txt"
                file.write_text("made")
                summary["made"] += 1
                yield Event(str(unit), result=file)
        finally:
            if ended is not None:
                ended.append("cleared up")

    return Run("stage", units, held(StageFolder(folder, "stage", {}), work), summary)


def is_free(folder: Path) -> bool:
    """Whether nobody writes to `folder`."""
    try:
        with StageFolder(folder, "stage", {}).open():
            return True
    except WorkError:
        return False


def test_a_list_of_a_run_has_its_length_and_what_was_made(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    events = list(run)
    assert len(events) == len(run) == 3
    assert [event.result.read_text() for event in events] == ["made"] * 3


def test_a_run_is_true_even_if_nobody_knows_its_length() -> None:
    assert Run("run", 0, iter([Event("x")]), {})


def test_a_second_pass_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    list(run)
    with pytest.raises(RuntimeError, match=r"run of stage was begun before.*call stage again"):
        list(run)
    assert run.finish() == {"made": 3}, "all is done"


def test_finish_does_what_is_left(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for event in run:
        assert event.id == "0"
        break
    with pytest.raises(RuntimeError, match="begun before"):
        next(iter(run))
    assert run.finish() == {"made": 3}


def test_a_closed_run_lets_the_folder_go_and_does_nothing_more(tmp_path: Path) -> None:
    ended: list[str] = []
    run = a_run(tmp_path, ended=ended)
    assert next(iter(run)).id == "0"
    assert not is_free(tmp_path)
    run.close()
    assert is_free(tmp_path) and ended == ["cleared up"]
    assert run.summary == {"made": 1} and not (tmp_path / "1.txt").exists()
    for again in (run.finish, lambda: list(run)):
        with pytest.raises(RuntimeError, match=r"is closed. Call stage again"):
            again()
    run.close()


def test_a_run_that_was_never_begun_can_be_closed(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.close()
    assert not list(tmp_path.glob("*.txt")) and next(run, None) is None


def test_the_end_of_a_with_block_closes_the_run(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        next(run)
    assert is_free(tmp_path)
    with pytest.raises(ZeroDivisionError), a_run(tmp_path) as run:
        next(run)
        raise ZeroDivisionError
    assert is_free(tmp_path)
    with a_run(tmp_path) as run:
        assert run.finish() == {"made": 3}
    assert run.finish() == {"made": 3}, "it came to its end"


def test_another_thread_may_close_a_run_that_waits(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    next(run)
    closer = threading.Thread(target=run.close)
    closer.start()
    closer.join()
    assert is_free(tmp_path) and next(run, None) is None


def test_another_thread_may_close_a_run_that_is_at_work(tmp_path: Path) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def work() -> Iterator[Event]:
        for unit in range(3):
            at_work.set()
            assert go_on.wait(10)
            yield Event(str(unit))

    run = Run("stage", 3, held(StageFolder(tmp_path, "stage", {}), work), {})
    seen: list[Event] = []
    worker = threading.Thread(target=lambda: seen.extend(run))
    worker.start()
    assert at_work.wait(10)
    run.close()
    go_on.set()
    worker.join(10)
    assert [event.id for event in seen] == ["0"] and is_free(tmp_path)


def test_a_mistake_while_closing_is_not_swallowed() -> None:
    def work() -> Iterator[Event]:
        try:
            yield Event("x")
        finally:
            raise ValueError("while clearing up")

    run = Run("stage", 1, work(), {})
    next(run)
    with pytest.raises(ValueError, match="clearing up"):
        run.close()


def test_nested_events_carry_the_inner_run(tmp_path: Path) -> None:
    inner = Run("inner", 2, iter([Event("x"), Event("y")]), {})
    assert [(event.stage, event.of) for event in inner.nested()] == [("inner", 2)] * 2


def test_closing_an_outer_run_closes_the_inner_one(tmp_path: Path) -> None:
    inner = a_run(tmp_path)
    outer = Run("outer", 0, inner.nested(), {})
    assert next(outer).stage == "stage" and not is_free(tmp_path)
    outer.close()
    assert is_free(tmp_path)
