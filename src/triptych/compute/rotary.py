"""Rotary position embedding of queries and keys, for the processors of all families that use it.

Legend: B batch, S sequence, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from triptych.compute.cpu import only_computes


def table_of(rotary: tuple[Tensor, Tensor], count: int, device: torch.device) -> Tensor:
    """Cosines and sines per position, (1 or B, S, 1, D/2, 2), from the model's rotary tables: two of (S, D),
    which hold each number twice; or two of (B·S, D) where each sample has its own positions.

    All layers of a pass are given the same tables, so theirs is computed once and kept with them.
    """
    if torch.compiler.is_compiling():
        return _table(rotary, count, device)
    kept: dict[Any, Tensor] = vars(rotary[0]).setdefault("_tables", {})
    if (count, device) not in kept:
        kept[count, device] = _table(rotary, count, device)
    return kept[count, device]


def _table(rotary: tuple[Tensor, Tensor], count: int, device: torch.device) -> Tensor:
    return torch.stack(
        [part[:, ::2].unflatten(0, (-1, count)).unsqueeze(2).to(device) for part in rotary], dim=-1
    )


def turned(norm: nn.Module, states_BSHD: Tensor, table: Tensor) -> Tensor:
    """Normalise queries or keys and rotate them by their positions (see `rotate`).

    PyTorch's norm on the CPU is a sequence of separate operations, and in bfloat16 it rounds before the
    rotation. This version passes over memory fewer times. The result has the dtype of the given states, as
    values have: under autocast the norm alone would leave float32.
    """
    if (
        type(norm) is not nn.RMSNorm
        or not norm.elementwise_affine
        or norm.eps is None
        or not only_computes(states_BSHD, norm.weight)
    ):
        return rotate(norm(states_BSHD), table, states_BSHD.dtype)
    states = states_BSHD.float()
    squares = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square() / states.shape[-1]
    normed = (states * (squares + norm.eps).rsqrt()).mul_(norm.weight.float())
    return rotate(normed, table, states_BSHD.dtype)


def rotate(states_BSHD: Tensor, table: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """diffusers' `apply_rotary_emb` (Su et al. 2021, arXiv 2104.09864, eq. 34), as one complex product, which
    reads and writes memory once instead of six times. dtype: of the result; None: that of the states.
    """
    pairs = states_BSHD.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses the plain form, and has no complex numbers
        (real, imaginary), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        made = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    else:
        made = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return made.flatten(-2).to(dtype or states_BSHD.dtype)
