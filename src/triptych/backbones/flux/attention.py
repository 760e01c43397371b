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
from triptych.compute.attention import attention
from triptych.compute.cpu import only_computes
from triptych.compute.modulation import untouched, with_children


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

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (-1, attn.head_dim))

        text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        table = table_of(image_rotary_emb, text + hidden_states.shape[1], hidden_states.device)
        query = turned(attn.norm_q, heads(attn.to_q(hidden_states)), table[:, text:])
        key = turned(attn.norm_k, heads(attn.to_k(hidden_states)), table[:, text:])
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            query = torch.cat(
                [
                    turned(attn.norm_added_q, heads(attn.add_q_proj(encoder_hidden_states)), table[:, :text]),
                    query,
                ],
                dim=1,
            )
            key = torch.cat(
                [
                    turned(attn.norm_added_k, heads(attn.add_k_proj(encoder_hidden_states)), table[:, :text]),
                    key,
                ],
                dim=1,
            )
            value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), value], dim=1)
        if context is not None:
            context.kept[self] = key, value
        if before is not None:
            key, value = before.join(self, key, value)
        states = attention(query, key, value, self._attention_backend).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return states
        image = attn.to_out[1](attn.to_out[0](states[:, text:].contiguous()))
        return image, attn.to_add_out(states[:, :text].contiguous())


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


def table_of(rotary: tuple[Tensor, Tensor], count: int, device: torch.device) -> Tensor:
    """Cosines and sines per position, (1 or B, S, 1, D/2, 2), from the model's rotary tables: two of (S, D),
    which hold each number twice; or two of (B·S, D) where each sample has its own positions.
    """
    return torch.stack(
        [part[:, ::2].unflatten(0, (-1, count)).unsqueeze(2).to(device) for part in rotary], dim=-1
    )


def turned(norm: nn.Module, states_BSHD: Tensor, table: Tensor) -> Tensor:
    """Normalise queries or keys and rotate them by their positions (see `rotate`).

    PyTorch's norm on the CPU is a sequence of separate operations, and in bfloat16 it rounds before the
    rotation. This version passes over memory fewer times.
    """
    if (
        type(norm) is not nn.RMSNorm
        or not norm.elementwise_affine
        or norm.eps is None
        or not only_computes(states_BSHD, norm.weight)
    ):
        return rotate(norm(states_BSHD), table)
    states = states_BSHD.float()
    squares = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square() / states.shape[-1]
    normed = (states * (squares + norm.eps).rsqrt()).mul_(norm.weight.float())
    return rotate(normed, table).to(states_BSHD.dtype)


def rotate(states_BSHD: Tensor, table: Tensor) -> Tensor:
    """diffusers' `apply_rotary_emb` (Su et al. 2021, arXiv 2104.09864, eq. 34), as one complex product, which
    reads and writes memory once instead of six times.
    """
    pairs = states_BSHD.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses the plain form, and has no complex numbers
        (real, imaginary), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        made = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    else:
        made = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return made.flatten(-2).to(states_BSHD.dtype)


def install(transformer: Any) -> None:
    """Give every attention layer a `ContextAttention`, once."""
    processors = transformer.attn_processors
    if not all(isinstance(one, ContextAttention) for one in processors.values()):
        transformer.set_attn_processor({name: ContextAttention() for name in processors})
