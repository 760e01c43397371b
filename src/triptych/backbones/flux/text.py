"""FLUX.1's text: CLIP's pooled vector and T5's states.

Legend: B batch, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from triptych.backbones.checkpoint import whole
from triptych.backbones.contract import EncoderPart, Text, TextEncoder
from triptych.backbones.families import FLUX

CLIP_TOKENS = 77


class FluxText(TextEncoder):
    """T5 states (`prompt_embeds`, (B, L, D)) and CLIP's pooled vector (`pooled_prompt_embeds`, (B, D))."""

    parts: ClassVar = {
        "text_encoder": EncoderPart(CLIPTextModel, CLIP_TOKENS),
        "text_encoder_2": EncoderPart(T5EncoderModel),
    }

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self.clip_tokenizer = AutoTokenizer.from_pretrained(model, subfolder="tokenizer")
        self.t5_tokenizer = AutoTokenizer.from_pretrained(model, subfolder=FLUX.prompt_tokenizer)
        load = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        clip = CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **load)
        self.clip = whole(model, "text_encoder", clip).to(device).eval()
        t5 = T5EncoderModel.from_pretrained(model, subfolder="text_encoder_2", **load)
        self.t5 = whole(model, "text_encoder_2", t5).to(device).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_sequence_length: int) -> Text:
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip = self.clip_tokenizer(list(prompts), max_length=CLIP_TOKENS, **pad).input_ids
        t5 = self.t5_tokenizer(list(prompts), max_length=max_sequence_length, **pad).input_ids
        return {
            "prompt_embeds": self.t5(t5.to(self.t5.device))[0],
            "pooled_prompt_embeds": self.clip(clip.to(self.clip.device)).pooler_output,
        }

    def count_tokens(self, prompt: str) -> int:
        return len(self.t5_tokenizer(prompt).input_ids)
