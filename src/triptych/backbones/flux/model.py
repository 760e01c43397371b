"""FLUX.1's transformer, FluxTransformer2DModel, as diffusers' FluxPipeline uses it.

Legend: B batch, C latent channels, H and W latent rows and columns, N = H/2·W/2 image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from triptych import flow
from triptych.backbones.autoencoder_kl import KLAutoencoder
from triptych.backbones.context import Context, Reference, Window, of_canvas
from triptych.backbones.contract import Backbone, Text
from triptych.backbones.families import FLUX
from triptych.backbones.flux.attention import install, reader
from triptych.backbones.flux.text import FluxText
from triptych.backbones.streams import in_one_list


def pack(latents_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) → (B, N, 4C): each token is a 2×2 patch of latents."""
    b, c, h, w = latents_BCHW.shape
    return (
        latents_BCHW.view(b, c, h // 2, 2, w // 2, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(b, h // 2 * (w // 2), c * 4)
    )


def unpack(tokens_BND: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack` for latents of h rows and w columns."""
    b, _, d = tokens_BND.shape
    return tokens_BND.view(b, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, h, w)


def position_ids(h: int, w: int, device: torch.device) -> Tensor:
    """(N, 3): 0, row and column of every token, for rotary position embedding."""
    sides = (torch.arange(side // 2, device=device, dtype=torch.float32) for side in (h, w))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)


class Flux(Backbone):
    family, name = FLUX, FLUX.name
    step_cache = True
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    time_embedding = "time_text_embed"
    text_encoder_class, autoencoder_class, transformer_class = FluxText, KLAutoencoder, FluxTransformer2DModel
    encoders = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "proj_mlp",
        "proj_out",
    )

    def latent_channels(self, transformer: nn.Module) -> int:
        return int(transformer.config.in_channels) // 4  # type: ignore[union-attr,arg-type]

    @classmethod
    def text_shapes(cls, transformer: Any, max_sequence_length: int) -> dict[str, tuple[int, ...]]:
        config = transformer.config
        return {
            "prompt_embeds": (max_sequence_length, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }

    @staticmethod
    def text_tokens(text: Text) -> int:
        return text["prompt_embeds"].shape[1]

    def velocity(
        self,
        transformer: nn.Module,
        latents_BCHW: Tensor,
        t_B: Tensor,
        text: Text,
        guidance_scale: float | None,
        window: Window | None = None,
    ) -> Tensor:
        h, w = latents_BCHW.shape[2:]
        tokens, ids = pack(latents_BCHW), position_ids(h, w, latents_BCHW.device)
        states, pooled = text["prompt_embeds"], text["pooled_prompt_embeds"]
        if window is None:
            return unpack(
                self._forward(transformer, tokens, ids, t_B, states, pooled, guidance_scale), h, w
            ).float()
        attend = {} if window.context is None else {"before": window.context}
        active, places = window.take(tokens), ids[window.places(ids.device)]
        made = self._forward(transformer, active, places, t_B, states, pooled, guidance_scale, attend)
        return unpack(window.put(made), h, w).float()

    def conditioning(self, transformer: Any, t_T: Tensor, text: Text, guidance_scale: float | None) -> Tensor:
        pooled = text["pooled_prompt_embeds"].to(self.dtype)
        numbers = [t_T.to(pooled).repeat_interleave(len(pooled)) * 1000]
        if transformer.config.guidance_embeds:
            assert guidance_scale is not None
            numbers.append(torch.full_like(numbers[0], guidance_scale) * 1000)
        made: Tensor = transformer.time_text_embed(*numbers, pooled.repeat(len(t_T), 1))
        return made.unflatten(0, (len(t_T), len(pooled)))

    def read(
        self,
        transformer: nn.Module,
        references: Sequence[Reference],
        empty: Text,
        before: Context | None = None,
    ) -> Context:
        clean_BCHW, known = of_canvas(references)
        b, _, h, w = clean_BCHW.shape
        context, window = Context(sequence_dim=1), Window(known)
        states = empty["prompt_embeds"][:, :0].expand(b, -1, -1)
        pooled = empty["pooled_prompt_embeds"].expand(b, -1)
        device = clean_BCHW.device
        tokens, ids = window.take(pack(clean_BCHW)), position_ids(h, w, device)[window.places(device)]
        install(transformer)
        self._forward(
            reader(transformer),
            tokens,
            ids,
            torch.zeros(b, device=clean_BCHW.device),
            states,
            pooled,
            1.0,
            {"context": context, "before": before},
        )
        return context

    def _forward(
        self,
        transformer: nn.Module,
        tokens_BND: Tensor,
        ids: Tensor,
        t_B: Tensor,
        states: Tensor,
        pooled: Tensor,
        guidance_scale: float | None,
        attend: dict[str, Any] | None = None,
    ) -> Tensor:
        """The stock forward: from tokens (B, N, 4C) and their position ids, (N, 3) or (1 or B, N, 3), to
        velocity tokens.
        """
        install(transformer)
        b, device = len(tokens_BND), tokens_BND.device
        words, ids = in_one_list(torch.zeros(states.shape[1], 3, device=device), ids, b)
        guidance = None
        if transformer.config.guidance_embeds:  # type: ignore[union-attr]
            assert guidance_scale is not None
            guidance = torch.full((b,), guidance_scale, device=device)
        return transformer(
            hidden_states=tokens_BND.to(self.dtype),
            timestep=t_B.to(device, self.dtype),
            guidance=guidance,
            pooled_projections=pooled.to(self.dtype),
            encoder_hidden_states=states.to(self.dtype),
            txt_ids=words,
            img_ids=ids,
            joint_attention_kwargs=attend,
            return_dict=False,
        )[0]

    def sigmas(self, num_inference_steps: int, tokens: int) -> list[float]:
        """The levels that FluxPipeline gives to its scheduler: evenly spaced from 1 to 1/n."""
        return flow.sigmas(
            num_inference_steps, self.mu(tokens, num_inference_steps), 1.0 / num_inference_steps
        )
