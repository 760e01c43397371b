"""A captioner behind a server that speaks OpenAI's chat completions."""

from __future__ import annotations

import base64
import io
import os
import random
import threading
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from triptych.errors import ModelError
from triptych.questions import AnswerError, quote
from triptych.server_replies import LONGEST_WAIT, Completion, check_url, read_reply, retry_after, status_hint

if TYPE_CHECKING:
    from PIL import Image


class ServerCaptioner:
    """A model behind OpenAI's chat completions: OpenAI, vLLM, SGLang, llama.cpp, Ollama and others.

    The picture travels inside the request as a data URL; no server is ever told to fetch an address. Busy, failing and
    unreachable servers are asked again after a random wait (full jitter: uniform between 0 and 1, 2, 4, … 30 s), or
    after the wait they name themselves.
    """

    concurrent = True

    def __init__(self, model: str, base_url: str | None = None, *, timeout: float = 120.0, attempts: int = 5) -> None:
        import openai

        key = os.environ.get("OPENAI_API_KEY", "")
        if base_url is None and not key:
            raise ModelError(
                f"'{model}' would be a model of OpenAI's server, and OPENAI_API_KEY is not set.",
                "Set it, give base_url for another server, or write local:NAME for a transformers model.",
            )
        self._key, self._attempts, self._timeout = key, attempts, timeout
        self._client = openai.OpenAI(api_key=key or "none", base_url=check_url(base_url), max_retries=0, timeout=timeout)
        self._closed, self._model = threading.Event(), model
        # OpenAI's newer models know only max_completion_tokens, other servers only max_tokens
        self._limit = "max_tokens" if base_url else "max_completion_tokens"
        self._options: dict[str, Any] = {"temperature": 0}
        self._swapped, self._lock = False, threading.Lock()
        self.identity = f"server:{str(self._client.base_url).rstrip('/')}:{model}"

    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": _data_url(image)}}]
        messages = [{"role": "user", "content": content}]
        reason, wait = "", 0.0
        for attempt in range(self._attempts):
            if self._closed.wait(max(wait, random.uniform(0, min(30.0, 2.0 ** (attempt - 1))) if attempt else 0.0)):
                raise ModelError("The run was stopped.")
            reply, reason, wait = self._send(messages, max_new_tokens)
            if reply is not None:
                return read_reply(reply)
        raise ModelError(
            f"The server of {self._model} gave no answer after {self._attempts} attempts: {reason}.",
            "What is done is kept; run the same command again when the server is well.",
        )

    def _send(self, messages: Any, max_new_tokens: int) -> tuple[Completion | None, str, float]:
        """One request: (reply, "", 0), or (None, why, seconds the server wants us to wait) when it may be tried again."""
        import openai

        options: dict[str, Any] = {**self._options, self._limit: max_new_tokens}
        try:
            raw = self._client.chat.completions.with_raw_response.create(model=self._model, messages=messages, **options)
            return Completion.model_validate_json(raw.http_response.content), "", 0.0
        except ValidationError:
            return None, "its reply is no chat completion", 0.0
        except openai.APITimeoutError:
            return None, f"no reply within {self._timeout:g} s", 0.0
        except openai.APIConnectionError as error:
            return None, f"no connection ({type(error.__cause__ or error).__name__})", 0.0
        except openai.APIStatusError as error:
            status, said = error.status_code, f"{error.code or ''} {error.message}".lower()
            # a 401 may repeat parts of the key, nothing else should; never show it
            why = f"status {status}" + ("" if status == 401 else f", {quote(error.message.replace(self._key or chr(0), '***'), 200)}")
            wait = retry_after(error.response.headers.get("retry-after"))
            if status == 400 and self._adapt(said, set(options)):
                return None, why, 0.0
            if status in (400, 403) and ("content_policy" in said or "content_filter" in said or "safety" in said):
                raise AnswerError("the server refused the picture for its content policy") from None
            if "insufficient_quota" in said or wait > LONGEST_WAIT or not (status in (408, 409, 429) or status >= 500):
                raise ModelError(f"The server of {self._model} refuses: {why}.", status_hint(status, wait)) from None
            return None, why, wait

    def _adapt(self, said: str, sent: set[str]) -> bool:
        """Change the options that the server's complaint names; False when it names none, or once too often."""
        with self._lock:
            if sent != {*self._options, self._limit}:
                return True  # another thread has done it since
            if "temperature" in said and self._options:
                self._options = {}
            elif self._limit in said and not self._swapped:
                self._limit, self._swapped = ("max_completion_tokens", "max_tokens")[self._limit != "max_tokens"], True
            else:
                return False
            return True

    def close(self) -> None:
        self._closed.set()


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
