"""What a table of layer names is made of."""

from __future__ import annotations

from collections.abc import Mapping

Names = Mapping[str, tuple[str, ...]]
"""Layer name in another model code → the diffusers layers that hold its rows, top to bottom. `#` is the block
number.
"""

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def table(
    double: str, of_double: Names, single: str, of_single: Names, outside: Names
) -> dict[str, tuple[str, ...]]:
    """A table from the names inside the double blocks, inside the single ones, and outside the blocks."""
    return {
        **{
            f"{double}.#.{name}": tuple(f"transformer_blocks.#.{p}" for p in parts)
            for name, parts in of_double.items()
        },
        **{
            f"{single}.#.{name}": tuple(f"single_transformer_blocks.#.{p}" for p in parts)
            for name, parts in of_single.items()
        },
        **outside,
    }


def parts_of(names: Names) -> dict[str, tuple[str, ...]]:
    """The table of diffusers' own names: each layer that a table leads to stands for itself."""
    return {part: (part,) for parts in names.values() for part in parts}


def split(names: Names) -> dict[str, tuple[str, ...]]:
    """The same table with the fused layers cut into numbered parts."""
    return {
        **{
            f"{name}.{i}": (part,)
            for name, parts in names.items()
            if len(parts) > 1
            for i, part in enumerate(parts)
        },
        **{name: parts for name, parts in names.items() if len(parts) == 1},
    }
