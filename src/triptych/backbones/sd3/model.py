"""The transformer of Stable Diffusion 3 and 3.5, SD3Transformer2DModel, as diffusers'
StableDiffusion3Pipeline uses it.

Legend: B batch, C latent channels, H and W latent rows and columns, P patch size, N = H/P·W/P image tokens, D
width, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn

from triptych import flow
from triptych.backbones import families
from triptych.backbones.autoencoder_kl import KLAutoencoder
from triptych.backbones.context import Context, Reference, Window, of_canvas
from triptych.backbones.contract import Backbone, Text
from triptych.backbones.sd3.attention import install
from triptych.backbones.sd3.text import CLIP_TOKENS, SD3Text
from triptych.errors import ModelError


def unpatch(tokens_BND: Tensor, h: int, w: int, patch: int) -> Tensor:
    """(B, N, P·P·C) → (B, C, h, w), as at the end of SD3Transformer2DModel. A token's numbers are ordered by
    row, column, channel.
    """
    grid = tokens_BND.unflatten(2, (patch, patch, -1)).unflatten(1, (h // patch, w // patch))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class SD3(Backbone):
    family, name = families.SD3, families.SD3.name
    block_lists = ("transformer_blocks",)
    time_embedding = "time_text_embed"
    text_encoder_class, autoencoder_class, transformer_class = SD3Text, KLAutoencoder, SD3Transformer2DModel
    encoders = (
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    )
    # attn2 is the second attention, over image tokens alone, in the first blocks of SD3.5 medium. The last
    # block has no text output: it lacks to_add_out and ff_context, and its add_q_proj exists but has no
    # effect.
    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    def latent_channels(self, transformer: nn.Module) -> int:
        return int(transformer.config.in_channels)  # type: ignore[union-attr,arg-type]

    @classmethod
    def text_shapes(cls, transformer: Any, max_sequence_length: int) -> dict[str, tuple[int, ...]]:
        config = transformer.config
        return {
            "prompt_embeds": (CLIP_TOKENS + max_sequence_length, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }

    @staticmethod
    def text_tokens(text: Text) -> int:
        return text["prompt_embeds"].shape[1]

    def sigmas(self, num_inference_steps: int, tokens: int) -> list[float]:
        """The scheduler's default levels: evenly spaced from 1 to its smallest level, which is already
        shifted.
        """
        smallest = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config).sigma_min
        return flow.sigmas(num_inference_steps, self.mu(tokens, num_inference_steps), smallest)

    def velocity(
        self,
        transformer: nn.Module,
        latents_BCHW: Tensor,
        t_B: Tensor,
        text: Text,
        guidance_scale: float | None,
        window: Window | None = None,
    ) -> Tensor:
        self._check_size(transformer, latents_BCHW)
        states, pooled = text["prompt_embeds"].to(self.dtype), text["pooled_prompt_embeds"].to(self.dtype)
        if window is None:
            return transformer(
                hidden_states=latents_BCHW.to(self.dtype),
                timestep=t_B.to(latents_BCHW.device) * 1000,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                return_dict=False,
            )[0].float()
        attend = {} if window.context is None else {"before": window.context}
        made = self._run_tokens(transformer, latents_BCHW, window, t_B, states, pooled, attend)
        h, w = latents_BCHW.shape[2:]
        patch_size: int = transformer.config.patch_size  # type: ignore[union-attr,assignment]
        return unpatch(window.put(made), h, w, patch_size).float()

    def conditioning(self, transformer: Any, t_T: Tensor, text: Text, guidance_scale: float | None) -> Tensor:
        pooled = text["pooled_prompt_embeds"].to(self.dtype)
        times = t_T.to(pooled.device).repeat_interleave(len(pooled)) * 1000
        made: Tensor = transformer.time_text_embed(times, pooled.repeat(len(t_T), 1))
        return made.unflatten(0, (len(t_T), len(pooled)))

    def read(
        self,
        transformer: nn.Module,
        references: Sequence[Reference],
        empty: Text,
        before: Context | None = None,
    ) -> Context:
        clean_BCHW, known = of_canvas(references)
        self._check_size(transformer, clean_BCHW)
        install(transformer)
        b = len(clean_BCHW)
        context = Context(sequence_dim=2)
        states = empty["prompt_embeds"][:, :0].expand(b, -1, -1).to(self.dtype)
        pooled = empty["pooled_prompt_embeds"].expand(b, -1).to(self.dtype)
        self._run_tokens(
            transformer,
            clean_BCHW,
            Window(known),
            torch.zeros(b, device=clean_BCHW.device),
            states,
            pooled,
            {"context": context, "before": before},
        )
        return context

    def _run_tokens(
        self,
        transformer: Any,
        latents_BCHW: Tensor,
        window: Window,
        t_B: Tensor,
        states: Tensor,
        pooled: Tensor,
        attend: dict[str, Any],
    ) -> Tensor:
        """SD3Transformer2DModel.forward for some tokens of the canvas, each at its own position. Returns
        velocity tokens (B, S, P·P·C).

        The stock forward cannot run a part: it crops its position table to a whole canvas, and reassembles a
        whole canvas at its end. The layers between are called exactly as it calls them.
        """
        hidden = window.take(transformer.pos_embed(latents_BCHW.to(self.dtype)))
        time = transformer.time_text_embed(t_B.to(hidden.device) * 1000, pooled)
        states = transformer.context_embedder(states)
        recompute = torch.is_grad_enabled() and transformer.gradient_checkpointing
        for block in transformer.transformer_blocks:
            given = (hidden, states, time, attend)
            states, hidden = (
                transformer._gradient_checkpointing_func(block, *given) if recompute else block(*given)
            )
        return transformer.proj_out(transformer.norm_out(hidden, time))

    def _check_size(self, transformer: Any, latents_BCHW: Tensor) -> None:
        """Raise ModelError for a canvas larger than the table of positions."""
        most, patch = transformer.config.pos_embed_max_size, transformer.config.patch_size
        sides = [side // patch for side in latents_BCHW.shape[2:]]
        if max(sides) > most:
            raise ModelError(
                f"The canvas is {sides[1]} × {sides[0]} tokens large, and {self.model} has places for {most} "
                f"× {most}.",
                f"Make the panels smaller; their sides may add up to {most * self.settings.stride} pixels.",
            )
