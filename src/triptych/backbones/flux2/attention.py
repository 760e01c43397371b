"""Clean context for FLUX.2: attention that also attends to kept keys and values.

`flux/attention.py` explains the two passes. diffusers' own processors for the KV models do the same for
references in front of the image; these work for any known tokens, and for models of every klein pipeline.

Legend: B batch, S sequence, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2AttnProcessor,
    Flux2Modulation,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
    Flux2SingleTransformerBlock,
)
from torch import Tensor, nn

from triptych.backbones.context import Context
from triptych.backbones.streams import attend, mixed
from triptych.compute import cpu
from triptych.compute.blocks import attention_layers
from triptych.compute.modulation import untouched, with_children
from triptych.compute.rotary import table_of, turned


class DoubleAttention(Flux2AttnProcessor):
    """Flux2AttnProcessor, for the blocks of two streams. It also attends to the tokens of `before`, and
    stores its own keys and values in `context`.
    """

    def __call__(
        self,
        attn: Any,  # diffusers.models.transformers.transformer_flux2.Flux2Attention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        context: Context | None = None,
        before: Context | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if attention_mask is not None or image_rotary_emb is None:  # never in FLUX.2 itself
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        return attend(self, attn, hidden_states, encoder_hidden_states, image_rotary_emb, context, before)


class SingleAttention(Flux2ParallelSelfAttnProcessor):
    """Flux2ParallelSelfAttnProcessor, for the blocks of one stream, with `context` and `before` as above. One
    projection gives queries, keys, values and the feed-forward layer's input.
    """

    def __call__(
        self,
        attn: Any,  # diffusers.models.transformers.transformer_flux2.Flux2ParallelSelfAttention
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        context: Context | None = None,
        before: Context | None = None,
    ) -> Tensor:
        if attention_mask is not None or image_rotary_emb is None:
            return super().__call__(attn, hidden_states, attention_mask, image_rotary_emb)
        table = table_of(image_rotary_emb, hidden_states.shape[1], hidden_states.device)
        widths = [attn.inner_dim] * 3 + [attn.mlp_hidden_dim * attn.mlp_mult_factor]
        *projected, feed = attn.to_qkv_mlp_proj(hidden_states).split(widths, dim=-1)
        query, key, value = (states.unflatten(-1, (-1, attn.head_dim)) for states in projected)
        query, key = turned(attn.norm_q, query, table), turned(attn.norm_k, key, table)
        if context is not None:
            value = value.contiguous()  # a view would keep the whole projection alive, nine times as much
        states = mixed(self, query, key, value, context, before)
        return attn.to_out(torch.cat([states, attn.mlp_act_fn(feed)], dim=-1))


class KeysOnly(nn.Module):
    """The last single block, while known tokens are read. No block follows it, so only its keys and values
    are computed: two ninths of its first projection, and neither attention nor feed-forward layer.
    """

    def __init__(self, block: Flux2SingleTransformerBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        temb_mod: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        joint_attention_kwargs: dict[str, Any],
    ) -> Tensor:
        attn, context = self.block.attn, joint_attention_kwargs["context"]
        shift, scale, _ = Flux2Modulation.split(temb_mod, 1)[0]
        states = (1 + scale) * self.block.norm(hidden_states) + shift
        layer, places = attn.to_qkv_mlp_proj, slice(attn.inner_dim, 3 * attn.inner_dim)
        if type(layer) in (nn.Linear, cpu.Linear) and layer.bias is None and untouched(layer):
            projected = cpu.linear(states, layer.weight[places])
        else:  # with a LoRA, or quantised
            projected = layer(states)[..., places]
        key, value = (half.unflatten(-1, (-1, attn.head_dim)) for half in projected.chunk(2, dim=-1))
        table = table_of(image_rotary_emb, states.shape[1], states.device)
        context.kept[attn.processor] = turned(attn.norm_k, key, table), value.contiguous()
        return hidden_states


def reader(transformer: Any) -> Any:
    """The transformer for reading known tokens: the same modules, except that the last block computes only
    keys and values. The given transformer is not changed; a last block that is swapped, sharded or hooked
    runs whole.
    """
    *others, last = transformer.single_transformer_blocks
    if type(last) is not Flux2SingleTransformerBlock or not untouched(last):
        return transformer
    return with_children(transformer, single_transformer_blocks=nn.ModuleList([*others, KeysOnly(last)]))


def install(transformer: Any) -> None:
    """Give every attention layer a processor of this module, once."""
    for layer in attention_layers(transformer):
        kind = SingleAttention if isinstance(layer, Flux2ParallelSelfAttention) else DoubleAttention
        if not isinstance(layer.processor, kind):
            layer.set_processor(kind())
