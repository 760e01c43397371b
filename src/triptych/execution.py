"""Who does the pure work of a stage: this process, in order or in threads, or whoever takes its place.

A stage is three functions. `todo` says what is to be done: a list of small items. `make` makes one of them
with the tools of a worker, and touches nothing else. `record` writes down what was made; it is the only
writer, and stays with whoever holds the folder. Only items, `make` and the recipe of the tools travel, so
these are functions and values that pickle can carry: no closures.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
Tools = TypeVar("Tools")


class PerWorker(Generic[Tools]):
    """The tools of a worker, such as a network or a captioner: built when they are first asked for, and once.

    It travels to another worker as the function that builds them and what that is given.
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
        """Ask no more of the tools: those that have a `close` let go of what they wait for."""
        for tools in self._built:
            if close := getattr(tools, "close", None):
                close()


class Executor(Protocol):
    """Makes items in their order, however many at a time."""

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
    """What `make(item, tools())` gives for every item, in their order.

    threads: how many items are made at the same time, with a few more waiting; 0 makes each in the caller's
        own thread, when its turn comes.

    However this ends, threads that are at work are waited for: what they do may have been paid for. After a
    mistake, or when nobody wants the rest, the tools are closed and nothing new is begun.

    Raises:
        Exception: the first one that any `make` has raised.
    """
    trouble: list[Exception] = []

    def one(item: Item) -> Made:
        try:
            return make(item, tools())
        except Exception as error:
            trouble.append(error)
            tools.close()  # the other threads stop as well
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
    """Within it, stages have their work done by `executor`."""
    token = _executor.set(executor)
    try:
        yield
    finally:
        _executor.reset(token)


def execute(
    make: Callable[[Item, Tools], Made], items: Iterable[Item], tools: PerWorker[Tools], threads: int = 0
) -> Iterator[Made]:
    """What `make` gives for every item, in their order; see `in_process`, which does it unless another
    executor is in use.
    """
    return _executor.get()(make, items, tools, threads)
