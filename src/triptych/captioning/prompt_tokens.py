"""Counts the tokens of a prompt as a diffusion model's text encoder does: with its tokenizer alone, without
weights and without the network.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.backbones.families import FAMILIES, Family
from triptych.backbones.settings import resolve_model
from triptych.data.captions import UNKNOWN_SHARE

log = logging.getLogger(__name__)

_MARKS = re.compile(r"<IMAGE [1-9][0-9]?>|<Brand>")


class PromptTokenizer:
    """The tokenizer behind `max_sequence_length`. Several threads may share it."""

    def __init__(self, tokenizer: Any, family: Family) -> None:
        self._tokenizer, self._family = tokenizer, family
        self._lock = threading.Lock()  # a tokenizer is not thread-safe

    def count(self, text: str) -> int:
        """Tokens of a prompt, end token included, as `TextEncoder.count_tokens` counts them."""
        with self._lock:
            return len(self._tokenizer(self._family.prompt_text(self._tokenizer, text)).input_ids)

    def unknown_share(self, text: str) -> float:
        """The share of a text's letters in words that the encoder does not know whole, 0 to 1; markers are
        left out.

        It counts whole words, because a tokenizer turns a run of many foreign letters into one unknown token.
        """
        words = _MARKS.sub(" ", text).split()
        unknown = self._tokenizer.unk_token_id
        if not words or unknown is None:
            return 0.0
        with self._lock:
            rows = self._tokenizer(words, add_special_tokens=False).input_ids
        lost = sum(len(word) for word, row in zip(words, rows, strict=True) if unknown in row)
        return lost / sum(map(len, words))


_LOADING = threading.Lock()  # transformers must not be imported by two threads at once


def prompt_tokenizer(model: str) -> PromptTokenizer | None:
    """The tokenizer of a model's text encoder; None if it is not on this machine, or of no known family."""
    with _LOADING:
        return _load(model)


@functools.cache
def _load(model: str) -> PromptTokenizer | None:
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    try:
        name = resolve_model(model)
        index = Path(name) / "model_index.json"
        if not index.is_file():
            index = Path(str(try_to_load_from_cache(name, "model_index.json")))
        family = FAMILIES[json.loads(index.read_text(encoding="utf-8")).get("_class_name")]
        tokenizer = AutoTokenizer.from_pretrained(
            name, subfolder=family.prompt_tokenizer, local_files_only=True, trust_remote_code=False
        )
        return PromptTokenizer(tokenizer, family)
    except Exception:  # any failure means that it is not on this machine
        return None


def warn_of_unknown_words(model: str, captions: Mapping[str, str]) -> int:
    """Count the captions with many words unknown to the text encoder, and name them in a warning. `captions`:
    by id.
    """
    tokenizer = prompt_tokenizer(model)
    found = [
        id for id, text in captions.items() if tokenizer and tokenizer.unknown_share(text) > UNKNOWN_SHARE
    ]
    if found:
        names = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
        log.warning(
            "The text encoder of %s does not know many words of %d captions: write them in English: %s.",
            model,
            len(found),
            names,
        )
    return len(found)
