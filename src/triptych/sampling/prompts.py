"""Encode prompts, each of them once."""

from __future__ import annotations

from collections.abc import Sequence

from triptych import progress
from triptych.backbones.contract import Text, TextEncoder


def encode_texts(encoder: TextEncoder, prompts: Sequence[str], max_sequence_length: int) -> dict[str, Text]:
    """Embeddings by prompt, on the CPU, without batch dimension. Each prompt is encoded once and alone; the
    empty prompt is always included. Each leaves the device before the next is encoded: T5's take 4 MB.
    """
    encoded: dict[str, Text] = {}
    distinct = list(dict.fromkeys(["", *prompts]))
    for number, prompt in enumerate(distinct):
        progress.doing("reading prompts", number, len(distinct))
        text = encoder.encode([prompt], max_sequence_length)
        encoded[prompt] = {name: value[0].cpu() for name, value in text.items()}
    return encoded
