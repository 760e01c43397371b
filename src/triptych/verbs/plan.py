"""plan: estimates memory, disk and time of a config from shapes alone, before any download or reading of
weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from triptych.backbones.registry import DTYPES
from triptych.config.stage import section, validated
from triptych.data.triptychs import TriptychFolder
from triptych.events import Event, Run
from triptych.pictures.panels import PanelLayout
from triptych.planning import advice
from triptych.planning.cards import Card, find_card
from triptych.planning.disk import disk_bytes
from triptych.planning.memory import Machine, Memory, embed_memory, sampling_memory, train_memory
from triptych.planning.report import TIGHT, in_gib, run_line, text_of, verdict
from triptych.planning.shapes import ModelShapes, model_shapes
from triptych.planning.shift import shift_warning
from triptych.tasks import DEFAULT, task_named
from triptych.training.config import for_family, on_distilled, placement_of
from triptych.training.data import steps_of_epochs
from triptych.verbs import STAGES
from triptych.verbs.plan_config import PlanConfig
from triptych.vton.refine import refining
from triptych.vton.tiles import TIMES

USUAL_TRIPTYCHS = 50
"""Assumed number while the work folder has none: In-Context LoRAs are trained on 20 to 100 (arXiv
2410.23775).
"""

LITTLE = 0.05
"""Share of a stage's time that swapping may cost to be advised before fewer bits, which change the result."""
USUAL_POLYGON = 0.35
"""Assumed share of the worn panel inside the polygon of a try-on."""


def plan(config: PlanConfig, data: Mapping[str, Any] | None = None) -> Run:
    """Estimate memory, disk and time of embed, train, generate and tryon, and suggest the smallest change if
    they do not fit.

    Args:
        data: a loaded config file (`config.load_config`): shared keys and a section per verb.

    Raises:
        ConfigError: an unknown card, an unknown key, or a value that a stage refuses. ModelError: a model
            with unknown shapes. InputError: panels that do not fall on the model's grid.
    """
    card = find_card(config.card)
    given: dict[str, Any] = {"model": config.model} if config.model else {}
    if "work" in config.model_fields_set:
        given["work"] = config.work
    concat, embed, train, generate, tryon = (
        _config(name, data or {}, given) for name in ("concat", "embed", "train", "generate", "tryon")
    )
    shapes = {one.model: model_shapes(one.model) for one in (embed, train, generate, tryon)}
    settings = shapes[train.model].settings
    task = task_named(train.task) if train.task else DEFAULT
    train = for_family(train, shapes[train.model].family.family)
    layout = _layout(concat, task.layout(settings.panel_width, settings.panel_height), settings.stride)
    triptychs = (
        config.num_triptychs or len(TriptychFolder(train.triptych_folder).pictures()) or USUAL_TRIPTYCHS
    )
    if train.epochs is not None:
        steps = steps_of_epochs(train.epochs, triptychs, train.batch_size * train.gradient_accumulation_steps)
        train = train.model_copy(update={"max_train_steps": steps, "epochs": None})
    length = embed.max_sequence_length or settings.max_sequence_length
    stages = (
        _Embedding(embed, shapes[embed.model], layout, length, card),
        _Training(train, shapes[train.model], layout, length, card),
        _Sampling(generate, shapes[generate.model], _layout(generate, layout, settings.stride), card, train),
        _TryOn(tryon, shapes[tryon.model], _layout(tryon, layout, settings.stride), card, train),
    )
    units = {"embed": triptychs, "train": train.max_train_steps, "generate": 1, "tryon": 1}
    trained = shapes[train.model]
    summary: dict[str, Any] = {
        "model": train.model,
        "card": card.name,
        "memory_gib": in_gib(card.memory),
        "memory_total_gib": in_gib(max(card.memory, card.total)),
        "is_card": card.is_card,
        "parameters": trained.parameters,
        "lora_parameters": trained.lora_parameters(train.rank),
        "family": trained.family.name,
        "canvas": list(layout.size),
        "sampled_canvas": list(stages[2].sampled.size),
        "tokens": stages[2].tokens() | {"text": trained.text_tokens(length)},
        "triptychs": triptychs,
        "warnings": [
            *([on_distilled(train.model)] if trained.distilled else []),
            *dict.fromkeys(warning for stage in stages[2:] for warning in stage.warnings()),
        ],
        "disk_bytes": disk_bytes(trained, train, layout, length, stages[0].machine.dtype, triptychs),
    }

    def work() -> Iterator[Event]:
        for stage in stages:
            summary[stage.name] = stage.planned(units[stage.name])
            yield Event(stage.name, result=summary[stage.name])
        summary["verdict"] = verdict(summary)
        change = advice.for_run({stage.name: summary[stage.name]["change"] for stage in stages}, train)
        summary["for_run"] = run_line(summary, change, layout, train.rank)
        run.text = text_of(summary)

    run = Run("plan", len(stages), work(), summary)
    return run


