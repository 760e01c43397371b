"""What try-on is timed with, whatever the family: pictures, rows of a table, a stopwatch, a fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from flux_like import Size

PERSONS = 8


def product(size: Size, seed: int) -> Image.Image:
    """A patterned garment over half of a white panel."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (size.width, size.height), "white")
    pattern = Image.fromarray(random.integers(0, 200, (12, 9, 3), dtype=np.uint8))
    cloth = pattern.resize((round(size.width * 0.6), round(size.height * 0.65)), Image.Resampling.BICUBIC)
    image.paste(cloth, ((size.width - cloth.width) // 2, (size.height - cloth.height) // 2))
    return image


def person(size: Size, seed: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(100 + seed).integers(0, 255, (24, 18, 3), dtype=np.uint8)
    ).resize((size.width, size.height))


def polygon(size: Size, share: float) -> np.ndarray:
    """A mask of that share of the panel, on the token grid so that the pipeline's nearest-neighbour mask is
    the same.
    """
    mask = np.zeros((size.height, size.width), dtype=np.float32)
    rows, columns = size.height // 16, size.width // 16
    tall, wide = round(rows * share**0.5), round(columns * share**0.5)
    top, left = (rows - tall) // 2, (columns - wide) // 2
    mask[top * 16 : (top + tall) * 16, left * 16 : (left + wide) * 16] = 1
    return mask


class Scene(Protocol):
    """A model, diffusers' pipeline around the same weights, and the pictures."""

    def stock(self, steps: int, *, kernels: bool = False) -> Any:
        """What a user of diffusers writes: one picture. kernels: on triptych's layers and attention."""

    def difference(self) -> int:
        """Largest difference of a channel, of 255, between the pipeline's picture and ours where both compute
        the same.
        """

    def warm_up(self) -> None:
        """Run each once: the first call allocates."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `targets` are the ratios to the pipeline on the same kernels that are aimed at,
    in float32 and in bfloat16.
    """

    name: str
    steps: int
    run: Callable[[Any], list[Image.Image]]
    targets: tuple[float, float]
    pictures: int = 1


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def timed_twice(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock, and of the processor: on a shared machine the second says what the first would be
    alone.
    """
    start = time.process_time()
    seconds, result = timed(run)
    return seconds, time.process_time() - start, result


def best(run: Callable[[], Any], seconds: float) -> float:
    """The shortest time of one call, of as many as fit into `seconds`."""
    run()
    times = [timed(run)[0]]
    while sum(times) < seconds:
        times.append(timed(run)[0])
    return min(times)


def measure(scene: Scene, row: Row, number: int) -> dict[str, Any]:
    """Both pipelines, then this row; seconds per picture."""
    made: dict[str, Any] = {"name": row.name, "steps": row.steps, "round": number}
    for who, run, pictures in (
        ("stock", lambda: scene.stock(row.steps), 1),
        ("kernels", lambda: scene.stock(row.steps, kernels=True), 1),
        ("ours", lambda: row.run(scene), row.pictures),
    ):
        seconds, cpu_seconds, _ = timed_twice(run)
        made |= {f"{who}_s": seconds / pictures, f"{who}_cpu_s": cpu_seconds / pictures}
    return made


def ratio(run: dict[str, Any], pipeline: str, clock: str = "_s") -> float:
    """How many times as long a pipeline took, `stock` or `kernels`. clock: `_s`, or `_cpu_s` for CPU time."""
    return float(run[pipeline + clock] / run["ours" + clock])


def line(tokens: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """The straight line through a step's seconds by its active tokens, by least squares: seconds without any,
    seconds for each, and the largest distance from the line as a share.
    """
    slope, start = np.polyfit(np.asarray(tokens, float), np.asarray(seconds, float), 1)
    off = np.abs(start + slope * np.asarray(tokens) - seconds) / seconds
    return {"start_s": float(start), "per_token_s": float(slope), "off": float(off.max())}
