"""Gets a usable caption: ask, look for problems, name them and ask again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from triptych.captioning.order import read_order
from triptych.captioning.prompt_tokens import prompt_tokenizer
from triptych.captioning.questions import AnswerError, Questions, quote
from triptych.captioning.undress import plain_caption
from triptych.data.captions import in_house, lint, replaced_brands, with_markers
from triptych.errors import InputError

WORDS_PER_TOKEN = 0.6  # English under the T5 tokenizer, a cautious estimate


def linter(model: str, limit: int, brands: Sequence[str] = ()) -> Callable[[str, int], list[str]]:
    """A function for `captions.lint` of a text with a given number of panels, for a diffusion model that
    reads `limit` tokens.

    If the model's tokenizer is not on this machine, it counts words instead.
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
    """`captions.lint` of a prompt for a diffusion model, without a length limit: the text encoder reports a
    cut itself. panels: their number; 0 if the prompt need not describe them one by one. markers: those of its
    panels, if not of the house format.
    """
    tokenizer = prompt_tokenizer(model)
    problems = lint(
        in_house(prompt, markers), panels, unknown_share=tokenizer.unknown_share if tokenizer else None
    )
    return [with_markers(problem, markers) for problem in problems]


def check_order(ask: Callable[[str], str], questions: Questions) -> None:
    """Check that the captioner sees the panels that the task expects; does nothing if the task expects none.

    An unreadable answer leads to one more question, in plainer words.

    Raises:
        InputError: the answer clearly gives another order. AnswerError: no readable answer. `ask` may raise
            others.
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
            ):  # a refusal, or a server that failed at this picture: asking again is useless
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
    """A caption from the captioner, with brands replaced, in which `problems` finds nothing; and how often
    each brand was replaced.

    Args:
        ask: returns the captioner's answer to a question about the picture. problems: as `captions.lint`.
        limit: tokens that a caption may have; each try asks for fewer words.

    Raises:
        AnswerError: no usable caption in `retries` + 1 tries. `ask` may raise others.
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
        # Only our own words: no part of an answer or of a server's reply enters a question.
        words = max(10, min(200, int(limit * WORDS_PER_TOKEN)) >> attempt)
        said = "; ".join(found) if failure.fault == "model" else "it was refused"
        prompt = (
            f"{questions.caption} Try {attempt + 2}: the last answer was no use ({said}). "
            f"At most {words} words."
        )
    raise AnswerError(
        f"no usable caption in {attempt + 1} tries: {failure.message}", failure.hint, failure.fault
    )
