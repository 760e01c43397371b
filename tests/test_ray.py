"""A stage on a Ray cluster writes what it writes here. `make test-ray` installs Ray and runs these."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from triptych.errors import InputError, ModelError, WorkError
from triptych.execution import Engine, PerWorker, execute
from triptych.verbs.concat import concat

from .test_concat import Shop
from .test_execution import files_of

pytestmark = pytest.mark.ray
ENGINE = Engine(None, 200 << 20, wants_card=False)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Tools:
    def __init__(self, factor: int) -> None:
        self.factor, self.pid = factor, os.getpid()


def times(item: int, tools: Tools) -> tuple[int, int]:
    time.sleep(0.05)
    if item == 1000:
        raise InputError("Item 1000 is a mistake.", "Leave it out.")
    return item * tools.factor, tools.pid


@pytest.mark.parametrize("threads", [0, 2])
def test_items_come_back_in_order_from_workers_of_their_own(threads: int) -> None:
    items = range(200)  # work for so long that the second worker has started
    made = list(execute(times, items, PerWorker(Tools, 3), threads, on=ENGINE))
    assert [value for value, _ in made] == [3 * item for item in items]
    pids = {pid for _, pid in made}
    assert os.getpid() not in pids and len(pids) == 2
    assert not list(execute(times, [], PerWorker(Tools, 3), threads, on=ENGINE))


def test_a_mistake_of_an_item_is_told_as_here() -> None:
    with pytest.raises(InputError, match="Item 1000 is a mistake") as caught:
        list(execute(times, [1, 1000, 2], PerWorker(Tools, 1), on=ENGINE))
    assert caught.value.hint == "Leave it out."


def test_a_worker_that_is_killed_loses_nothing() -> None:
    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    results, killed = execute(times, range(60), PerWorker(Tools, 1), on=ENGINE), []
    made = []
    for value, pid in results:
        made.append(value)
        if len(made) == 5:
            threading.Thread(target=kill, args=(pid,)).start()
            killed.append(pid)
    assert made == list(range(60))
    assert not psutil.pid_exists(killed[0]) or psutil.Process(killed[0]).status() == "zombie"


def test_a_cluster_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    elsewhere = Engine("127.0.0.1:1", 200 << 20, wants_card=False)
    with pytest.raises((ModelError, WorkError), match="cannot be reached"):
        list(execute(times, [1], PerWorker(Tools, 1), on=elsewhere))


def test_concat_on_a_cluster_is_concat_here(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.full("a", 3)
    shop.full("b")
    shop.full("broken")
    (shop.root / "raw/broken/front.png").write_bytes(b"no picture")
    here = shop.concat()
    expected = files_of(shop.folder)
    there = concat(shop.config(triptychs=shop.root / "there", engine="ray")).finish()
    assert files_of(shop.root / "there") == expected
    assert {key: there[key] for key in ("made", "rejected", "reasons")} == {
        key: here[key] for key in ("made", "rejected", "reasons")
    }
