"""Stable Diffusion 3 and 3.5: SD3Transformer2DModel, AutoencoderKL, two CLIPs and T5, as diffusers'
StableDiffusion3Pipeline uses them.

Legend: B batch, C latent channels, H and W latent rows and columns, P patch size, N = H/P·W/P image tokens, L
text tokens, D width, S sequence, heads come as (B, heads, S, D/heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from triptych import flow
from triptych.backbones.autoencoder_kl import KLAutoencoder
from triptych.backbones.checkpoint import whole
from triptych.backbones.contract import Backbone, Context, Text, TextEncoder, Window
from triptych.backbones.settings import T5_TOKENIZERS
from triptych.compute.attention import attention
from triptych.errors import ModelError

CLIP_TOKENS = 77


def unpatch(tokens_BND: Tensor, h: int, w: int, patch: int) -> Tensor:
    """(B, N, P·P·C) → (B, C, h, w), as the end of SD3Transformer2DModel does; a token's numbers are rows,
    columns, channels.
    """
    grid = tokens_BND.unflatten(2, (patch, patch, -1)).unflatten(1, (h // patch, w // patch))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class SD3Text(TextEncoder):
    """Both CLIPs' last but one states side by side, then T5's below them (`prompt_embeds`, (B, 77 + L, D));
    both pooled vectors side by side (`pooled_prompt_embeds`, (B, D)).
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        load = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        self.clip_tokenizers = [
            AutoTokenizer.from_pretrained(model, subfolder=name) for name in ("tokenizer", "tokenizer_2")
        ]
        self.t5_tokenizer = AutoTokenizer.from_pretrained(
            model, subfolder=T5_TOKENIZERS["StableDiffusion3Pipeline"]
        )
        self.clips = [
            whole(model, name, CLIPTextModelWithProjection.from_pretrained(model, subfolder=name, **load))
            .to(device)
            .eval()
            for name in ("text_encoder", "text_encoder_2")
        ]
        t5 = T5EncoderModel.from_pretrained(model, subfolder="text_encoder_3", **load)
        self.t5 = whole(model, "text_encoder_3", t5).to(device).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_sequence_length: int) -> Text:
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        states, pooled = [], []
        for tokenizer, clip in zip(self.clip_tokenizers, self.clips, strict=True):
            ids = tokenizer(list(prompts), max_length=CLIP_TOKENS, **pad).input_ids
            out = clip(ids.to(clip.device), output_hidden_states=True)
            states.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        ids = self.t5_tokenizer(list(prompts), max_length=max_sequence_length, **pad).input_ids
        t5 = self.t5(ids.to(self.t5.device))[0]
        clip_states = torch.cat(states, dim=-1)
        clip_states = nn.functional.pad(clip_states, (0, t5.shape[-1] - clip_states.shape[-1]))
        return {
            "prompt_embeds": torch.cat([clip_states, t5], dim=-2),
            "pooled_prompt_embeds": torch.cat(pooled, dim=-1),
        }

    def count_tokens(self, prompt: str) -> int:
        return len(self.t5_tokenizer(prompt).input_ids)


class SD3(Backbone):
    name = "sd3"
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
    # attn2 is the second attention, of the image alone, in the first blocks of SD3.5 medium. The last block
    # drops its text: it has neither to_add_out nor ff_context, and its add_q_proj is there but changes
    # nothing.
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

    def sigmas(self, num_inference_steps: int, tokens: int) -> list[float]:
        """As the scheduler sets them when it is given nothing: evenly from 1 to its smallest, which is
        shifted already.
        """
        smallest = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config).sigma_min
        return flow.sigmas(num_inference_steps, self.shift_mu(tokens), smallest)

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
        return unpatch(window.put(made), h, w, transformer.config.patch_size).float()  # type: ignore[union-attr,arg-type]

    def conditioning(self, transformer: Any, t_T: Tensor, text: Text, guidance_scale: float | None) -> Tensor:
        pooled = text["pooled_prompt_embeds"].to(self.dtype)
        times = t_T.to(pooled.device).repeat_interleave(len(pooled)) * 1000
        made: Tensor = transformer.time_text_embed(times, pooled.repeat(len(t_T), 1))
        return made.unflatten(0, (len(t_T), len(pooled)))

    def read(
        self,
        transformer: nn.Module,
        clean_BCHW: Tensor,
        known: Tensor,
        empty: Text,
        before: Context | None = None,
    ) -> Context:
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
            torch.zeros(b),
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
        """SD3Transformer2DModel.forward for some of the canvas's tokens, each at its own place: velocity
        tokens (B, S, P·P·C).

        The stock forward cannot do it: it embeds positions by cropping a table to the whole canvas, and puts
        a whole canvas together at its end. Everything between is called as it calls it.
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
        """Positions are a table of a fixed size."""
        most, patch = transformer.config.pos_embed_max_size, transformer.config.patch_size
        sides = [side // patch for side in latents_BCHW.shape[2:]]
        if max(sides) > most:
            raise ModelError(
                f"The canvas is {sides[1]} × {sides[0]} tokens large, and {self.model} has places for {most} "
                f"× {most}.",
                f"Make the panels smaller; their sides may add up to {most * self.settings.stride} pixels.",
            )


class ContextAttention(JointAttnProcessor2_0):
    """JointAttnProcessor2_0 that also attends to the tokens of `before`, and keeps its own in `context`;
    without both it is its parent.

    Known tokens are clean, modulated at t = 0, and attend only to known tokens, so that their keys and values
    do not depend on the step and are kept; see `flux_context`, which does the same for FLUX.
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
            return states if norm is None else norm(states)

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
    processors = transformer.attn_processors
    if not all(isinstance(one, ContextAttention) for one in processors.values()):
        transformer.set_attn_processor({name: ContextAttention() for name in processors})
