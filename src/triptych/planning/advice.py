"""The smallest change that makes a stage fit, found by asking the memory model about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.pictures.panels import PanelLayout
from triptych.training.config import TrainConfig

Change = dict[str, Any]
"""New values of settings, by name."""

PANEL_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Sides of smaller panels, as shares of those asked for. Below that there is little left of a garment."""


def smallest_change(
    choices: Sequence[Sequence[Change]], size: Callable[[Change], float], room: float
) -> Change | None:
    """The first change that makes `size` no more than `room`, without the parts it does without; None if
    nothing does.

    choices: what may be changed, the dearest last; of each, the values from the mildest to the strongest. A
    choice is made on top of the strongest of those before it. size: what a change leads to, in the unit of
    `room`; it falls along each choice.
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


def for_training(config: TrainConfig, layout: PanelLayout, stride: int, blocks: int) -> list[list[Change]]:
    """What may be changed about a training, in this order: checkpointing and smaller batches leave the LoRA
    as it is and cost time; fewer bits cost a little precision; swapping costs much time; smaller panels cost
    detail.
    """
    passes = config.batch_size * config.gradient_accumulation_steps
    recompute: Change = {} if config.gradient_checkpointing else {"gradient_checkpointing": True}
    single = {"batch_size": 1, "gradient_accumulation_steps": passes}
    swap = [{"blocks_to_swap": number, **recompute} for number in range(1, blocks + 1)]
    return [
        [recompute] if recompute else [],
        [single] if config.batch_size > 1 else [],
        *_weights(config),
        swap,
        panels(layout, stride),
    ]


def for_sampling(config: Any, layout: PanelLayout, stride: int, blocks: int) -> list[list[Change]]:
    """What may be changed about sampling."""
    return [
        *_weights(config),
        [{"blocks_to_swap": number} for number in range(1, blocks + 1)],
        panels(layout, stride),
    ]


def for_embedding(batch_size: int, layout: PanelLayout, stride: int) -> list[list[Change]]:
    """What may be changed about embedding."""
    return [[{"batch_size": number} for number in range(batch_size - 1, 0, -1)], panels(layout, stride)]


def _weights(config: Any) -> list[list[Change]]:
    fewer = {"none": ["int8", "nf4"], "int8": ["nf4"], "int8-torchao": ["nf4"]}.get(config.quantize, [])
    return [[{"quantize": name} for name in fewer]]


def panels(layout: PanelLayout, stride: int) -> list[Change]:
    """Smaller and smaller panels of about the same aspect ratio, on the model's grid."""
    sizes = [
        [max(stride, round(side * share / stride) * stride) for side in (layout.width, layout.height)]
        for share in PANEL_SHARES
    ]
    return [{"panel_width": width, "panel_height": height} for width, height in sizes]


def in_words(change: Mapping[str, Any]) -> str:
    """As options of the command line; `triptych run` takes them as they stand here."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in change.items()
    )


def for_run(changes: Mapping[str, Change | None], train: TrainConfig) -> Change:
    """One change for `triptych run` that holds those of `embed` and `train`, and the panels of `generate`,
    which are the same ones.

    `run` has one batch size for both: it divides what a training step averages over, and more batches make
    that up.
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
