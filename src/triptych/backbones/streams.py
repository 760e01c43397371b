"""Attention of image tokens and text tokens, each with projections of its own, as FLUX.1 and FLUX.2 have it.

Their blocks of two streams name the layers alike. Keys and values of known tokens can be kept and joined, see
`backbones/context.py`. Legend: B batch, S sequence, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from triptych.backbones.context import Context
from triptych.compute.attention import attention
from triptych.compute.rotary import table_of, turned


def in_one_list(words_LA: Tensor, ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Positions of text and image tokens as the stock forward takes them: one list each.

    Where each sample has positions of its own, the lists of all samples stand one behind the other in the
    second, text first, and the first is empty; `table_of` splits them again.

    words_LA: positions of the text tokens, on A axes. ids: those of the image tokens, (N, A) or (1 or B, N,
    A).
    """
    if ids.ndim == 2:
        return words_LA, ids
    if len(ids) == 1:
        return words_LA, ids[0]
    return words_LA[:0], torch.cat([words_LA.expand(batch, -1, -1), ids], dim=1).flatten(0, 1)


def attend(
    processor: Any,
    attn: Any,
    image: Tensor,
    text: Tensor | None,
    rotary: tuple[Tensor, Tensor],
    context: Context | None,
    before: Context | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over text and image tokens, with text first; without text, over one stream of both.

    Args:
        processor: the layer's key in a `Context`. attn: diffusers' attention module. image, text: states
            (B, S, H·D). rotary: cosines and sines of the positions, see `table_of`.
        context: stores this layer's keys and values. before: keys and values to attend to as well.

    Returns:
        With text, the outputs of both streams; without, the states before the output projection.
    """

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, attn.head_dim))

    length = 0 if text is None else text.shape[1]
    table = table_of(rotary, length + image.shape[1], image.device)
    query = turned(attn.norm_q, heads(attn.to_q(image)), table[:, length:])
    key, value = turned(attn.norm_k, heads(attn.to_k(image)), table[:, length:]), heads(attn.to_v(image))
    if text is not None:
        own = table[:, :length]
        query = torch.cat([turned(attn.norm_added_q, heads(attn.add_q_proj(text)), own), query], dim=1)
        key = torch.cat([turned(attn.norm_added_k, heads(attn.add_k_proj(text)), own), key], dim=1)
        value = torch.cat([heads(attn.add_v_proj(text)), value], dim=1)
    states = mixed(processor, query, key, value, context, before)
    if text is None:
        return states
    made = attn.to_out[1](attn.to_out[0](states[:, length:].contiguous()))
    return made, attn.to_add_out(states[:, :length].contiguous())


def mixed(
    processor: Any,
    query_BSHD: Tensor,
    key_BSHD: Tensor,
    value_BSHD: Tensor,
    context: Context | None,
    before: Context | None,
) -> Tensor:
    """Attention of the given tokens to each other and to those of `before`: (B, S, H·D). Their own keys and
    values are stored in `context`.
    """
    if context is not None:
        context.kept[processor] = key_BSHD, value_BSHD
    if before is not None:
        key_BSHD, value_BSHD = before.join(processor, key_BSHD, value_BSHD)
    states = attention(query_BSHD, key_BSHD, value_BSHD, processor._attention_backend)
    return states.flatten(2, 3).to(query_BSHD.dtype)
