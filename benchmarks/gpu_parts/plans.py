"""What `triptych plan` says of the models that were measured: questions are noted beside the figures, and
answered when nothing is timed any more, on a card's machine or on any other."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flux_like import Size
from gpu_parts import klein, model
from gpu_parts.bench import GIB, Figures, tables
from triptych.pictures.panels import PanelLayout
from triptych.planning.memory import (
    CARD_OVERHEAD,
    PROCESS_RAM,
    Machine,
    Memory,
    embed_memory,
    held_weights,
    sampling_memory,
    train_memory,
)
from triptych.planning.shapes import ModelShapes, model_shapes
from triptych.sampling.options import Sampling, SamplingConfig
from triptych.tasks.tryon import TRY_ON
from triptych.training.config import TrainConfig

DESCRIBE = {"flux": model.describe, "flux2": klein.describe}


def question(made: model.Random, what: str, sampling: Sampling | None = None, **settings: Any) -> Figures:
    """What is to be asked of a random model. what: `training`, `sampling`, `weights` or `autoencoder`.
    settings: those of TrainConfig, SamplingConfig or held_weights; `rank` and `repainted` for sampling,
    `batch` for the autoencoder."""
    dtype = str(made.dtype).removeprefix("torch.")
    asked = {
        "family": made.family,
        "size": asdict(made.size),
        "dtype": dtype,
        "card": made.device.type == "cuda",
    }
    sampled = {} if sampling is None else {"sampling": asdict(sampling)}
    return {**asked, "what": what, **sampled, "settings": settings}


class Planner:
    """Answers questions. work: a folder for the models' descriptions."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._shapes: dict[str, ModelShapes] = {}

    def answer(self, asked: Figures) -> float:
        """GiB, without what `plan` assumes for CUDA or for Python: that the card's allocator does not
        count."""
        size, settings = Size(**asked["size"]), dict(asked["settings"])
        shapes, layout = self._shapes_of(asked["family"], size), TRY_ON.layout(size.width, size.height)
        machine = Machine(getattr(torch, asked["dtype"]), asked["card"])
        if asked["what"] == "weights":
            return held_weights(shapes, machine, **settings).device / GIB
        about = shapes, layout, size.words, machine
        kinds = {"training": _training, "sampling": _sampling, "autoencoder": _autoencoder}
        memory = kinds[asked["what"]](*about, asked.get("sampling"), settings)
        return (memory.total - (CARD_OVERHEAD if machine.card else PROCESS_RAM)) / GIB

    def _shapes_of(self, family: str, size: Size) -> ModelShapes:
        key = f"{family}-{'-'.join(map(str, asdict(size).values()))}"
        if key not in self._shapes:
            DESCRIBE[family](self._work / key, size)
            self._shapes[key] = model_shapes(str(self._work / key))
        return self._shapes[key]


def _training(
    shapes: ModelShapes, layout: PanelLayout, words: int, machine: Machine, _: Any, settings: dict[str, Any]
) -> Memory:
    config = TrainConfig(**{"batch_size": 1, "validation_steps": 0, **settings})
    return train_memory(shapes, config, layout, words, machine)


def _sampling(
    shapes: ModelShapes,
    layout: PanelLayout,
    words: int,
    machine: Machine,
    sampling: dict[str, Any],
    settings: dict[str, Any],
) -> Memory:
    rank, repainted = settings.pop("rank", 0), settings.pop("repainted", 1.0)
    config = SamplingConfig(**{"context_cache_gib": 0.0, **settings})
    about = shapes, config, Sampling(**sampling), layout, words, machine
    return sampling_memory(*about, rank=rank, repainted=repainted)


def _autoencoder(
    shapes: ModelShapes, layout: PanelLayout, words: int, machine: Machine, _: Any, settings: dict[str, Any]
) -> Memory:
    return embed_memory(shapes, settings["batch"], layout, words, machine)


def unanswered(results: Figures) -> Iterator[tuple[Figures, str, Figures]]:
    """Rows, columns and questions without an answer yet."""
    for part in results["parts"].values():
        for row in part["rows"].values():
            for column, asked in row.get("plans", {}).items():
                if column not in row:
                    yield row, column, asked


def answer_all(results: Figures) -> None:
    """Put the answers beside what was measured; a question that fails is a failure of its row, whose figures
    stay."""
    with tempfile.TemporaryDirectory(prefix="plan-") as work:
        planner = Planner(Path(work))
        for row, column, asked in unanswered(results):
            try:
                row[column] = planner.answer(asked)
            except Exception as error:
                row["state"] = f"failed: plan: {type(error).__name__}: {error}"


def answer_file(file: Path, out: Path) -> int:
    """The same for the results.json of an earlier run; results.json and results.md go into `out`."""
    results = json.loads(file.read_text(encoding="utf-8"))
    answer_all(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    page = tables(results)
    (out / "results.md").write_text(page, encoding="utf-8")
    print(page)
    states = [row.get("state", "") for part in results["parts"].values() for row in part["rows"].values()]
    failed = [state for state in states if state.startswith("failed: plan")]
    for state in failed:
        print(f"FAILED: {state}", file=sys.stderr)
    return int(bool(failed))
