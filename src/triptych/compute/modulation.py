"""Modulation for all steps of a sampling run at once.

Scales, shifts and gates of every block follow from the time, the guidance and the pooled text alone. Their
layers are 27 % of FLUX.1-dev's parameters, and a step reads (or dequantises) them all for a single vector.
Here they are read once for a run: one row for each step.

Legend: T steps, B batch, D width, O what a layer makes of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from torch import Tensor, nn

MODULATED = (AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX)
"""diffusers' norms that compute `linear(silu(emb))`, and scale and shift by it."""


class Steps:
    """A transformer, for each step of one sampling run."""

    def __init__(self, transformer: Any, times: Sequence[float], conditioning_TBD: Tensor) -> None:
        """conditioning_TBD: what the transformer's `time_text_embed` makes of the times; of equal samples one
        is enough.
        """
        self._rows = {t: row for row, t in enumerate(times)}
        self.row = 0
        if conditioning_TBD.shape[1] > 1 and bool((conditioning_TBD == conditioning_TBD[:, :1]).all()):
            conditioning_TBD = conditioning_TBD[:, :1]
        lists = {
            name: nn.ModuleList(
                [self._modulated(block, conditioning_TBD) if untouched(block) else block for block in blocks]
            )
            for name, blocks in transformer.named_children()
            if isinstance(blocks, nn.ModuleList)
        }
        self._transformer = self._modulated(transformer, conditioning_TBD)
        self._transformer._modules |= {**lists, "time_text_embed": _Made(self, conditioning_TBD)}

    def at(self, t: float) -> Any:
        """The transformer for the step at time t, one of the run's; good until the next call."""
        self.row = self._rows[t]
        return self._transformer

    def _modulated(self, module: nn.Module, conditioning_TBD: Tensor) -> Any:
        """The same module, weights and all, but what its norms scale by is there already. The module itself
        is left as it is: others may be running it.
        """
        norms = {}
        for name, norm in module.named_children():
            if isinstance(norm, MODULATED) and untouched(norm):
                made = norm.linear(norm.silu(conditioning_TBD.flatten(0, 1))).unflatten(
                    0, conditioning_TBD.shape[:2]
                )
                norms[name] = with_children(norm, linear=_Made(self, made))
        return with_children(module, **norms)


class _Made(nn.Module):
    """In place of a layer whose results are known."""

    def __init__(self, steps: Steps, made_TBO: Tensor) -> None:
        super().__init__()
        self.steps, self.made = steps, made_TBO

    def forward(self, *_: Any) -> Tensor:
        return self.made[self.steps.row]


def untouched(module: nn.Module) -> bool:
    """Whether calling a module runs its class's own forward and nothing else: its weights are not swapped or
    sharded, which come when it is called, its output is not cached, and nobody watches its calls.
    """
    return _own_forward(module) and not (module._forward_hooks or module._forward_pre_hooks)


def _own_forward(module: nn.Module) -> bool:
    return getattr(module.forward, "__func__", None) is type(module).forward


def with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A module that shares everything with the given one, but for these children."""
    shown = copy.copy(module)
    shown._modules = {**module._modules, **children}
    if _own_forward(module):
        vars(shown).pop(
            "forward", None
        )  # bound to the given one, as diffusers' hooks leave it when they are taken off
    return shown
