"""A caption that can be used: ask, look for what is wrong, ask again with that said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from triptych.captioning.order import read_order
from triptych.captioning.prompt_tokens import prompt_tokenizer
from triptych.captioning.questions import AnswerError, Questions, quote
from triptych.captioning.undress import plain_caption
from triptych.data.captions import in_house, lint, replaced_brands
from triptych.errors import InputError

WORDS_PER_TOKEN = 0.6  # English under the T5 tokenizer, cautiously


def linter(model: str, limit: int, brands: Sequence[str] = ()) -> Callable[[str, int], list[str]]:
    """`captions.lint` of a text with so many panels, for a diffusion model that reads `limit` T5 tokens.

    Where the model's tokenizer is not on this machine, words are counted instead.
    """

    def problems(text: str, panels: int) -> list[str]:
        tokenizer = prompt_tokenizer(model)
        if tokenizer is None:
            return lint(text, panels, brands=brands, max_words=int(limit * WORDS_PER_TOKEN))
        share = tokenizer.unknown_share
        return lint(
            text, panels, brands=brands, token_counter=tokenizer.count, max_tokens=limit, unknown_share=share
        )

    return problems


def prompt_problems(model: str, prompt: str, panels: int, markers: Sequence[str] = ()) -> list[str]:
    """`captions.lint` of a prompt for a diffusion model; whoever encodes it says whether it was cut. markers:
    of its panels, if not those of the house.
    """
    tokenizer = prompt_tokenizer(model)
    return lint(
        in_house(prompt, markers), panels, unknown_share=tokenizer.unknown_share if tokenizer else None
    )


def check_order(ask: Callable[[str], str], questions: Questions) -> None:
    """Nothing, if the captioner says that the panels are what their task expects, or if it expects nothing.

    An answer that cannot be read is asked for once more, in plainer words.

    Raises:
        InputError: it plainly says another order. AnswerError: no answer that can be read. Whatever else
            `ask` raises.
    """
    expected = [*questions.expected]
    if not expected:
        return
    seen, failure = None, AnswerError("")
    for prompt in (questions.check, questions.check_again):
        try:
            answer = ask(prompt)
            seen = read_order(answer, len(expected))
            if seen is not None:
                break
            failure = AnswerError(f"the answer to the order check cannot be read: {quote(answer)}")
        except AnswerError as error:
            if (
                error.fault != "model"
            ):  # a refusal, or a server that failed at this picture: it was asked often enough
                raise
            failure = error
    if seen is None:
        raise failure
    if seen != expected:
        raise InputError(f"the panels show {', '.join(seen)} instead of {', '.join(expected)}")


def usable_caption(
    ask: Callable[[str], str],
    questions: Questions,
    problems: Callable[[str], list[str]],
    brands: Sequence[str],
    limit: int,
    retries: int,
) -> tuple[str, Counter[str]]:
    """The captioner's caption of a triptych, brands replaced, in which `problems` finds nothing; and how
    often each brand was.

    Args:
        ask: the captioner's answer to a question about the picture. problems: as `captions.lint`.
        limit: T5 tokens a caption may have; each try asks for fewer words.

    Raises:
        AnswerError: none in `retries` + 1 tries. Whatever else `ask` raises.
    """
    prompt, failure = questions.caption, AnswerError("")
    panels, numbers = len(questions.panels), questions.numbers
    for attempt in range(retries + 1):
        try:
            text, replaced = replaced_brands(plain_caption(ask(prompt), panels, numbers), brands)
            found = problems(text)
            if not found:
                return text, replaced
            failure = AnswerError("; ".join(found))
        except AnswerError as error:
            failure = error
            found = [error.message]
            if error.fault == "server":
                break
        # our own words only: nothing of an answer or of a server is ever part of a question
        words = max(10, min(200, int(limit * WORDS_PER_TOKEN)) >> attempt)
        said = "; ".join(found) if failure.fault == "model" else "it was refused"
        prompt = (
            f"{questions.caption} Try {attempt + 2}: the last answer was no use ({said}). "
            f"At most {words} words."
        )
    raise AnswerError(
        f"no usable caption in {attempt + 1} tries: {failure.message}", failure.hint, failure.fault
    )
