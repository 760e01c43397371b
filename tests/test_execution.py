"""todo · make · record: who makes the items, in which order, and that all of it can travel to a worker."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_concat import Shop
from triptych.execution import PerWorker, execute, in_process, using
from triptych.verbs.concat import concat


class Counted:
    """Tools that know how often they were built, and whether they are closed."""

    built = 0

    def __init__(self, factor: int) -> None:
        type(self).built += 1
        self.factor, self.closed = factor, threading.Event()

    def close(self) -> None:
        self.closed.set()


def times(item: int, tools: Counted) -> int:
    time.sleep(0.01 * (item % 3))  # later ones are often ready first
    return item * tools.factor


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_are_made_in_their_order_with_tools_that_are_built_once(threads: int) -> None:
    Counted.built = 0
    tools = PerWorker(Counted, 2)
    assert list(execute(times, range(10), tools, threads)) == [2 * item for item in range(10)]
    assert Counted.built == 1
    assert not list(execute(times, [], PerWorker(Counted, 2), threads)) and Counted.built == 1, "none needed"


def test_no_more_is_begun_than_the_window_holds() -> None:
    begun: list[int] = []

    def make(item: int, tools: Counted) -> int:
        begun.append(item)
        return item

    tools = PerWorker(Counted, 1)
    results = execute(make, iter(range(100)), tools, 2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(begun) <= 4
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4 and tools().closed.is_set()


def test_the_first_mistake_ends_all_and_is_the_one_that_is_told() -> None:
    def make(item: int, tools: Counted) -> int:
        if item == 1:
            raise ValueError("the first")
        if item > 1:
            raise RuntimeError("came later" if tools.closed.wait(5) else "nobody closed the tools")
        return item

    for threads in (0, 3):
        seen: list[int] = []
        with pytest.raises(ValueError, match="the first"):
            seen.extend(execute(make, range(50), PerWorker(Counted, 1), threads))


def test_tools_travel_as_their_recipe() -> None:
    Counted.built = 0
    tools = PerWorker(Counted, 3)
    assert tools().factor == 3
    there: PerWorker[Counted] = pickle.loads(pickle.dumps(tools))
    assert Counted.built == 1
    assert there().factor == 3 and Counted.built == 2


class Cluster:
    """An executor elsewhere: what goes to its workers and comes back is bytes, and each has tools of its
    own.
    """

    def __init__(self, workers: int = 2) -> None:
        self.workers, self.made, self.largest = workers, 0, 0

    def __call__(
        self,
        make: Callable[[Any, Any], Any],
        items: Iterable[Any],
        tools: PerWorker[Any],
        threads: int = 0,
    ) -> Iterator[Any]:
        recipe = pickle.dumps((make, tools))
        workers = [pickle.loads(recipe) for _ in range(self.workers)]
        for number, item in enumerate(items):
            parcel = pickle.dumps(item)
            self.largest = max(self.largest, len(parcel))
            there, its_tools = workers[number % self.workers]
            back = pickle.dumps(next(iter(in_process(there, [pickle.loads(parcel)], its_tools))))
            self.made += 1
            yield pickle.loads(back)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_concat_elsewhere_is_concat_here(shop: Shop) -> None:
    shop.full("a", 3)
    shop.full("b")
    shop.full("broken")
    (shop.root / "raw/broken/front.png").write_bytes(b"no picture")
    here = shop.concat()
    expected = files_of(shop.folder)
    cluster = Cluster()
    with using(cluster):
        there = concat(shop.config(triptychs=shop.root / "there")).finish()
    assert cluster.made == 5 and cluster.largest < 10_000
    assert files_of(shop.root / "there") == expected
    assert {key: there[key] for key in ("made", "rejected", "reasons")} == {
        key: here[key] for key in ("made", "rejected", "reasons")
    }
