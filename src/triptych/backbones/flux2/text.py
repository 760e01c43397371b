"""FLUX.2-klein's text: three layers of Qwen3.

Legend: B batch, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from triptych.backbones.checkpoint import whole
from triptych.backbones.contract import EncoderPart, Text, TextEncoder
from triptych.backbones.families import FLUX2, klein_chat

LAYERS = (9, 18, 27)
"""The hidden states of Qwen3 that become the prompt, side by side (diffusers' Flux2KleinPipeline)."""


class KleinQwen3(Qwen3Model):
    """The part of Qwen3 that the prompt needs: its first 27 layers, without the last norm."""

    _keys_to_ignore_on_load_unexpected = (r"layers\.(2[7-9]|[3-9]\d)\.", r"^(model\.)?norm\.", "lm_head")

    def __init__(self, config: Qwen3Config) -> None:
        config.num_hidden_layers = max(LAYERS)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: max(LAYERS)]
        super().__init__(config)
        self.norm = nn.Identity()  # the 27th state is read before any norm


def _planned(tokens: int) -> dict[str, Any]:
    """The mask that transformers makes of the padding; it would have to look into one without data."""
    mask = torch.empty(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
    return {"attention_mask": {"full_attention": mask}, "use_cache": False}


class Flux2Text(TextEncoder):
    """`prompt_embeds`, (B, L, 3·D). All L tokens reach the transformer, padding included: the model was
    trained so.
    """

    parts: ClassVar = {"text_encoder": EncoderPart(KleinQwen3, planned=_planned)}

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model, subfolder=FLUX2.prompt_tokenizer)
        load: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        loaded = KleinQwen3.from_pretrained(model, subfolder="text_encoder", **load)
        self.model = whole(model, "text_encoder", loaded).to(device).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_sequence_length: int) -> Text:
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        chats = [klein_chat(self.tokenizer, prompt) for prompt in prompts]
        given = self.tokenizer(chats, max_length=max_sequence_length, **pad).to(self.model.device)
        states = self.model(
            given.input_ids, attention_mask=given.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return {"prompt_embeds": torch.cat([states[layer] for layer in LAYERS], dim=-1)}

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer(klein_chat(self.tokenizer, prompt)).input_ids)
