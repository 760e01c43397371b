"""A transformer's LoRA layers: peft's, with a shorter way through them.

peft's forward asks for adapters, variants and merged weights at every call, and casts the input to the LoRA's
dtype, which autocast then undoes. FLUX.1 has 418 such layers: on a fast card the host's time for them is a
third of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

ADAPTER = "default"


class ShortLinear(Linear):
    """peft's layer for the one plain LoRA that triptych puts into a model: the same numbers, fewer calls."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return result
        down, up, dropout = self._parts
        scale, dtype = self.scaling[ADAPTER], down.weight.dtype
        if x.dtype != dtype and not _autocast(x):
            x = x.to(dtype)
        added = linear(linear(x if dropout is None else dropout(x), down.weight), up.weight)
        return (result + (added if scale == 1 else added * scale)).to(result.dtype)


def _autocast(x: Tensor) -> bool:
    """Whether products are cast anyway: by autocast, or without data by `plan`, which does as a card's."""
    return x.is_meta or torch.is_autocast_enabled(x.device.type)


def shorten(transformer: nn.Module) -> None:
    """Give the LoRA layers that peft has just put into a transformer the shorter way, and remember them."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        if (
            type(layer) is Linear
            and [*layer.lora_A] == [ADAPTER]
            and not (layer.lora_variant or layer.merged)
        ):
            dropout = layer.lora_dropout[ADAPTER]
            random = None if isinstance(dropout, nn.Identity) else dropout
            layer._parts = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], random
            layer.__class__ = ShortLinear
    vars(transformer)["_lora_layers"] = layers


@contextmanager
def lora_switched_off(transformer: nn.Module) -> Iterator[None]:
    """Run the base model alone, without gradients; the LoRA is switched on again afterwards."""
    layers = vars(transformer).get("_lora_layers", ())
    for layer in layers:
        # What peft's enable_adapters sets. It also walks the weights and takes their gradients away.
        vars(layer)["_disable_adapters"] = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            vars(layer)["_disable_adapters"] = False
