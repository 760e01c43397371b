"""What a chat completions server says: its replies, its refusals and its addresses, as checked values."""

from __future__ import annotations

import datetime
import email.utils
import re

from pydantic import BaseModel, Field

from triptych.errors import ConfigError
from triptych.questions import AnswerError, usable_answer

LONGEST_WAIT = 120.0  # seconds a server may ask us to wait


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class Completion(BaseModel):
    """What we read of a chat completion; servers differ in the rest."""

    choices: list[_Choice] = Field(min_length=1)


def read_reply(reply: Completion) -> str:
    choice = reply.choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise AnswerError("the model refused to answer")
    if choice.finish_reason == "length":
        raise AnswerError("the answer was cut off by the length limit")
    return usable_answer(choice.message.content or "")


def status_hint(status: int, wait: float) -> str:
    if status in (401, 404):
        return "Check OPENAI_API_KEY." if status == 401 else "Check vlm_model and base_url; base_url usually ends in /v1."
    if wait > LONGEST_WAIT:
        return f"It asks to wait {wait:.0f} s. What is done is kept; run the same command again then."
    return "What is done is kept; run the same command again when this is mended."


def check_url(url: str | None) -> str | None:
    """The address of a server, unchanged.

    Raises:
        ConfigError: not http or https, or a name, password or query inside it (the address is shown and stored).
    """
    if url is not None and not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", url):
        raise ConfigError(
            "base_url is not a plain http address.", "Write for instance http://127.0.0.1:8000/v1; a key goes into OPENAI_API_KEY."
        )
    return url


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number or a date); 0 when it is missing or nonsense."""
    if header and header.strip().isdecimal():
        return float(header)
    try:
        then = email.utils.parsedate_to_datetime(header or "")
        return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