class _Stage(ABC):
    """One stage to plan: its memory as a function of its settings and panels."""

    name: str

    def __init__(
        self, config: Any, shapes: ModelShapes, layout: PanelLayout, length: int, card: Card
    ) -> None:
        """length: tokens of a caption."""
        self.config, self.shapes, self.layout, self.length, self.card = config, shapes, layout, length, card
        self.machine = Machine(card.dtype if config.dtype == "auto" else DTYPES[config.dtype], card.is_card)

    @abstractmethod
    def memory(self, config: Any, layout: PanelLayout) -> Memory:
        """Its memory at the peak."""

    @abstractmethod
    def choices(self) -> list[list[advice.Change]]:
        """Changes to try, in order."""

    def planned(self, units: int) -> dict[str, Any]:
        """The stage's part of the summary, for `units` of work."""
        memory = self.memory(self.config, self.layout)
        seconds = self.card.seconds(memory, self.machine.dtype)
        fits = memory.total <= self.card.memory
        change = None if fits else self._change()
        changed = self._changed(change) if change else None
        return {
            "moment": memory.moment,
            "bytes": {name: round(size) for name, size in memory.rows.items()},
            "total_bytes": round(memory.total),
            "ram_bytes": round(memory.ram),
            "flops": round(memory.flops),
            "seconds_each": seconds,
            "number": units,
            "seconds": seconds * units,
            "fits": fits,
            "change": change,
            "change_words": advice.in_words(change) if change else None,
            "bytes_with_change": round(changed.total) if changed else None,
            "seconds_each_with_change": self.card.seconds(changed, self.machine.dtype) if changed else None,
        }

    def _change(self) -> advice.Change | None:
        """The smallest change after which it fits and is not tight, else after which it fits."""
        for room in (TIGHT * self.card.memory, self.card.memory):
            change = advice.smallest_change(self.choices(), lambda change: self._changed(change).total, room)
            if change is not None:
                return change
        return None

    def few(self, **settings: int) -> int:
        """The number of blocks that can be swapped for at most `LITTLE` of the time. settings: further
        changes that are made before.
        """

        def seconds(swapped: int) -> float:
            config = self.config.model_copy(update={**settings, "blocks_to_swap": swapped})
            return self.card.seconds(self.memory(config, self.layout), self.machine.dtype)

        allowed = (1 + LITTLE) * seconds(0)
        numbers = range(len(self.shapes.weights.blocks), 0, -1)
        return next((number for number in numbers if seconds(number) <= allowed), 0)

    def _changed(self, change: advice.Change) -> Memory:
        settings = dict(change)
        width, height = (
            settings.pop("panel_width", self.layout.width),
            settings.pop("panel_height", self.layout.height),
        )
        layout = replace(self.layout, width=width, height=height)
        return self.memory(self.config.model_copy(update=settings), layout)


class _Embedding(_Stage):
    name = "embed"

    def memory(self, config: Any, layout: PanelLayout) -> Memory:
        return embed_memory(self.shapes, config.batch_size, layout, self.length, self.machine)

    def choices(self) -> list[list[advice.Change]]:
        return advice.for_embedding(self.config.batch_size, self.layout, self.shapes.settings.stride)


