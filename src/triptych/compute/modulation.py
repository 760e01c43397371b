"""Modulation for all steps of a sampling run at once.

The scales, shifts and gates of every block depend only on the time, the guidance and the pooled text. The
layers that compute them hold 27 % of FLUX.1-dev's parameters, and every step reads (or dequantises) all of
them for a single vector. Here they are read once per run, with one input row per step.

Legend: T steps, B batch, D width, O outputs of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from torch import Tensor, nn

from triptych.compute.blocks import Blocks

MODULATED = (AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX)
"""diffusers' norms that compute `linear(silu(emb))` and use it as scale and shift."""


class PremodulatedTransformer:
    """A transformer with its modulation computed in advance, for each step of one sampling run.

    The given transformer and its blocks are not changed, because other threads may be running them.
    """

    def __init__(
        self,
        transformer: Any,
        blocks: Blocks,
        time_embedding: str,
        times: Sequence[float],
        conditioning_TBD: Tensor,
        shared: Sequence[str] = (),
    ) -> None:
        """
        Args:
            blocks: the transformer's blocks. A block that is swapped, sharded or hooked is used unchanged.
            time_embedding: path of the module that embeds the time.
            times: the noise levels of the run's steps.
            conditioning_TBD: the output of that module at these times, per sample.
            shared: paths of modules outside the blocks whose output depends on that of the time embedding
                alone.
        """
        self._rows = {t: row for row, t in enumerate(times)}
        self.row = 0
        if conditioning_TBD.shape[1] > 1 and bool((conditioning_TBD == conditioning_TBD[:, :1]).all()):
            conditioning_TBD = conditioning_TBD[:, :1]
        changed = {
            path: self._modulated(block, conditioning_TBD)
            for path, block in blocks.items()
            if untouched(block)
        }
        changed[time_embedding] = _Made(self, conditioning_TBD)
        for path in shared:
            if untouched(module := transformer.get_submodule(path)):
                made = module(conditioning_TBD.flatten(0, 1))
                changed[path] = _Made(self, made.unflatten(0, conditioning_TBD.shape[:2]))
        self._transformer = with_modules(self._modulated(transformer, conditioning_TBD), changed)

    def at(self, t: float) -> Any:
        """The transformer for the step at time t, one of `times`. It is valid until the next call."""
        self.row = self._rows[t]
        return self._transformer

    def _modulated(self, module: nn.Module, conditioning_TBD: Tensor) -> Any:
        """A copy that shares everything with the given module, except that its norms have precomputed scales
        and shifts.
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
    """Stands in for a layer: holds its outputs at every step of a run,
    and returns that of the current step.
    """

    def __init__(self, run: PremodulatedTransformer, made_TBO: Tensor) -> None:
        super().__init__()
        self.run, self.made = run, made_TBO

    def forward(self, *_: Any) -> Tensor:
        return self.made[self.run.row]


def untouched(module: nn.Module) -> bool:
    """Whether calling a module runs only the forward of its class. False if its weights are swapped or
    sharded (they arrive when it is called), if its output is cached, or if it has hooks.
    """
    return _own_forward(module) and not (module._forward_hooks or module._forward_pre_hooks)


def _own_forward(module: nn.Module) -> bool:
    return getattr(module.forward, "__func__", None) is type(module).forward


def with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A copy of a module that shares everything with it except these children."""
    shown = copy.copy(module)
    shown._modules = {**module._modules, **children}
    if _own_forward(module):
        vars(shown).pop(
            "forward", None
        )  # bound to the given module, as diffusers' hooks leave it behind when they are removed
    return shown


def with_modules(module: nn.Module, changed: Mapping[str, nn.Module]) -> Any:
    """A copy of a module that shares everything with it except the modules at these paths."""
    children: dict[str, nn.Module] = {}
    deeper: dict[str, dict[str, nn.Module]] = {}
    for path, new in changed.items():
        name, _, rest = path.partition(".")
        if rest:
            deeper.setdefault(name, {})[rest] = new
        else:
            children[name] = new
    for name, inside in deeper.items():
        children[name] = with_modules(module.get_submodule(name), inside)
    return with_children(module, **children)
