"""Runs the pure work of a stage: in this process, in order or in threads, or on a cluster.

A stage has three functions. `todo` returns the work as a list of small items. `make` makes one item with the
tools of a worker and changes nothing else. `record` writes the results; it is the only writer and stays in
the process that holds the folder. Only items, `make` and the recipe of the tools go to a worker, so they are
functions and values that pickle can carry: no closures.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
Tools = TypeVar("Tools")


class PerWorker(Generic[Tools]):
    """The tools of a worker, such as a network or a captioner; built once, at first use.

    It goes to another worker as the function that builds the tools, with that function's arguments.
    """

    def __init__(self, build: Callable[..., Tools], *given: Any) -> None:
        self._build, self._given = build, given
        self._lock, self._built = threading.Lock(), list[Tools]()

    def __call__(self) -> Tools:
        with self._lock:
            if not self._built:
                self._built.append(self._build(*self._given))
            return self._built[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return PerWorker, (self._build, *self._given)

    def close(self) -> None:
        """Stop using the tools: tools with a `close` end their waiting."""
        for tools in self._built:
            if close := getattr(tools, "close", None):
                close()


class Executor(Protocol):
    """Makes items, one or several at a time, and yields the results in order."""

    def __call__(
        self,
        make: Callable[[Any, Any], Any],
        items: Iterable[Any],
        tools: PerWorker[Any],
        threads: int,
    ) -> Iterator[Any]: ...


def in_process(
    make: Callable[[Item, Tools], Made], items: Iterable[Item], tools: PerWorker[Tools], threads: int = 0
) -> Iterator[Made]:
    """The results of `make(item, tools())` for all items, in order.

    threads: number of items made at the same time, with a few more waiting; 0 makes each item in the caller's
    own thread when its turn comes.

    However this ends, active threads are waited for, because their work may have been paid for. After an
    error, or if the caller stops iterating, the tools are closed and no new item is begun.

    Raises:
        Exception: the first one that any `make` raised.
    """
    trouble: list[Exception] = []

    def one(item: Item) -> Made:
        try:
            return make(item, tools())
        except Exception as error:
            trouble.append(error)
            tools.close()  # stops the other threads too
            if trouble[0] is error:
                raise
            raise trouble[0] from None

    if not threads:
        yield from map(one, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="make")
    window: deque[Future[Made]] = deque()
    try:
        for item in items:
            window.append(pool.submit(one, item))
            if len(window) >= 2 * threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        tools.close()
        pool.shutdown(wait=True, cancel_futures=True)


_executor: ContextVar[Executor] = ContextVar("executor", default=in_process)


@contextlib.contextmanager
def using(executor: Executor) -> Iterator[None]:
    """Within this context, stages use `executor`."""
    token = _executor.set(executor)
    try:
        yield
    finally:
        _executor.reset(token)


@dataclass(frozen=True)
class Engine:
    """A Ray cluster. address: see `ray.init`; None starts one here. object_store_bytes: most memory for items
    on their way. wants_card: whether a worker takes a card for itself, if the cluster has any.
    """

    address: str | None
    object_store_bytes: int
    wants_card: bool


def execute(
    make: Callable[[Item, Tools], Made],
    items: Iterable[Item],
    tools: PerWorker[Tools],
    threads: int = 0,
    on: Engine | None = None,
) -> Iterator[Made]:
    """The results of `make` for all items, in order: with the executor in use, or on a cluster.

    Raises:
        ModelError: Ray is not installed, or the cluster cannot be reached.
    """
    if on is not None:
        from triptych.execution_ray import on_ray

        return on_ray(on, make, items, tools, threads)
    return _executor.get()(make, items, tools, threads)
