"""Clean context for Stable Diffusion 3: attention that also attends to kept keys and values.

Legend: B batch, S sequence, D width; heads come as (B, heads, S, D/heads).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor, nn

from triptych.backbones.context import Context
from triptych.compute.attention import attention
from triptych.compute.blocks import attention_layers


class ContextAttention(JointAttnProcessor2_0):
    """JointAttnProcessor2_0 that also attends to the tokens of `before`, and stores its own keys and values
    in `context`. Without both it behaves as its parent.

    Known tokens are clean, modulated at t = 0, and attend only to known tokens. Their keys and values
    therefore do not depend on the step and are kept. `flux/attention.py` does the same for FLUX.
    """

    def __call__(
        self,
        attn: Any,  # diffusers.models.attention_processor.Attention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context: Context | None = None,
        before: Context | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if context is None and before is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)

        def heads(states: Tensor, norm: nn.Module | None = None) -> Tensor:
            states = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return states if norm is None else norm(states).to(states.dtype)

        image = hidden_states.shape[1]
        query, key = (
            heads(attn.to_q(hidden_states), attn.norm_q),
            heads(attn.to_k(hidden_states), attn.norm_k),
        )
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            query = torch.cat(
                [query, heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)], dim=2
            )
            key = torch.cat([key, heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)], dim=2)
            value = torch.cat([value, heads(attn.add_v_proj(encoder_hidden_states))], dim=2)
        if context is not None:
            context.kept[self] = key, value
        if before is not None:
            key, value = before.join(self, key, value)
        states = (
            attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
            .flatten(2)
            .to(query.dtype)
        )
        image_states = attn.to_out[1](attn.to_out[0](states[:, :image]))
        if encoder_hidden_states is None:
            return image_states
        text_states = states[:, image:]
        return image_states, text_states if attn.context_pre_only else attn.to_add_out(text_states)


def install(transformer: Any) -> None:
    """Give every attention layer a `ContextAttention` of its own, once."""
    for layer in attention_layers(transformer):
        if not isinstance(layer.processor, ContextAttention):
            layer.set_processor(ContextAttention())
