"""A caption that can be used: ask, look for what is wrong, ask again with that said."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

from triptych.backbones.settings import resolve_model
from triptych.captions import lint, replace_brand
from triptych.questions import CAPTION_PROMPT, AnswerError

WORDS_PER_TOKEN = 0.6  # English under the T5 tokenizer, cautiously


def linter(model: str, limit: int, brands: Sequence[str] = ()) -> Callable[[str, int], list[str]]:
    """`captions.lint` of a text with so many panels, for a diffusion model that reads `limit` T5 tokens.

    Where the model's tokenizer is not on this machine, words are counted instead.
    """

    @functools.cache
    def counter() -> Callable[[str], int] | None:
        from transformers import AutoTokenizer

        try:
            name = resolve_model(model)
            tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer_2", local_files_only=True, trust_remote_code=False)
        except Exception:  # not on this machine, in whatever way
            return None
        return lambda text: len(tokenizer(text).input_ids)

    lock = threading.Lock()  # tokenizers must not be used by several threads at once

    def problems(text: str, panels: int) -> list[str]:
        with lock:
            max_words = None if counter() else int(limit * WORDS_PER_TOKEN)
            return lint(text, panels, brands=brands, token_counter=counter(), max_tokens=limit, max_words=max_words)

    return problems


def usable_caption(ask: Callable[[str], str], problems: Callable[[str], list[str]], brands: Sequence[str], limit: int, retries: int) -> str:
    """The captioner's caption of a triptych, brands replaced, in which `problems` finds nothing.

    Args:
        ask: the captioner's answer to a question about the picture. problems: as `captions.lint`.
        limit: T5 tokens a caption may have; each try asks for fewer words.

    Raises:
        AnswerError: none in `retries` + 1 tries. Whatever else `ask` raises.
    """
    prompt, found = CAPTION_PROMPT, [""]
    for attempt in range(retries + 1):
        try:
            text = replace_brand(ask(prompt), brands)
            found = problems(text)
            if not found:
                return text
        except AnswerError as error:
            found = [error.message]
        # our own words only: nothing of an answer is ever part of a question
        words = max(10, min(200, int(limit * WORDS_PER_TOKEN)) >> attempt)
        prompt = f"{CAPTION_PROMPT} Try {attempt + 2}: the last answer was no use ({'; '.join(found)}). At most {words} words."
    raise AnswerError(f"no usable caption in {retries + 1} tries: {'; '.join(found)}")
