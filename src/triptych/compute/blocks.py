"""A transformer's blocks: its repeated layers, which hold nearly all of its weights.

Only a model's family knows the names of its blocks (`Backbone.blocks`). The code that quantises, swaps,
shards or modulates them is given the blocks and knows no names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

Blocks = Mapping[str, nn.Module]
"""Blocks by path in the transformer, such as `transformer_blocks.0`, in running order."""

LEAST_SHARE = 0.5
"""The blocks must hold at least this share of the linear weights. Tiny test models do;
real models have 99 %.
"""


def blocks_of(transformer: nn.Module, lists: Sequence[str]) -> dict[str, nn.Module]:
    """The blocks in a transformer's module lists. lists: paths of the lists, in running order.

    Raises:
        ValueError: a list does not exist or is empty, or most linear weights lie outside the lists.
            Quantising or swapping such blocks would have little or no effect.
    """
    blocks: dict[str, nn.Module] = {}
    for path in lists:
        try:
            found = transformer.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"{type(transformer).__name__} has no blocks {path}") from error
        blocks |= {f"{path}.{name}": block for name, block in found.named_children()}
    share = share_of(transformer, blocks)
    if share < LEAST_SHARE:
        where = " and ".join(lists) or "its blocks, of which none is named"
        raise ValueError(
            f"{where} of {type(transformer).__name__} hold {share:.0%} of its linear weights only"
        )
    return blocks


def linear_layers(blocks: Blocks) -> dict[str, nn.Linear]:
    """The linear layers of all blocks by their path in the transformer."""
    return {
        f"{path}.{name}": module
        for path, block in blocks.items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }


def attention_layers(transformer: nn.Module) -> list[Any]:
    """The transformer's attention layers, diffusers' modules with a processor. They are looked for once: a
    walk over all modules takes as long as a tenth of a pass.
    """
    found: list[Any] | None = vars(transformer).get("_attention_layers")
    if found is None:
        found = [module for module in transformer.modules() if hasattr(module, "get_processor")]
        vars(transformer)["_attention_layers"] = found
    return found


def share_of(transformer: nn.Module, blocks: Blocks) -> float:
    """The share, 0 to 1, of a transformer's linear weights that lies in these blocks."""
    inside, all_linear = (
        sum(layer.in_features * layer.out_features for layer in layers)
        for layers in (
            linear_layers(blocks).values(),
            (module for module in transformer.modules() if isinstance(module, nn.Linear)),
        )
    )
    return inside / all_linear if all_linear else 0.0
