"""Attention for the processors of all families: diffusers' dispatch, or a faster form on a CPU without
gradients.

Legend: B batch, S sequence, H heads, D head width, Q queries and K keys of one sample and some heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from triptych.compute.cpu import AVAILABLE, linear, only_computes

FEW, MOST = 1 << 17, 1 << 26
"""Numbers of scores (queries × keys). With fewer than FEW in a head, PyTorch's kernel is as fast. At most
MOST are held at once: 128 or 256 MiB.
"""

SAFE = 60.0
"""Up to this score, the exponentials and their sum over all keys stay far inside the range of float32 and
bfloat16.
"""


@contextmanager
def sound_gradients() -> Iterator[None]:
    """Within this, PyTorch leaves cuDNN's attention out on a card.

    On an H200 with PyTorch 2.11 and bfloat16 the gradients of a training step of a small FLUX.1 were 33 %
    from those in float32 where cuDNN computed the attention, ours and diffusers' alike, and 1 % with flash
    attention, which takes a third longer (docs/benchmarks.md).
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def attention(query_BSHD: Tensor, key_BSHD: Tensor, value_BSHD: Tensor, backend: Any = None) -> Tensor:
    """softmax(q·kᵀ / √D)·v, (B, S, H, D) (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    PyTorch's CPU kernel is no faster in bfloat16 than in float32 (a fifth of the speed of its matrix
    products), and in float32 it uses MKL (see `cpu`). Two products and an exponential are 2.5 to 3 times as
    fast in bfloat16 and 1.8 times in float32, for 1,424 tokens. In bfloat16 this also rounds scores and
    weights, which adds an error about as large as that of rounding queries and keys.
    """
    states = query_BSHD, key_BSHD, value_BSHD
    quick = query_BSHD.dtype == torch.bfloat16 or (query_BSHD.dtype == torch.float32 and AVAILABLE)
    by_products = quick and query_BSHD.shape[1] * key_BSHD.shape[1] >= FEW
    if backend is not None or not by_products or not only_computes(*states):
        return dispatch_attention_fn(query_BSHD, key_BSHD, value_BSHD, backend=backend)
    made = torch.empty_like(query_BSHD)
    for query, key, value, out in zip(*states, made, strict=True):
        _sample(*(one.transpose(0, 1) for one in (query, key, value, out)))
    return made


def _sample(query_HSD: Tensor, key_HSD: Tensor, value_HSD: Tensor, out_HSD: Tensor) -> None:
    """Attention of one sample, written into `out_HSD`."""
    # In float32, 2^x is faster than e^x, but it needs log₂ e in the scale. bfloat16 would round that factor,
    # and does not round √64.
    exponential, unit = (
        (Tensor.exp_, 1.0) if query_HSD.dtype == torch.bfloat16 else (Tensor.exp2_, math.log2(math.e))
    )
    query_HSD = query_HSD * (unit * query_HSD.shape[-1] ** -0.5)
    query_length, key_length = (
        float(torch.linalg.vector_norm(one, dim=-1).amax()) for one in (query_HSD, key_HSD)
    )
    safe = query_length * key_length <= SAFE  # no score can be further from 0 (Cauchy and Schwarz)
    # Heads per step, so that the scores stay in the cache. The batched product in bfloat16 gives each thread
    # a head; oneDNN has no batched product in float32.
    heads = torch.get_num_threads() if query_HSD.dtype == torch.bfloat16 else 1
    rows = max(1, MOST // (heads * key_HSD.shape[1]))
    for head in range(0, len(query_HSD), heads):
        query, key, value = (one[head : head + heads].contiguous() for one in (query_HSD, key_HSD, value_HSD))
        for start in range(0, query.shape[1], rows):
            weights = _product(query[:, start : start + rows], key.transpose(1, 2))
            if not safe:  # softmax does not change if a number is subtracted from all scores of a row
                weights -= weights.amax(-1, keepdim=True)
            exponential(weights)
            total = weights.sum(-1, keepdim=True)
            torch.div(_product(weights, value), total, out=out_HSD[head : head + heads, start : start + rows])


def _product(left_HQD: Tensor, right_HDK: Tensor) -> Tensor:
    if len(left_HQD) > 1 or left_HQD.dtype == torch.bfloat16:
        return left_HQD @ right_HDK
    return linear(left_HQD[0], right_HDK[0].t())[None]
