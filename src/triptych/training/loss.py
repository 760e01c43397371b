"""The rectified-flow loss by panel, and its means over a step by panel and noise level.

Legend: B batch, C channels, H and W latent rows and columns, P panels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from triptych import flow
from triptych.backbones.contract import Backbone
from triptych.pictures.panels import PanelLayout
from triptych.sampling.clean_context import product_tokens, read_window
from triptych.training import distributed
from triptych.training.config import TrainConfig
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
    window, learned_BHW = None, batch.learned_BHW
    with backbone.autocast():
        if batch.active is not None:
            products = config.context_reading == "products"
            first = (
                product_tokens(batch.layout, backbone.settings.stride).to(batch.active.device)
                if products
                else None
            )
            about = (
                batch.clean_BCHW[:: batch.levels],
                batch.active,
                batch.empty,
                config.context_lora,
                batch.within,
                first,
            )
            window = read_window(backbone, transformer, *about)
            if window.context is not None:
                window = replace(window, context=window.context.repeated(batch.levels))
            rows, columns = (
                size // cells for size, cells in zip(learned_BHW.shape[1:], batch.active.shape, strict=True)
            )
            learned_BHW = learned_BHW * batch.active.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        predicted = backbone.velocity(
            transformer, latents_BCHW, batch.t_B, batch.text, config.guidance_scale, window
        )
    error_BHW = (predicted.float() - target_BCHW).square().mean(1)
    area_BP = panel_sums(learned_BHW, batch.layout)
    panel_BP = panel_sums(error_BHW * learned_BHW, batch.layout) / area_BP.clamp(min=1e-6)
    weights_P = torch.tensor(
        [config.panel_weights.get(role, 1.0) for role in batch.layout.roles], device=area_BP.device
    )
    weights_BP = weights_P * (area_BP > 0)
    sample_B = (weights_BP * panel_BP).sum(1) / weights_BP.sum(1).clamp(min=1e-6)
    return Losses(panel_BP, area_BP, sample_B)


def panel_sums(values_BHW: Tensor, layout: PanelLayout) -> Tensor:
    """Sums over each panel in reading order, (B, P)."""
    b, h, w = values_BHW.shape
    return (
        values_BHW.view(b, layout.rows, h // layout.rows, layout.columns, w // layout.columns)
        .sum((2, 4))
        .flatten(1)
    )


class LossMeter:
    """Means over the batches of one step, by name: `loss`, `loss/<role>` and `loss/<noise level>`."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, batch: Batch, losses: Losses) -> None:
        self._add("loss", losses.sample_B, torch.ones_like(losses.sample_B))
        for number, role in enumerate(batch.layout.roles):
            self._add(f"loss/{role}", losses.panel_BP[:, number], losses.area_BP[:, number] > 0)
        at_B = (batch.t_B * len(BINS)).long().clamp(max=len(BINS) - 1)
        for number, name in enumerate(BINS):
            self._add(f"loss/{name}", losses.sample_B, at_B == number)

    def _add(self, name: str, values: Tensor, counts: Tensor) -> None:
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(values.detach()[counts > 0].sum())
        entry[1] += float(counts.sum())

    def means(self, device: torch.device) -> dict[str, float]:
        """The means over all processes, without names that no sample belongs to."""
        totals = distributed.summed([number for entry in self._sums.values() for number in entry], device)
        pairs = zip(self._sums, totals[::2], totals[1::2], strict=True)
        return {name: total / count for name, total, count in pairs if count}
