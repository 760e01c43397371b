"""Gradient checkpointing: the blocks' activations are computed again in the backward pass (Chen et al. 2016,
arXiv 1604.06174).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(transformer: nn.Module, random: bool) -> None:
    """Switch gradient checkpointing on. random: whether a block draws random numbers (dropout); only then is
    the generators' state kept for each block. PyTorch's comparison of every tensor with its first form is
    left out: the blocks compute the same again.
    """
    function = partial(_again, preserve_rng_state=random)
    transformer.enable_gradient_checkpointing(function)  # type: ignore[operator]


def _again(block: nn.Module, *inputs: Any, preserve_rng_state: bool) -> Any:
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=preserve_rng_state,
        determinism_check="none",
    )
