"""FLUX.2-klein's transformer, Flux2Transformer2DModel, as diffusers' klein pipelines use it.

A token is one cell of the latents. Positions are (T, row, column, L): T is 0 for the canvas and 10, 20 … for
reference pictures, L numbers the text tokens.

Legend: B batch, C latent channels, H and W latent rows and columns, N image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from triptych import flow
from triptych.backbones.context import Context, Reference, Window
from triptych.backbones.contract import Backbone, Text
from triptych.backbones.families import FLUX2
from triptych.backbones.flux2.attention import install, reader
from triptych.backbones.flux2.autoencoder import Flux2Autoencoder
from triptych.backbones.flux2.text import Flux2Text
from triptych.backbones.streams import in_one_list

FRAMES_APART = 10
"""Distance in T of two reference pictures, and of the first from the canvas (Flux2KleinPipeline)."""


def pack(latents_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C): each cell is a token."""
    return latents_BCHW.flatten(2).transpose(1, 2)


def unpack(tokens_BND: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack` for latents of h rows and w columns."""
    return tokens_BND.transpose(1, 2).unflatten(2, (h, w))


def position_ids(h: int, w: int, frame: int, device: torch.device) -> Tensor:
    """(H·W, 4): the position of every token of the canvas (frame 0) or of the `frame`-th reference."""
    sides = (torch.arange(side, device=device, dtype=torch.float32) for side in (h, w))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    time, words = torch.full_like(rows, FRAMES_APART * frame), torch.zeros_like(rows)
    return torch.stack([time, rows, columns, words], -1).reshape(-1, 4)


class Flux2(Backbone):
    family, name = FLUX2, FLUX2.name
    step_cache = False  # diffusers 0.42.1 registers the blocks, but fails on the output of the single ones
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    time_embedding = "time_guidance_embed"
    shared_modulation = (
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    )
    text_encoder_class, autoencoder_class = Flux2Text, Flux2Autoencoder
    transformer_class = Flux2Transformer2DModel
    encoders = ("vae", "text_encoder", "tokenizer")
    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "ff_context.linear_out",
        "attn.to_qkv_mlp_proj",
        "attn.to_out",  # a linear layer in the single blocks, a list in the double ones
    )

    def latent_channels(self, transformer: nn.Module) -> int:
        return int(transformer.config.in_channels)  # type: ignore[union-attr,arg-type]

    @classmethod
    def text_shapes(cls, transformer: Any, max_sequence_length: int) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (max_sequence_length, transformer.config.joint_attention_dim)}

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
        tokens, ids = pack(latents_BCHW), position_ids(h, w, 0, latents_BCHW.device)
        states = text["prompt_embeds"]
        if window is None:
            return unpack(self._forward(transformer, tokens, ids, t_B, states, guidance_scale), h, w).float()
        active = window.take(tokens)
        places, count = window.places(ids.device), active.shape[1]
        beside = [_tokens_of(reference, len(active)) for reference in window.beside]
        active, places = _behind_each_other([(active, ids[places]), *beside])
        attend = {} if window.context is None else {"before": window.context}
        made = self._forward(transformer, active, places, t_B, states, guidance_scale, attend)
        return unpack(window.put(made[:, :count]), h, w).float()

    def conditioning(self, transformer: Any, t_T: Tensor, text: Text, guidance_scale: float | None) -> Tensor:
        states = text["prompt_embeds"]
        times = t_T.to(states.device, self.dtype).repeat_interleave(len(states)) * 1000
        fed = self._guidance(transformer, len(times), guidance_scale, states.device)
        made: Tensor = transformer.time_guidance_embed(times, None if fed is None else fed.to(times) * 1000)
        return made.unflatten(0, (len(t_T), len(states)))

    def read(
        self,
        transformer: nn.Module,
        references: Sequence[Reference],
        empty: Text,
        before: Context | None = None,
    ) -> Context:
        context, batch = Context(sequence_dim=1), max(len(one.latents_BCHW) for one in references)
        tokens, ids = _behind_each_other([_tokens_of(reference, batch) for reference in references])
        states = empty["prompt_embeds"][:, :0].expand(batch, -1, -1)
        attend = {"context": context, "before": before}
        install(transformer)
        start = torch.zeros(batch, device=tokens.device)
        self._forward(reader(transformer), tokens, ids, start, states, None, attend)
        return context

    def _guidance(
        self, transformer: Any, count: int, scale: float | None, device: torch.device
    ) -> Tensor | None:
        """The number fed to guidance-distilled models, which no klein is."""
        if not transformer.config.guidance_embeds:
            return None
        return torch.full((count,), 1.0 if scale is None else scale, device=device)

    def _forward(
        self,
        transformer: nn.Module,
        tokens_BND: Tensor,
        ids: Tensor,
        t_B: Tensor,
        states: Tensor,
        guidance_scale: float | None,
        attend: dict[str, Any] | None = None,
    ) -> Tensor:
        """The stock forward: from tokens (B, N, C) and their positions, (N, 4) or (1 or B, N, 4), to velocity
        tokens.
        """
        install(transformer)
        b, device = len(tokens_BND), tokens_BND.device
        words = torch.zeros(states.shape[1], 4, device=device)
        words[:, 3] = torch.arange(states.shape[1], device=device)
        words, ids = in_one_list(words, ids, b)
        return transformer(
            hidden_states=tokens_BND.to(self.dtype),
            encoder_hidden_states=states.to(self.dtype),
            timestep=t_B.to(device, self.dtype),
            guidance=self._guidance(transformer, b, guidance_scale, device),
            img_ids=ids,
            txt_ids=words,
            joint_attention_kwargs=attend,
            return_dict=False,
        )[0]

    def sigmas(self, num_inference_steps: int, tokens: int) -> list[float]:
        """The levels that Flux2KleinPipeline gives to its scheduler: evenly spaced from 1 to 1/n, shifted by
        `empirical_mu`. Training uses `mu`, the scheduler's own line: the empirical one depends on the steps.
        """
        mu = empirical_mu(tokens, num_inference_steps)
        return flow.sigmas(num_inference_steps, mu, 1.0 / num_inference_steps)


def _tokens_of(reference: Reference, batch: int) -> tuple[Tensor, Tensor]:
    """The known tokens of a reference for `batch` samples, (B, K, C), and their positions, (1 or B, K, 4)."""
    latents = reference.latents_BCHW
    h, w = latents.shape[2:]
    ids = position_ids(h, w, reference.frame, latents.device)
    tokens = pack(latents).expand(batch, -1, -1)
    if reference.known is None:
        return tokens, ids[None]
    window = Window(reference.known)
    return window.take(tokens), ids[window.places(ids.device)]


def _behind_each_other(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Tokens (B, K, C) and positions (1 or B, K, 4) of several parts as one sequence."""
    rows = max(len(ids) for _, ids in parts)
    tokens = torch.cat([part.to(parts[0][0]) for part, _ in parts], dim=1)
    return tokens, torch.cat([ids.expand(rows, -1, -1) for _, ids in parts], dim=1)


def empirical_mu(tokens: int, num_inference_steps: int) -> float:
    """The time shift's mu in diffusers' klein pipelines (`compute_empirical_mu`): two lines in the number of
    image tokens, measured at 10 and at 200 steps, and mixed for other numbers of steps. Above 4,300 tokens it
    is the second line alone: at 28 steps mu falls from 2.2 to 1.2 there.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190.0
    return slope * num_inference_steps + many - 200.0 * slope
