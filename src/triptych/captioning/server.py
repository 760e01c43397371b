"""A captioner behind a server with OpenAI's chat completions API."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import random
import re
import threading
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from triptych.captioning.questions import AnswerError, quote
from triptych.captioning.replies import (
    LONGEST_BODY,
    LONGEST_WAIT,
    V1_HINT,
    ReplyError,
    check_url,
    hint_of,
    is_loopback,
    is_policy,
    no_connection,
    read_reply,
    refused,
    retry_after,
    status_hint,
    words_of,
)
from triptych.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import openai
    from PIL import Image

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
_PROXIES = ("all_proxy", "https_proxy", "http_proxy", "no_proxy")
_OUTAGES = (
    408,
    409,
    425,
    429,
    502,
    503,
    504,
    520,
    521,
    522,
    523,
    524,
    529,
)  # the server's fault, not the question's
_ABOUT_THE_PICTURE = (400, 413, 415, 422, 451)


class _Passing(Exception):
    """A failure that may pass. If it does not, `about` says whose it was: `outage` (the server's) or
    `picture`.
    """

    def __init__(self, reason: str, about: str = "outage", wait: float = 0.0) -> None:
        super().__init__(reason)
        self.about, self.wait = about, wait


class ServerCaptioner:
    """A model behind OpenAI's chat completions: OpenAI, vLLM, SGLang, llama.cpp, Ollama and others.

    The picture travels inside the request as a data URL: no server is told to fetch an address, and redirects
    are not followed. A busy, failing or unreachable server is asked again after a random wait (full jitter:
    uniform between 0 and 1, 2, 4, … 30 s), or after the wait that it names.
    """

    concurrent = True
    knows = ""

    def __init__(
        self, model: str, base_url: str | None = None, *, timeout: float = 120.0, attempts: int = 5
    ) -> None:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if base_url is None and not key:
            raise ModelError(
                f"'{model}' would be a model of OpenAI's server, and OPENAI_API_KEY is not set.",
                "Set it, give base_url for another server, or write local:NAME for a transformers model.",
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ModelError(
                "OPENAI_API_KEY holds characters that no key has.",
                "Set it again, without quotes or line ends.",
            )
        self._key, self._attempts, self._timeout = key, attempts, timeout
        self._base_url = check_url(base_url) or OPENAI
        self._client = _client(self._base_url, key or "none", timeout)
        self._closed, self._model, self._answered = threading.Event(), model, False
        # OpenAI's newer models know only max_completion_tokens, other servers only max_tokens
        self._limit = "max_tokens" if base_url else "max_completion_tokens"
        self._options: dict[str, Any] = {"temperature": 0}
        self._swapped, self._lock = False, threading.Lock()
        self.identity = f"server:{self._base_url.rstrip('/')}:{model}"

    def check(self) -> None:
        """Send one free request for the list of models, to see whether a server of this kind answers.

        Servers without such a list pass. A model that is not listed only gives a warning: some servers load
        models on demand.

        Raises:
            ModelError: no answer, the key is refused, or base_url is no address of such a server.
        """
        import openai

        for attempt in range(min(3, self._attempts)):
            if attempt:
                self._closed.wait(random.uniform(0, 2.0**attempt))
            try:
                quick = self._client.with_options(timeout=min(10.0, self._timeout))
                body = quick.models.with_raw_response.list().http_response.content
            except openai.APITimeoutError:
                return  # perhaps it is busy with other requests
            except openai.APIConnectionError as error:
                reason = no_connection(error)
                continue
            except openai.APIStatusError as error:
                if error.status_code == 401 or 300 <= error.status_code < 400:
                    why = f"status {error.status_code}"
                    raise ModelError(
                        f"The server of {self._model} refuses: {why}.", status_hint(error.status_code, 0)
                    ) from None
                return
            except openai.OpenAIError:
                return
            return self._look_at_models(body)
        raise ModelError(
            f"No captioner answers at {self._base_url}: {reason}.",
            f"Start the server, or check base_url (its host and port){_through(self._base_url)}.",
        )

    def _look_at_models(self, body: bytes) -> None:
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            reply = None
        if isinstance(reply, dict) and reply.get("error") and not re.search(r"/v\d", self._base_url):
            raise ModelError(
                f"{self._base_url} is no chat completions server: it says: {words_of(reply, self._key)}.",
                V1_HINT,
            )
        rows = reply.get("data") if isinstance(reply, dict) else None
        names = (
            [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
            if isinstance(rows, list)
            else []
        )
        asked = self._model.lower()
        if names and not any(
            asked in (name.lower(), name.lower().split(":")[0], name.lower().rsplit("/")[-1])
            for name in names
        ):
            log.warning("The server lists no model '%s'; it has: %s.", self._model, quote(", ".join(names)))

    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        content = [
            {"type": "text", "text": prompt},
            {"type": "image_url", "image_url": {"url": _data_url(image)}},
        ]
        messages = [{"role": "user", "content": content}]
        failure = _Passing("")
        for attempt in range(self._attempts):
            backoff = random.uniform(0, min(30.0, 2.0 ** (attempt - 1))) if attempt else 0.0
            if self._closed.wait(max(failure.wait, backoff)):
                raise ModelError("The run was stopped.")
            try:
                return self._send(messages, max_new_tokens)
            except _Passing as passing:
                failure = passing
        reason = f"no answer after {self._attempts} attempts: {failure}"
        if failure.about == "picture" and not self._answered and not re.search(r"/v\d", self._base_url):
            raise ModelError(f"The server of {self._model} gave {reason}.", V1_HINT)
        if failure.about == "picture" or (failure.about == "error" and self._is_well()):
            raise AnswerError(f"the server gave {reason}", fault="server")
        hint = "What is done is kept; run the same command again once the server is back."
        raise ModelError(f"The server of {self._model} gave {reason}.", hint)

    def _send(self, messages: Any, max_new_tokens: int) -> str:
        """The answer to one request.

        Raises:
            _Passing: another try may succeed. AnswerError, ModelError: see `Captioner.ask`.
        """
        import openai

        options: dict[str, Any] = {**self._options, self._limit: max_new_tokens}
        try:
            answer = read_reply(self._body(messages, options), self._key)
        except ReplyError as error:
            if error.endpoint and not self._answered:
                raise ModelError(
                    f"{self._base_url} is no chat completions server: {error}.", V1_HINT
                ) from None
            if error.status in (401, 402):
                raise ModelError(
                    f"The server of {self._model} refuses: {error}.", status_hint(error.status, 0)
                ) from None
            raise _Passing(str(error), "outage" if error.status == 429 else "picture") from None
        except AnswerError:
            self._answered = True
            raise
        except openai.APITimeoutError:
            raise _Passing(f"no reply within {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _Passing(no_connection(error)) from None
        except openai.APIStatusError as error:
            raise self._status_error(error, set(options)) from None
        self._answered = True
        return answer

    def _body(self, messages: Any, options: dict[str, Any]) -> bytes:
        """The raw reply to one request."""
        import openai

        create = self._client.chat.completions.with_streaming_response.create
        with create(model=self._model, messages=messages, **options) as response:
            body = bytearray()
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > LONGEST_BODY:
                        raise ReplyError(f"its reply is larger than {LONGEST_BODY >> 20} MB")
            except (ReplyError, openai.OpenAIError, OSError):
                raise
            except (
                Exception
                # the client's own exception types: the connection broke, or the body cannot be unpacked
            ) as error:
                if "Timeout" in type(error).__name__:
                    raise _Passing(f"no whole reply within {self._timeout:g} s") from None
                raise _Passing(f"its reply broke off ({type(error).__name__})") from None
        return bytes(body)

    def _status_error(self, error: openai.APIStatusError, sent: set[str]) -> Exception:
        """The exception for an HTTP status other than 200."""
        status, said = (
            error.status_code,
            words_of(error.body if error.body is not None else error.response.text, self._key),
        )
        # A 401 may repeat parts of the key, and nothing else should: never show it.
        why = f"status {status}" + (f", {said}" if said and status != 401 else "")
        wait = retry_after(error.response.headers.get("retry-after"))
        complaint = f"{error.code or ''} {error.message} {said}".lower()
        if status in (400, 422) and self._adapt(complaint, sent):
            return _Passing(why)
        if "insufficient_quota" in complaint or wait > LONGEST_WAIT or status == 401:
            return ModelError(f"The server of {self._model} refuses: {why}.", status_hint(status, wait))
        if status != 429 and is_policy(complaint):
            return refused(said)
        if status in _OUTAGES:
            return _Passing(why, "outage", wait)
        if status >= 500:
            return _Passing(why, "error", wait)
        if status in _ABOUT_THE_PICTURE:
            return AnswerError(f"the server refuses the request: {why}", hint_of(complaint), fault="server")
        return ModelError(f"The server of {self._model} refuses: {why}.", status_hint(status, wait))

    def _is_well(self) -> bool:
        """Whether the server answers another request at once, so that its error was about this picture."""
        import openai

        try:
            return (
                self._client.with_options(timeout=min(10.0, self._timeout))
                .models.with_raw_response.list()
                .status_code
                == 200
            )
        except openai.OpenAIError:
            return False

    def _adapt(self, said: str, sent: set[str]) -> bool:
        """Change the options that the server's complaint names; False if it names none, or if they were
        changed too often.
        """
        with self._lock:
            if sent != {*self._options, self._limit}:
                return True  # another thread has already changed them
            if "temperature" in said and self._options:
                self._options = {}
            elif self._limit in said and not self._swapped:
                self._limit, self._swapped = (
                    ("max_completion_tokens", "max_tokens")[self._limit != "max_tokens"],
                    True,
                )
            else:
                return False
            return True

    def close(self) -> None:
        self._closed.set()


def _client(base_url: str, key: str, timeout: float) -> openai.OpenAI:
    """OpenAI's client for one server. Addresses on this machine, and those in NO_PROXY, are reached without a
    proxy.

    Raises:
        ConfigError: the environment names a proxy that cannot be used.
    """
    import openai

    host = urlsplit(base_url).hostname or ""
    direct = is_loopback(base_url) or bool(urllib.request.proxy_bypass(host))
    try:
        http = openai.DefaultHttpxClient(trust_env=not direct, follow_redirects=False)
        return openai.OpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=http)
    # the client's own types, a ValueError or an ImportError, depending on the proxy's form
    except Exception as error:
        certificates = [
            name
            for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")
            if not os.path.exists(os.environ.get(name) or ".")
        ]
        if isinstance(error, OSError) and certificates:
            raise ConfigError(
                f"The certificates in the environment variable {' or '.join(certificates)} cannot be read.",
                "Unset it, or let it name a file of certificates that is there.",
            ) from None
        named = _named_proxies()
        odd = [
            name
            for name, value in named.items()
            if "://" in value and not re.match(r"https?://[^\s/]", value)
        ]
        if not named:
            raise ConfigError(
                f"base_url {base_url} cannot be used ({type(error).__name__}).", V1_HINT
            ) from error
        raise ConfigError(
            f"The proxy in the environment variable {' or '.join(odd or named)} cannot be used to reach "
            f"{host}.",
            "Unset it, set it to an http:// proxy, or name the host in NO_PROXY; a socks5:// proxy needs "
            "`pip install socksio`.",
        ) from None


def _named_proxies() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.lower() in _PROXIES and value}


def _through(base_url: str) -> str:
    """Names the proxy between this machine and an address, as the end of a sentence."""
    proxies = [name for name in _named_proxies() if name.lower() != "no_proxy"]
    direct = is_loopback(base_url) or bool(urllib.request.proxy_bypass(urlsplit(base_url).hostname or ""))
    return f", and the proxy in {' or '.join(proxies)}" if proxies and not direct else ""


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
