"""The input of one forward pass: triptychs, noise, noise levels and tokens.

All of it is a function of (seed, step, position in the step, id) and does not depend on earlier steps. The
triptychs of a step are numbered across its forward passes, so a step is the same for any split into passes
and processes. Legend: B batch, C channels, H and W latent rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from triptych import flow
from triptych.backbones.contract import Backbone, Text
from triptych.compute.sending import sent
from triptych.data.captions import markers_of
from triptych.data.embeddings import EmbeddingFolder, stack_text
from triptych.data.triptychs import item_of
from triptych.errors import ConfigError, TriptychError
from triptych.pictures.panels import PanelLayout
from triptych.store.files import digest
from triptych.tasks import task_named, task_of_all
from triptych.training.config import TrainConfig, learned_roles
from triptych.training.masks import LossMasks


@dataclass(frozen=True)
class Batch:
    """Triptychs of one layout, with their noise, noise levels and learned areas.

    Each triptych is repeated `levels` times in a row, each time with its own noise and noise level.
    clean_BCHW, noise_BCHW: latents. t_B: noise levels in [0, 1]. learned_BHW: weight of each latent's error,
    in [0, 1]. active: (rows, columns) bool on the token grid, the tokens that are learned with clean or
    native context; None with noisy context. within: (rows, columns) bool, the area where known tokens are
    shown; None: everywhere. Both are on the CPU, where they are counted; all else is on the device.
    run_known: with references, whether the known tokens of the made panels are also run, noised, as
    `Sampling.active_tokens` "panel" does. empty: embeddings of one empty prompt. With clean
    or native context, the layout's `made` are the panels that this batch makes.
    """

    layout: PanelLayout
    clean_BCHW: Tensor
    noise_BCHW: Tensor
    t_B: Tensor
    text: Text
    empty: Text
    learned_BHW: Tensor
    active: Tensor | None = None
    within: Tensor | None = None
    run_known: bool = False
    levels: int = 1

    def tokens(self, stride: int) -> int:
        """Number of tokens of all canvases, including known ones."""
        width, height = self.layout.size
        return len(self.t_B) * (width // stride) * (height // stride)


class TrainingSet:
    """Embedded triptychs, split into those to learn (`ids`) and those held out for validation
    (`held_out`).
    """

    def __init__(self, records: EmbeddingFolder, config: TrainConfig) -> None:
        """
        Raises:
            ConfigError: no triptych is left to train on. InputError: the panels are not those of the task, or
                loss masks are unusable.
        """
        self.records, self.config = records, config
        self.task = task_named(config.task) if config.task else None
        self.layouts = {id: self._layout(about) for id, about in records.about.items()}
        self.held_out = draw_held_out(self.items, config.seed, config.num_validation_triptychs)
        self.ids = [id for id in records.ids if id not in self.held_out]
        if not self.ids:
            hint = "Lower --num-validation-triptychs; all triptychs of an item are held out together."
            raise ConfigError(f"None of the {len(records.ids)} triptychs is left to train on.", hint)
        self.masks = self._loss_masks() if config.loss_masks else None
        self._ahead: tuple[tuple[int, int, int], Batch] | None = None

    def _layout(self, about: Mapping[str, Any]) -> PanelLayout:
        layout = PanelLayout.from_dict(about["layout"])
        return self.task.on(layout) if self.task else layout

    def _loss_masks(self) -> LossMasks:
        roles = dict.fromkeys(
            role for layout in self.layouts.values() for role in learned_roles(self.config, layout)
        )
        assert self.config.loss_masks is not None
        return LossMasks(self.config.loss_masks, self.layouts, self.items, list(roles))

    @property
    def layout(self) -> PanelLayout:
        """The LoRA's layout: that of the first triptych. If triptychs may lack some panels, a row of all
        panels that occur.
        """
        first = self.layouts[self.ids[0]]
        roles = {role for id in self.ids for role in self.layouts[id].roles}
        if roles == {*first.roles} or (task := task_of_all(roles)) is None:
            return first
        return task.layout(first.width, first.height).among(roles)

    @property
    def markers(self) -> tuple[str, ...]:
        """The captions' markers: those of the first triptych."""
        return markers_of(
            self.records.about[self.ids[0]].get("markers"), len(self.layouts[self.ids[0]].roles)
        )

    @cached_property
    def items(self) -> dict[str, str]:
        """The item that each triptych shows, by id."""
        return {id: item_of(id, about.get("item")) for id, about in self.records.about.items()}

    @property
    def fingerprint(self) -> dict[str, str]:
        """Per id, a digest of the triptych's picture, caption, layout, loss mask, embedding model and dtype,
        and whether it is held out.
        """
        names = ("image_sha256", "caption_sha256", "model", "dtype", "layout")
        return {
            id: digest(
                [
                    *(about.get(name) for name in names),
                    self.masks and self.masks.sha256(id),
                    id in self.held_out,
                ]
            )[:16]
            for id, about in self.records.about.items()
        }

    @cached_property
    def buckets(self) -> list[list[str]]:
        """The ids to learn, grouped by layout: triptychs of one group can share a batch."""
        layouts: dict[str, list[str]] = {}
        for id in self.ids:
            layouts.setdefault(digest(self.records.about[id]["layout"]), []).append(id)
        return list(layouts.values())

    def draw(self, backbone: Backbone, step: int, number: int, passes: int) -> Batch:
        """The batch of forward pass `number` out of `passes` of a step."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == (step, number, passes):
            return ahead[1]
        return self._drawn(backbone, step, number, passes)

    def draw_ahead(self, backbone: Backbone, step: int, number: int, passes: int) -> None:
        """Draw the batch that `draw` will be asked for next, while the device is busy. A file that is missing
        or unusable is left for `draw` to report.
        """
        with suppress(TriptychError, OSError):
            self._ahead = (step, number, passes), self._drawn(backbone, step, number, passes)

    def _drawn(self, backbone: Backbone, step: int, number: int, passes: int) -> Batch:
        config, size = self.config, self.config.batch_size
        ids = ids_of_step(self.buckets, config.seed, step, size * passes)
        clean, noise, times, texts = [], [], [], []
        for place in range(number * size, (number + 1) * size):
            id = ids[place]
            record = self.records[id]
            generator = flow.generator_for(config.seed, "sample", step, place, id)
            latents = record.draw(generator)
            for _ in range(config.noise_levels):
                clean.append(latents)
                noise.append(torch.randn(latents.shape, generator=generator))
                times.append(draw_time(config, backbone, self.layouts[id], generator))
                dropped = float(torch.rand((), generator=generator)) < config.caption_dropout
                texts.append(self.records.empty if dropped else record.text)
        shown = [id for id in ids[number * size : (number + 1) * size] for _ in range(config.noise_levels)]
        batch = replace(self._batch(backbone, shown, clean, noise, times, texts), levels=config.noise_levels)
        if config.context == "noisy":
            return batch
        generator = flow.generator_for(config.seed, "window", step, number)
        layout, active = draw_active(batch.layout, backbone.settings.stride, generator)
        dropped = float(torch.rand((), generator=generator)) < config.context_dropout
        within = _made_tokens(backbone, layout) if dropped else None
        run_known = float(torch.rand((), generator=generator)) < 0.5
        return replace(batch, layout=layout, active=active, within=within, run_known=run_known)

    def fixed(self, backbone: Backbone, id: str, t: float) -> Batch:
        """The validation batch of one triptych at noise level t: the posterior's mean, fixed noise, no
        dropout.
        """
        record = self.records[id]
        clean = record.latent_mean_CHW
        noise = torch.randn(clean.shape, generator=flow.generator_for(self.config.seed, "validation", id))
        batch = self._batch(backbone, [id], [clean], [noise], [torch.tensor(t)], [record.text])
        return (
            batch
            if self.config.context == "noisy"
            else replace(batch, active=_made_tokens(backbone, batch.layout))
        )

    def _batch(
        self,
        backbone: Backbone,
        ids: Sequence[str],
        clean: Sequence[Tensor],
        noise: Sequence[Tensor],
        times: Sequence[Tensor],
        texts: Sequence[dict[str, Tensor]],
    ) -> Batch:
        layout = self.layouts[ids[0]]
        learned = [self._learned(id, latents.shape[1:]) for id, latents in zip(ids, clean, strict=True)]
        parts = (sent(torch.stack(list(part)), backbone.device) for part in (clean, noise, times, learned))
        clean_BCHW, noise_BCHW, t_B, learned_BHW = parts
        text, empty = (backbone.to_device(stack_text(part)) for part in (texts, [self.records.empty]))
        return Batch(layout, clean_BCHW, noise_BCHW, t_B, text, empty, learned_BHW)

    def _learned(self, id: str, size: Sequence[int]) -> Tensor:
        """(H, W): the mean of the loss mask's pixels under each latent; 1 without a mask."""
        mask = self.masks.learned(id, size) if self.masks else None
        return torch.ones(*size) if mask is None else mask


