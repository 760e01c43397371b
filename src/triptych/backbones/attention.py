"""Attention as every family's processors call it: diffusers' dispatch, but for bfloat16 on a CPU.

Legend: B batch, S sequence, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

FEW, MOST = 1 << 17, 1 << 26
"""Scores (queries × keys) of a head below which the kernel is as fast; and the most that are held at once: 128 MiB."""


def attention(query_BSHD: Tensor, key_BSHD: Tensor, value_BSHD: Tensor, backend: Any = None) -> Tensor:
    """softmax(q·kᵀ / √D)·v, (B, S, H, D) (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    PyTorch's kernel for the CPU computes bfloat16 no faster than float32, a fifth of what its matrix products reach; there, and
    where nothing is to be differentiated, attention is two batched products and a softmax (2.5 times as fast for 1,424 tokens).
    Scores and weights are then rounded to bfloat16, which adds about as much as the rounding of queries and keys did before.
    """
    wants_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in (query_BSHD, key_BSHD, value_BSHD))
    by_products = query_BSHD.device.type == "cpu" and query_BSHD.dtype == torch.bfloat16
    by_products = by_products and query_BSHD.shape[1] * key_BSHD.shape[1] >= FEW
    if backend is not None or not by_products or wants_gradient or torch.compiler.is_compiling():
        return dispatch_attention_fn(query_BSHD, key_BSHD, value_BSHD, backend=backend)
    query, key, value = (states.transpose(1, 2) for states in (query_BSHD * query_BSHD.shape[-1] ** -0.5, key_BSHD, value_BSHD))
    made = torch.empty_like(query_BSHD)
    heads = torch.get_num_threads()  # at once: a thread each, and what they hold stays in the cache
    rows = max(1, MOST // (heads * key.shape[2]))
    for sample in range(len(query)):
        for head in range(0, query.shape[1], heads):
            some = slice(head, head + heads)
            keys, values = key[sample, some].transpose(-1, -2), value[sample, some]
            for start in range(0, query.shape[2], rows):
                weights = torch.softmax(query[sample, some, start : start + rows] @ keys, dim=-1)
                made[sample, start : start + rows, some] = (weights @ values).transpose(0, 1)
    return made
