"""Runs the pure work of a stage on a cluster, by Ray Data. The rest of the stage stays in this process.

An item, `make` and the recipe of the tools travel as bytes; what is made comes back as bytes, in the order of
the items. Each worker builds its tools once. A worker that ends is started again by Ray, and its items are
made again: `make` changes nothing, so that does no harm. What this process has recorded is on the disk, so
the same command goes on from there if this process ends.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
    ray = _started(engine)
    at_once = 2 * threads or 1
    cards = int(ray.cluster_resources().get("GPU", 0)) if engine.wants_card else 0
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


def _started(engine: Engine) -> Any:
    """The module `ray`, connected to the cluster; quiet."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ModelError("Ray is not installed.", "pip install 'triptych[ray]'.") from error
    if not ray.is_initialized():
        here = {} if engine.address else {"object_store_memory": engine.object_store_bytes}
        try:
            with _silent():
                ray.init(
                    address=engine.address,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=False if not engine.address else None,
                    **here,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The Ray cluster {engine.address or 'on this machine'} cannot be reached: {error}.",
                "Give --address auto on a machine of the cluster, or ray://HEAD:10001 from outside.",
            ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=engine.object_store_bytes)
    context.execution_options.resource_limits = limits
    context.enable_progress_bars = False
    return ray


@contextlib.contextmanager
def _silent() -> Iterator[None]:
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
