"""The rectified-flow loss by panel, and its means over a step by panel and noise level.

Legend: B batch, C channels, H and W latent rows and columns, P panels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from triptych import flow
from triptych.backbones.context import Reference, Window
from triptych.backbones.contract import Backbone
from triptych.compute.sending import sent
from triptych.pictures.panels import PanelLayout
from triptych.sampling.clean_context import (
    Groups,
    apart,
    groups_of_canvas,
    groups_of_references,
    read_window,
)
from triptych.sampling.references import moved
from triptych.training import distributed
from triptych.training.config import TrainConfig, placement_of
from triptych.training.data import Batch

BINS = ("t 0.00-0.25", "t 0.25-0.50", "t 0.50-0.75", "t 0.75-1.00")
"""Names of the ranges of noise levels that the loss is logged by."""


@dataclass(frozen=True)
class Losses:
    """panel_BP: mean squared error of each panel over its learned area. area_BP: size of that area in
    latents. sample_B: weighted mean of the panels, which training minimises.
    """

    panel_BP: Tensor
    area_BP: Tensor
    sample_B: Tensor


def losses_of(config: TrainConfig, backbone: Backbone, transformer: nn.Module, batch: Batch) -> Losses:
    """‖v(x_t, t) − (noise − data)‖² (arXiv 2209.03003, eq. 1) of every triptych: first the mean over each
    panel's learned area, then the mean over panels by `panel_weights`. A small learned area therefore counts
    as much as a large one.
    """
    latents_BCHW = flow.interpolate(batch.clean_BCHW, batch.noise_BCHW, batch.t_B)
    target_BCHW = flow.velocity_target(batch.clean_BCHW, batch.noise_BCHW)
    learned_BHW = batch.learned_BHW
    with backbone.autocast():
        if batch.active is None:
            predicted = backbone.velocity(
                transformer, latents_BCHW, batch.t_B, batch.text, config.guidance_scale
            )
        else:
            rows, columns = (
                size // cells for size, cells in zip(learned_BHW.shape[1:], batch.active.shape, strict=True)
            )
            active = batch.active.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            learned_BHW = learned_BHW * sent(active, learned_BHW.device)
            on_canvas = placement_of(config, backbone.family) == "canvas"
            shown = _on_the_canvas if on_canvas else _with_references
            predicted = shown(config, backbone, transformer, batch, latents_BCHW)
    error_BHW = (predicted.float() - target_BCHW).square().mean(1)
    area_BP = panel_sums(learned_BHW, batch.layout)
    panel_BP = panel_sums(error_BHW * learned_BHW, batch.layout) / area_BP.clamp(min=1e-6)
    weights_P = torch.tensor([config.panel_weights.get(role, 1.0) for role in batch.layout.roles])
    weights_BP = sent(weights_P, area_BP.device) * (area_BP > 0)
    sample_B = (weights_BP * panel_BP).sum(1) / weights_BP.sum(1).clamp(min=1e-6)
    return Losses(panel_BP, area_BP, sample_B)


def _on_the_canvas(
    config: TrainConfig, backbone: Backbone, transformer: nn.Module, batch: Batch, latents_BCHW: Tensor
) -> Tensor:
    """The velocity (B, C, H, W) of the active tokens, which attend to the known tokens of the canvas."""
    assert batch.active is not None
    parts = apart(batch.layout, backbone.settings.stride, config.context_reading)
    clean_BCHW = batch.clean_BCHW[:: batch.levels]
    groups = groups_of_canvas(clean_BCHW, batch.active, batch.within, parts)
    window = _read(config, backbone, transformer, batch, batch.active, groups)
    return backbone.velocity(transformer, latents_BCHW, batch.t_B, batch.text, config.guidance_scale, window)


def _with_references(
    config: TrainConfig, backbone: Backbone, transformer: nn.Module, batch: Batch, latents_BCHW: Tensor
) -> Tensor:
    """The velocity (B, C, H, W) of the made panels, to which the given panels are references; 0 elsewhere.
    What is known of the made panels is a reference too.
    """
    assert batch.active is not None
    layout, stride = batch.layout, backbone.settings.stride
    sampled, clean_BCHW = layout.only(layout.made), batch.clean_BCHW[:: batch.levels]
    unit = layout.size[0] // latents_BCHW.shape[3]
    boxes = [layout.box(role, unit) for role in layout.given]
    products = [
        Reference(clean_BCHW[:, :, box.top : box.bottom, box.left : box.right], None, number)
        for number, box in enumerate(boxes, 1)
    ]
    learned = moved(batch.active, layout, sampled, stride)
    others = []
    if not learned.all():
        others = [Reference(moved(clean_BCHW, layout, sampled, unit), ~learned, len(boxes) + 1)]
    shown = products if batch.within is None else []
    groups = groups_of_references(shown, others, config.context_reading)
    active = torch.ones_like(learned) if batch.run_known else learned
    if config.context == "native":
        beside = tuple(reference.repeated(batch.levels) for group in groups for reference in group.references)
        window = Window(active, beside=beside)
    else:
        window = _read(config, backbone, transformer, batch, active, groups)
    shown_BCHW = moved(latents_BCHW, layout, sampled, unit)
    predicted = backbone.velocity(
        transformer, shown_BCHW, batch.t_B, batch.text, config.guidance_scale, window
    )
    return moved(predicted, sampled, layout, unit)


def _read(
    config: TrainConfig,
    backbone: Backbone,
    transformer: nn.Module,
    batch: Batch,
    active: Tensor,
    groups: Groups,
) -> Window:
    """Read known tokens once for all noise levels of a triptych."""
    window = read_window(backbone, transformer, active, groups, batch.empty, config.context_lora)
    if window.context is None:
        return window
    return replace(window, context=window.context.repeated(batch.levels))


def panel_sums(values_BHW: Tensor, layout: PanelLayout) -> Tensor:
    """Sums over each panel in reading order, (B, P)."""
    b, h, w = values_BHW.shape
    return (
        values_BHW.view(b, layout.rows, h // layout.rows, layout.columns, w // layout.columns)
        .sum((2, 4))
        .flatten(1)
    )


class LossMeter:
    """Means over the batches of one step, by name: `loss`, `loss/<role>` and `loss/<noise level>`.

    `add` only keeps tensors; `means` asks the device for all of them at once, because every question waits
    until the device has done all that it was told.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, batch: Batch, losses: Losses) -> None:
        columns = [losses.sample_B[:, None], batch.t_B[:, None], losses.panel_BP, losses.area_BP]
        self._kept.append((batch.layout.roles, torch.cat([column.detach().float() for column in columns], 1)))

    def means(self, device: torch.device, norm: Tensor) -> tuple[dict[str, float], float]:
        """The means over all processes, without names that no sample belongs to; and `norm`, a number on the
        device.
        """
        numbers = torch.cat(
            [*(rows.flatten() for _, rows in self._kept), norm.detach().float().view(1)]
        ).cpu()
        *parts, last = numbers.split([*(rows.numel() for _, rows in self._kept), 1])
        sums: dict[str, list[float]] = {}
        for (roles, rows), part in zip(self._kept, parts, strict=True):
            _add_up(sums, roles, part.view_as(rows))
        totals = distributed.summed([number for entry in sums.values() for number in entry], device)
        pairs = zip(sums, totals[::2], totals[1::2], strict=True)
        return {name: total / count for name, total, count in pairs if count}, float(last)


def _add_up(sums: dict[str, list[float]], roles: tuple[str, ...], rows: Tensor) -> None:
    """Add a batch's losses and their number, by name. rows: per sample its loss, its noise level, and loss
    and area of each panel.
    """
    sample_B, t_B, panels = rows[:, 0], rows[:, 1], rows[:, 2:]
    panel_BP, area_BP = panels.chunk(2, dim=1)
    at_B = (t_B * len(BINS)).long().clamp(max=len(BINS) - 1)
    named = {"loss": (sample_B, torch.ones_like(sample_B, dtype=torch.bool))}
    named |= {f"loss/{role}": (panel_BP[:, n], area_BP[:, n] > 0) for n, role in enumerate(roles)}
    named |= {f"loss/{name}": (sample_B, at_B == n) for n, name in enumerate(BINS)}
    for name, (values, counts) in named.items():
        entry = sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(values[counts].sum())
        entry[1] += float(counts.sum())