def _made_tokens(backbone: Backbone, layout: PanelLayout) -> Tensor:
    """(rows, columns) bool: the tokens of the panels that are made."""
    return torch.from_numpy(layout.mask(layout.made, backbone.settings.stride))


def steps_of_epochs(epochs: float, triptychs: int, batch: int) -> int:
    """Number of optimizer steps for `epochs` passes over the triptychs, with `batch` triptychs per step."""
    return max(1, math.ceil(epochs * triptychs / batch))


def draw_held_out(item_by_id: Mapping[str, str], seed: int, count: int) -> list[str]:
    """Draw at least `count` ids, in whole items."""
    items: dict[str, list[str]] = {}
    for id, item in item_by_id.items():
        items.setdefault(item, []).append(id)
    chosen: list[str] = []
    for item in sorted(items, key=lambda item: digest([seed, "held out", item])):
        if len(chosen) >= count:
            break
        chosen += items[item]
    return sorted(chosen)


def ids_of_step(buckets: Sequence[Sequence[str]], seed: int, step: int, size: int) -> list[str]:
    """The `size` ids of one step, all of one bucket.

    In every round of as many steps as there are ids, each bucket gets one step per id of its own, in random
    order. The n-th step of a bucket takes the n-th piece of the bucket's stream. Every id is therefore seen
    equally often.
    """
    owners = [number for number, bucket in enumerate(buckets) for _ in bucket]
    round_, position = divmod(step, len(owners))
    order = torch.randperm(len(owners), generator=flow.generator_for(seed, "bucket", round_)).tolist()
    chosen = owners[order[position]]
    turn = round_ * len(buckets[chosen]) + sum(owners[place] == chosen for place in order[:position])
    return ids_of_batch(buckets[chosen], seed, turn, size)