class _Training(_Stage):
    name = "train"

    def memory(self, config: Any, layout: PanelLayout) -> Memory:
        return train_memory(self.shapes, config, layout, self.length, self.machine)

    def choices(self) -> list[list[advice.Change]]:
        passes = self.config.batch_size * self.config.gradient_accumulation_steps
        return advice.for_training(
            self.config,
            self.layout,
            self.shapes.settings.stride,
            len(self.shapes.weights.blocks),
            self.few(batch_size=1, gradient_accumulation_steps=passes),
        )


class _Sampling(_Stage):
    """`generate` from product photos with the LoRA of the training."""

    name = "generate"
    repainted = 1.0

    def __init__(self, config: Any, shapes: ModelShapes, layout: PanelLayout, card: Card, train: Any) -> None:
        super().__init__(config, shapes, layout, shapes.settings.max_sequence_length, card)
        trained = {"context": train.context, "context_lora": train.context_lora}
        if train.context != "noisy":
            trained["context_placement"] = placement_of(train, shapes.family.family)
        self.rank = train.rank
        strength = getattr(config, "strength", 1.0)
        self.sampling, self._warnings = config.resolve(
            shapes.settings, strength, trained, shapes.family.family
        )

    def memory(self, config: Any, layout: PanelLayout) -> Memory:
        return sampling_memory(
            self.shapes, config, self.sampling, layout, self.length, self.machine, self.rank, self.repainted
        )

    def choices(self) -> list[list[advice.Change]]:
        reads = self.sampling.context == "clean"
        blocks = len(self.shapes.weights.blocks)
        return advice.for_sampling(
            self.config, self.layout, self.shapes.settings.stride, blocks, self.few(), reads
        )

    @property
    def sampled(self) -> PanelLayout:
        """The panels on the canvas that is sampled."""
        apart = self.sampling.context_placement == "reference"
        return self.layout.only(self.layout.made) if apart else self.layout

    def tokens(self) -> dict[str, int]:
        """Number of image tokens: of the canvas, and of references beside it."""
        on_canvas = self.shapes.image_tokens(self.sampled)
        further = len(self.config.reference) * on_canvas // len(self.sampled.roles)
        references = self.shapes.image_tokens(self.layout) - on_canvas + further
        return {"image": on_canvas, "references": references}

    def warnings(self) -> list[str]:
        """What is unusual about the sampling."""
        jump = shift_warning(self.shapes, self.sampling, self.sampled)
        return [*self._warnings, *([jump] if jump else [])]


class _TryOn(_Sampling):
    """`tryon` with that LoRA, of a polygon that covers a part of the panel; with `refine`, in a second pass,
    one tile that it fills, or four tiles where the first pass shows the whole photo.
    """

    name = "tryon"
    repainted = USUAL_POLYGON

    def memory(self, config: Any, layout: PanelLayout) -> Memory:
        first = super().memory(config, layout)
        if not config.refine:
            return first
        tiles = 1 if config.crop == "polygon" else 4
        steps = max(1, math.ceil(self.sampling.num_inference_steps * config.refine))
        sampling = replace(refining(self.sampling, config.refine), num_inference_steps=steps)
        # A share of 1 would mean that nothing is known of the person.
        share = min(0.9, USUAL_POLYGON / tiles * TIMES**2)
        second = sampling_memory(
            self.shapes, config, sampling, layout, self.length, self.machine, self.rank, share
        )
        worst = max(first, second, key=lambda memory: memory.total)
        flops = first.flops + tiles * second.flops
        return replace(worst, flops=flops, swapped=first.swapped + tiles * second.swapped)


def _config(name: str, data: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The config of another verb, as it would run with these files and `plan`'s own options."""
    (model,) = (stage.config_class() for stage in STAGES if stage.name == name)
    return validated(model, section(data, name, model).changed(given), name)


def _layout(config: Any, otherwise: PanelLayout, stride: int) -> PanelLayout:
    """The panels that `concat` or `generate` will make; `otherwise` supplies missing values."""
    width, height = config.panel_width or otherwise.width, config.panel_height or otherwise.height
    return replace(otherwise, width=width, height=height).check(stride)
