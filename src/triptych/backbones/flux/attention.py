"""Clean context for FLUX: known tokens are read once, and only the active tokens and the text run at every
step.

Known tokens are clean, modulated at t = 0, and attend only to known tokens. Their keys and values therefore
do not depend on the step. Two kinds of forward pass of the stock transformer suffice: the first runs the
known tokens and keeps their keys and values; the second, at every step, runs active tokens and text, which
also attend to the kept keys and values. The idea is that of OminiControl2 (arXiv 2503.08280) and
FLUX.2-klein-KV; here attention processors do it, and the model itself is unchanged.

Legend: B batch, S sequence, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxSingleTransformerBlock
from torch import Tensor, nn

from triptych.backbones.context import Context
from triptych.backbones.streams import attend
from triptych.compute.blocks import attention_layers
from triptych.compute.modulation import untouched, with_children
from triptych.compute.rotary import table_of, turned


class ContextAttention(FluxAttnProcessor):
    """FluxAttnProcessor with a faster rotary embedding. It also attends to the tokens of `before`, and stores
    its own keys and values in `context`.
    """

    def __call__(
        self,
        attn: Any,  # diffusers.models.transformers.transformer_flux.FluxAttention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        context: Context | None = None,
        before: Context | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if attention_mask is not None or image_rotary_emb is None:  # never in FLUX.1 itself
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )

        return attend(self, attn, hidden_states, encoder_hidden_states, image_rotary_emb, context, before)


class KeysOnly(nn.Module):
    """The last single block, while known tokens are read. No block follows it, so only its keys and values
    are computed.
    """

    def __init__(self, block: FluxSingleTransformerBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        joint_attention_kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        attn, context = self.block.attn, joint_attention_kwargs["context"]
        states, _ = self.block.norm(torch.cat([encoder_hidden_states, hidden_states], dim=1), emb=temb)
        key, value = (
            states_of(states).unflatten(-1, (-1, attn.head_dim)) for states_of in (attn.to_k, attn.to_v)
        )
        table = table_of(image_rotary_emb, states.shape[1], states.device)
        context.kept[attn.processor] = turned(attn.norm_k, key, table), value
        return encoder_hidden_states, hidden_states


def reader(transformer: Any) -> Any:
    """The transformer for reading known tokens: the same modules, except that the last block computes only
    keys and values.

    The given transformer is not changed, because other threads may be running it. The last block runs whole
    if it is not a plain diffusers block: if its weights are swapped or sharded, so that they arrive when it
    is called, or if it has hooks.
    """
    *others, last = transformer.single_transformer_blocks
    if type(last) is not FluxSingleTransformerBlock or not untouched(last):
        return transformer
    return with_children(transformer, single_transformer_blocks=nn.ModuleList([*others, KeysOnly(last)]))


def install(transformer: Any) -> None:
    """Give every attention layer a `ContextAttention`, once."""
    for layer in attention_layers(transformer):
        if not isinstance(layer.processor, ContextAttention):
            layer.set_processor(ContextAttention())
