"""Runs the pure work of a stage on a cluster, by Ray Data. The rest of the stage stays in this process.

An item, `make` and the recipe of the tools travel as bytes; what is made comes back as bytes, in the order of
the items. Each worker builds its tools once. A worker that ends is started again by Ray, and its items are
made again: `make` changes nothing, so that does no harm. What this process has recorded is on the disk, so
the same command goes on from there if this process ends.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from triptych.errors import ModelError, WorkError
from triptych.execution import Engine, PerWorker, in_process

log = logging.getLogger(__name__)

BLOCKS = 2000
"""Most blocks of a data set. What is made arrives block by block, and Ray keeps a record of each."""


def on_ray(
    engine: Engine,
    make: Callable[[Any, Any], Any],
    items: Iterable[Any],
    tools: PerWorker[Any],
    threads: int = 0,
) -> Iterator[Any]:
    """The results of `make` for all items, in order. threads: items that a worker makes at the same time.

    Raises:
        ModelError: Ray is not installed, or the cluster cannot be reached. WorkError: workers end again and
            again. Exception: the first one that any `make` raised.
    """
    todo = list(items)
    if not todo:
        return
    ray = connected(engine, "data")
    _prepare_data(engine)
    at_once = 2 * threads or 1
    cards = cards_of(ray, engine)
    workers = cards or max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = min(math.ceil(len(todo) / at_once), BLOCKS)
    pack = ray.cloudpickle.dumps
    rows = [{"item": pack(item)} for item in todo]
    del todo
    made = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Worker,
        fn_constructor_args=(pack((make, tools)), threads),
        batch_size=at_once,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(workers, blocks)),
        num_cpus=0 if cards else 1,
        num_gpus=1 if cards else 0,
    )
    try:
        for row in made.iter_rows():
            one = ray.cloudpickle.loads(row["made"])
            if row["failed"]:
                raise one
            yield one
    except ray.exceptions.RayError as error:
        raise WorkError(
            f"The cluster has given up: {str(error).splitlines()[-1][:300]}.",
            "Look at the memory of its machines; the same command goes on from what is done.",
        ) from error


class _Worker:
    """An actor: unpacks its recipe, and makes batches of items."""

    def __init__(self, recipe: bytes, threads: int) -> None:
        import ray

        self.make, self.tools = ray.cloudpickle.loads(recipe)
        self.threads = threads

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import ray

        made, failed = list[bytes](), list[bool]()
        try:
            items = [ray.cloudpickle.loads(item) for item in batch["item"]]
            for one in in_process(self.make, items, self.tools, self.threads):
                made.append(ray.cloudpickle.dumps(one))
        except Exception as error:  # a mistake travels as what was made, and is raised where all is told
            made.append(ray.cloudpickle.dumps(error))
            failed = [False] * (len(made) - 1) + [True]
        packed = np.empty(len(made), object)
        packed[:] = made
        return {"made": packed, "failed": np.array(failed or [False] * len(made))}


def connected(engine: Engine, part: Literal["data", "serve"]) -> Any:
    """The module `ray`, with a part of it, connected to the cluster; quiet.

    Raises:
        ModelError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray

        importlib.import_module(f"ray.{part}")
    except ImportError as error:
        raise ModelError("Ray is not installed.", "pip install 'triptych[ray]'.") from error
    if not is_connected():
        here = {} if engine.address else {"object_store_memory": engine.object_store_bytes}
        try:
            _knock(engine.address or "")
            with silent(), _own_signals():
                ray.init(
                    address=engine.address,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=False if not engine.address else None,
                    **here,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The Ray cluster {engine.address or 'on this machine'} cannot be reached: {error}.",
                "Give --address auto on a machine of the cluster, or ray://HEAD:10001 from outside.",
            ) from error
    for name in ("ray", f"ray.{part}"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT or ray://HOST:PORT: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def is_connected() -> bool:
    """Whether this process uses a cluster already; Ray is not imported for that."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def cards_of(ray: Any, engine: Engine) -> int:
    """Number of the cluster's cards that workers take, one each; 0 if they need none."""
    return int(ray.cluster_resources().get("GPU", 0)) if engine.wants_card else 0


def _prepare_data(engine: Engine) -> None:
    """Set how Ray Data works: in order, within its memory, without bars."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=engine.object_store_bytes)
    context.execution_options.resource_limits = limits
    context.enable_progress_bars = False


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Ray's C++ writes to the standard error whatever its log level; what goes wrong is raised as well."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray would end the process at SIGTERM. A handler of ours is kept, which ends the work as Ctrl-C does."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
