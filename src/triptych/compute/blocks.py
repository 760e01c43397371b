"""A transformer's blocks: the layers that follow one another, nearly all of its weights.

Only a model's family knows what its blocks are called (`Backbone.blocks`). Whatever quantises, swaps, shards
or modulates them is given them and knows no names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

Blocks = Mapping[str, nn.Module]
"""Blocks by their path in the transformer, such as `transformer_blocks.0`, in the order in which they run."""

LEAST_SHARE = 0.5
"""Share of a transformer's linear weights that its blocks hold at least: even of a tiny model for tests. Real
models have 99 %.
"""


def blocks_of(transformer: nn.Module, lists: Sequence[str]) -> dict[str, nn.Module]:
    """The blocks in a transformer's module lists. lists: their paths, in the order in which they run.

    Raises:
        ValueError: no such list, an empty one, or most of the linear weights lie elsewhere. Quantising or
            swapping such blocks would do nothing, or little.
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


def share_of(transformer: nn.Module, blocks: Blocks) -> float:
    """Which part of the weights in a transformer's linear layers lies in these blocks, 0 to 1."""
    inside, all_linear = (
        sum(layer.in_features * layer.out_features for layer in layers)
        for layers in (
            linear_layers(blocks).values(),
            (module for module in transformer.modules() if isinstance(module, nn.Linear)),
        )
    )
    return inside / all_linear if all_linear else 0.0
