"""Stable Diffusion 3's text: two CLIPs and T5.

Legend: B batch, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from triptych.backbones import families
from triptych.backbones.checkpoint import whole
from triptych.backbones.contract import EncoderPart, Text, TextEncoder

CLIP_TOKENS = 77


class SD3Text(TextEncoder):
    """`prompt_embeds`, (B, 77 + L, D): the penultimate states of both CLIPs, concatenated by width, followed
    by T5's states. `pooled_prompt_embeds`, (B, D): both pooled vectors, concatenated.
    """

    parts: ClassVar = {
        "text_encoder": EncoderPart(CLIPTextModelWithProjection, CLIP_TOKENS),
        "text_encoder_2": EncoderPart(CLIPTextModelWithProjection, CLIP_TOKENS),
        "text_encoder_3": EncoderPart(T5EncoderModel),
    }

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        load = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        self.clip_tokenizers = [
            AutoTokenizer.from_pretrained(model, subfolder=name) for name in ("tokenizer", "tokenizer_2")
        ]
        self.t5_tokenizer = AutoTokenizer.from_pretrained(model, subfolder=families.SD3.prompt_tokenizer)
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
