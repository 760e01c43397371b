"""What rehearsals of models in full size share: a stopwatch that tells how far it is, and the machine's
peak.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from triptych.training.log import duration, peak_memory_gib

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


class Meter:
    """Seconds (of the clock, and of the processor) and floating-point operations by phase; the progress of
    the blocks on stderr.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.flop: dict[str, int] = {}
        self._phase, self._begun, self._blocks, self._expected = "", 0.0, 0, 0

    @contextmanager
    def phase(self, name: str, blocks: int = 0) -> Iterator[None]:
        """blocks: how many block forwards are to come, for the progress."""
        outer = self._phase, self._expected
        self._phase, self._begun, self._blocks, self._expected = name, time.monotonic(), 0, blocks
        begun, cpu_begun = self._begun, time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - cpu_begun
            print(
                f"{name}: {self.seconds[name]:.1f} s, peak memory {peak_memory_gib(torch.device('cpu')):.2f} "
                "GiB",
                file=sys.stderr,
            )
            (self._phase, self._expected), self._begun, self._blocks = outer, time.monotonic(), 0

    def timed(self, name: str, function: Callable[..., Any], blocks: int = 0) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name, blocks):
                return function(*args, **kwargs)

        return wrapped

    def watch(self, layers: Iterable[nn.Module], blocks: Iterable[nn.Module]) -> None:
        """Count what the matrix products of these layers take, and the runs of these blocks."""
        for layer in layers:
            layer.register_forward_hook(self._product)
        for block in blocks:
            block.register_forward_pre_hook(self._block)  # recomputation stops before a block's end

    def _product(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        rows = inputs[0].numel() // layer.in_features  # type: ignore[operator]
        self.flop[self._phase] = (
            self.flop.get(self._phase, 0) + 2 * rows * layer.in_features * layer.out_features
        )  # type: ignore[operator]

    def _block(self, *_: Any) -> None:
        self._blocks += 1
        if self._expected and self._blocks % max(1, self._expected // 8) == 0:
            left = (time.monotonic() - self._begun) / self._blocks * (self._expected - self._blocks)
            print(
                f"  {self._phase}: block {self._blocks} of {self._expected}, {duration(max(0.0, left))} left",
                file=sys.stderr,
            )


def matmul_peak(seconds: float = 3.0, dtype: torch.dtype = torch.float32, *, cpu: bool = False) -> float:
    """FLOP/s of the best matrix product out of those that fit into the time, of a large layer's shape. cpu:
    by processor seconds of each thread, which tell what the clock would if nothing else ran.
    """
    a, b = torch.randn(1024, 3072).to(dtype), torch.randn(3072, 12288).to(dtype)
    best, begun = 0.0, time.monotonic()

    def now() -> float:
        return time.process_time() / torch.get_num_threads() if cpu else time.monotonic()

    while time.monotonic() - begun < seconds or not best:
        start = now()
        a @ b
        best = max(best, 2 * a.shape[0] * b.numel() / (now() - start))
    return best
