"""Find the smallest change of settings that makes a stage fit, by the memory model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.pictures.panels import PanelLayout
from triptych.training.config import TrainConfig

Change = dict[str, Any]
"""New values of settings, by name."""

PANEL_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Sides of smaller panels, as shares of the requested ones. Below these, too little of a garment is left."""


def smallest_change(
    choices: Sequence[Sequence[Change]], size: Callable[[Change], float], room: float
) -> Change | None:
    """The first combination of changes that fits, with redundant parts removed; None if nothing fits.

    choices: one list of changes per setting, cheapest setting first; within a list, from the mildest to the
    strongest change. A choice is added to the strongest changes of the lists before it. size: the need after
    a change, in the unit of `room`; it falls along each list.
    """
    made: list[Change] = []
    for values in choices:
        if not values:
            continue
        if size(_all(made, values[-1])) > room:
            made.append(values[-1])
            continue
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if size(_all(made, values[middle])) <= room else (middle + 1, high)
        made.append(values[low])
        for change in made[:-1]:
            without = [other for other in made if other is not change]
            if size(_all(without)) <= room:
                made = without
        return _all(made)
    return None


def _all(changes: Sequence[Change], *more: Change) -> Change:
    return {name: value for change in (*changes, *more) for name, value in change.items()}


def for_training(
    config: TrainConfig, layout: PanelLayout, stride: int, blocks: int, few: int = 0
) -> list[list[Change]]:
    """Possible changes to a training, in this order: checkpointing and smaller batches keep the LoRA the same
    and cost time, and so does swapping a few blocks; fewer bits cost a little precision; swapping many costs
    much time; smaller panels cost detail. few: how many blocks can be swapped at little cost.
    """
    passes = config.batch_size * config.gradient_accumulation_steps
    recompute: Change = {} if config.gradient_checkpointing else {"gradient_checkpointing": True}
    single = {"batch_size": 1, "gradient_accumulation_steps": passes}
    swap = [{"blocks_to_swap": number, **recompute} for number in range(1, blocks + 1)]
    return [
        [recompute] if recompute else [],
        [single] if config.batch_size > 1 else [],
        swap[:few],
        *_weights(config),
        swap,
        panels(layout, stride),
    ]


def for_sampling(
    config: Any, layout: PanelLayout, stride: int, blocks: int, few: int = 0, reads: bool = False
) -> list[list[Change]]:
    """Possible changes to sampling. reads: whether known panels are read once, and kept for the next
    pictures. few: how many blocks can be swapped at little cost.
    """
    swap = [{"blocks_to_swap": number} for number in range(1, blocks + 1)]
    return [
        [{"context_cache_gib": 0.0}] if reads and config.context_cache_gib else [],
        swap[:few],
        *_weights(config),
        swap,
        panels(layout, stride),
    ]


def for_embedding(batch_size: int, layout: PanelLayout, stride: int) -> list[list[Change]]:
    """Possible changes to embedding."""
    return [[{"batch_size": number} for number in range(batch_size - 1, 0, -1)], panels(layout, stride)]


def _weights(config: Any) -> list[list[Change]]:
    fewer = {"none": ["int8", "nf4"], "int8": ["nf4"], "int8-torchao": ["nf4"]}.get(config.quantize, [])
    return [[{"quantize": name} for name in fewer]]


def panels(layout: PanelLayout, stride: int) -> list[Change]:
    """Smaller and smaller panels of nearly the same aspect ratio, on the model's grid."""
    sizes = [
        [max(stride, round(side * share / stride) * stride) for side in (layout.width, layout.height)]
        for share in PANEL_SHARES
    ]
    return [{"panel_width": width, "panel_height": height} for width, height in sizes]


def in_words(change: Mapping[str, Any]) -> str:
    """A change as command line options, in the form that `triptych run` takes."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {_word(value)}")
        for name, value in change.items()
    )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def for_run(changes: Mapping[str, Change | None], train: TrainConfig) -> Change:
    """Combine the changes of `embed` and `train`, and the panel size of `generate`, into one change for
    `triptych run`, where all stages share the panel size.

    `run` has one batch size for `embed` and `train`. It must divide the number of triptychs per training
    step; accumulation over more batches keeps that number.
    """
    parts: dict[str, Change] = {
        name: dict(changes.get(name) or {}) for name in ("embed", "train", "generate")
    }
    both: Change = {**parts["embed"], **parts["train"]}
    if "batch_size" in both:
        most = min(part["batch_size"] for part in parts.values() if "batch_size" in part)
        averaged = train.batch_size * train.gradient_accumulation_steps
        both["batch_size"] = max(size for size in range(1, most + 1) if averaged % size == 0)
        both["gradient_accumulation_steps"] = averaged // both["batch_size"]
    smallest = min((part for part in parts.values() if "panel_width" in part), key=_width, default={})
    return both | {name: smallest[name] for name in ("panel_width", "panel_height") if name in smallest}


def _width(change: Change) -> int:
    return int(change["panel_width"])