def ids_of_batch(ids: Sequence[str], seed: int, number: int, size: int) -> list[str]:
    """Piece `number` of an endless stream that shuffles the ids anew each epoch and drops none."""
    chosen = []
    for sample in range(number * size, (number + 1) * size):
        epoch, position = divmod(sample, len(ids))
        order = torch.randperm(len(ids), generator=flow.generator_for(seed, "order", epoch))
        chosen.append(ids[int(order[position])])
    return chosen


def draw_time(
    config: TrainConfig, backbone: Backbone, layout: PanelLayout, generator: torch.Generator
) -> Tensor:
    """One noise level in (min_t, max_t): logit-normal, shifted as for a picture of one panel. Shape ()."""
    stride = backbone.settings.stride
    tokens = (layout.width // stride) * (layout.height // stride)
    steps = backbone.settings.num_inference_steps  # a training has no number of sampling steps of its own
    mu = backbone.mu(tokens, steps) if config.shift is None else math.log(config.shift)
    return config.min_t + (config.max_t - config.min_t) * flow.logit_normal_time(generator, mu)


def draw_active(layout: PanelLayout, stride: int, generator: torch.Generator) -> tuple[PanelLayout, Tensor]:
    """Clean context: the layout whose `made` are the panels to learn, and their tokens, (rows, columns) bool.

    In half of the cases these are all panels that the task makes, whole. Otherwise: if the task makes one
    panel, it is learned in a box of a third to all of its width and height, like a polygon in `tryon`. If the
    task makes several, 1 to all of them are drawn, and the others are given, like photos in `generate`; if
    only one is drawn, it is again learned in a box.
    """
    whole, *share, x, y = torch.rand(5, generator=generator).tolist()
    if whole >= 0.5 and len(layout.made) > 1:
        count = 1 + int(torch.randint(len(layout.made), (), generator=generator))
        drawn = torch.randperm(len(layout.made), generator=generator)[:count].tolist()
        layout = replace(layout, made=tuple(layout.made[number] for number in drawn))
    active = torch.from_numpy(layout.mask(layout.made, stride))
    if whole < 0.5 or len(layout.made) > 1:
        return layout, active
    box = layout.box(layout.made[0], stride)
    sides = box.right - box.left, box.bottom - box.top
    width, height = (
        max(1, round(side * (1 + 2 * part) / 3)) for side, part in zip(sides, share, strict=True)
    )
    left, top = box.left + round(x * (sides[0] - width)), box.top + round(y * (sides[1] - height))
    active = torch.zeros_like(active)
    active[top : top + height, left : left + width] = True
    return layout, active
