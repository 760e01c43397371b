"""Parses and checks what a chat completions server sends: replies, refusals and addresses."""

from __future__ import annotations

import datetime
import email.utils
import ipaddress
import json
import re
from typing import Any
from urllib.parse import urlsplit

from triptych.captioning.questions import CUT_OFF_HINT, AnswerError, quote, usable_answer
from triptych.errors import ConfigError

LONGEST_WAIT = 120.0  # longest wait, in seconds, that a server may ask for
LONGEST_BODY = 8 << 20  # bytes of a reply that are read at most

CONTEXT_HINT = (
    "Raise the server's context length (--max-model-len, --ctx-size, num_ctx), or lower --max-new-tokens."
)
_CONTEXT = re.compile(
    r"context (?:length|size|window)|context_length|too many tokens|exceeds? the "
    r"(?:max|available|model)|\bn_ctx\b",
    re.I,
)

_CONNECTING = (
    (
        r"WRONG_VERSION_NUMBER|record layer failure|UNKNOWN_PROTOCOL",
        "there is no TLS at that port: is it http:// instead of https://?",
    ),
    (
        r"CERTIFICATE_VERIFY|certificate verify",
        "its certificate is not trusted here; SSL_CERT_FILE may name one that is",
    ),
    (
        r"Name or service|getaddrinfo|nodename|name resolution|No address associated",
        "nobody knows that host's name",
    ),
    (r"refused", "refused: nothing listens at that port"),
    (r"unreachable|No route to host", "there is no way to that host"),
    (r"Proxy", "the proxy in the way refuses"),
)

V1_HINT = "Check base_url: it usually ends in /v1, as in http://127.0.0.1:8000/v1."

_POLICY = re.compile(
    r"content[ _-]?(?:policy|filter|management|moderation)|moderation|safety"
    r"|data_?inspection|inappropriate|responsible_?ai|blocklist"
    r"|prohibited|recitation|\bspii\b|\bsensitive\b|flagged|refusal|risk[ "
    r"_-]?control|violat|image_?safety|input_?image_?unsafe|\bnsfw\b"
    r"|敏感|违规|不安全|不适当",
    re.IGNORECASE,
)
_CUT_OFF = {"length", "max_tokens", "max_output_tokens", "model_length", "max_new_tokens", "token_limit"}
_NO_ENDPOINT = re.compile(
    r"(?:unexpected|unknown|invalid|no such|not a valid) (?:endpoint|route|path|url)|cannot (?:post|get) "
    r"/|no route|route not found"
    r"|endpoint not found|404 page not found",
    re.IGNORECASE,
)


class ReplyError(Exception):
    """A reply with status 200 that is no completion. The message describes it in words that are safe to show.

    `endpoint`: the reply says that the endpoint does not exist, so base_url is wrong. `status`: the HTTP
    status named in its error.
    """

    def __init__(self, message: str, *, endpoint: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.endpoint, self.status = endpoint, status


def read_reply(body: bytes, key: str = "") -> str:
    """The answer in a chat completion.

    Args:
        key: a secret that is never shown, even if the server repeats it.

    Raises:
        AnswerError: the completion is useless: refused, cut off, or empty. ReplyError: it is no completion.
    """
    try:
        reply = _completion_in(_decoded(body))
    except (ValueError, RecursionError):
        html = body.lstrip()[:1] == b"<"
        raise ReplyError("its reply is a web page" if html else "its reply is no chat completion") from None
    if not isinstance(reply, dict):
        raise ReplyError("its reply is no chat completion")
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    message = choice.get("message") if choice else None
    said = words_of(choice, key) if choice and choice.get("error") else words_of(reply, key)
    if choice is None or not isinstance(message, dict) or choice.get("error"):
        blocked = json.dumps(
            [
                reply.get(name)
                for name in ("promptFeedback", "prompt_feedback", "prompt_filter_results")
                if reply.get(name)
            ]
        )
        if said and _POLICY.search(said):
            raise refused(said)
        if _POLICY.search(blocked) and '"filtered": false' not in blocked:
            raise refused("")
        if said:
            error = (choice or reply).get("error")
            code = str(error.get("code")) if isinstance(error, dict) else ""
            raise ReplyError(
                f"it says: {said}",
                endpoint=bool(_NO_ENDPOINT.search(said)),
                status=int(code) if code.isdecimal() else 0,
            )
        raise ReplyError("its reply holds no answer" if choices == [] else "its reply is no chat completion")
    return _answer(choice, message)


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:  # servers on Windows
        return body.decode("cp1252", "replace")


def _completion_in(text: str) -> Any:
    """The JSON of a reply: as it is, joined from the events of a stream that nobody asked for, or unwrapped
    from a gateway's envelope.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    if re.match(r"\s*(?::|data:|event:)", text):
        parts, end = [], None
        for line in re.findall(r"^data:\s*(\{.*)$", text, re.MULTILINE):
            event = json.loads(line)
            choices = event.get("choices")
            if event.get("error") or not isinstance(choices, list):
                return event
            for choice in (one for one in choices[:1] if isinstance(one, dict)):
                delta = choice.get("delta") or choice.get("message")
                parts.append(str(delta.get("content") or "") if isinstance(delta, dict) else "")
                end = choice.get("finish_reason") or end
        return {"choices": [{"message": {"content": "".join(parts)}, "finish_reason": end}] if parts else []}
    reply = json.loads(text)
    inner = reply.get("data") if isinstance(reply, dict) and "choices" not in reply else None
    reply = inner if isinstance(inner, dict) and "choices" in inner else reply
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if (
        isinstance(choices, list)
        and choices
        and isinstance(choices[0], dict)
        and isinstance(choices[0].get("text"), str)
    ):
        # the older format, before chat completions
        choices[0].setdefault("message", {"content": choices[0]["text"]})
    return reply


def _answer(choice: dict[str, Any], message: dict[str, Any]) -> str:
    ends = [str(choice.get(name) or "").lower() for name in ("finish_reason", "native_finish_reason")]
    if message.get("refusal") or any(_POLICY.search(end) for end in ends):
        raise refused("", whose="the model")
    try:
        text, thought = _text(message.get("content")), _thought(message)
    except ValueError:
        raise ReplyError("its reply is no chat completion") from None
    if _CUT_OFF & set(ends):
        if thought.strip() or re.search(r"<think|\[THINK\]|◁think", text[:200], re.IGNORECASE):
            raise AnswerError(
                "the answer was cut off by the length limit while the model was thinking", CUT_OFF_HINT
            )
        raise AnswerError("the answer was cut off by the length limit", CUT_OFF_HINT)
    if not text.strip() and thought.strip():  # the server took the answer for a part of the reasoning
        text = f"<think>{thought}" if "</think>" not in thought else thought
    return usable_answer(text)


def _text(content: Any) -> str:
    """The text of a message, which may consist of parts.

    Raises:
        ValueError: the form is unknown.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise ValueError(type(content))
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") in ("thinking", "reasoning", "reasoning_content"):
            continue
        text = part.get("text") if isinstance(part, dict) else part
        text = text.get("value") if isinstance(text, dict) else text
        if not isinstance(text, str):
            raise ValueError(type(part))
        parts.append(text)
    return "".join(parts)


def _thought(message: dict[str, Any]) -> str:
    for name in ("reasoning_content", "reasoning", "thinking", "thoughts"):
        if isinstance(message.get(name), str) and message[name].strip():
            return str(message[name])
    return ""


def refused(said: str, whose: str = "the server") -> AnswerError:
    """The error for a picture that the server refuses to look at, with the server's own words if there are
    any.
    """
    words = f": {said}" if said else ""
    return AnswerError(f"{whose} refused the picture for its content policy{words}", fault="policy")


def is_policy(said: str) -> bool:
    """Whether an error is about the content of the picture, under any of the names that servers use."""
    return bool(_POLICY.search(said))


def hint_of(said: str) -> str:
    """A hint about a request that a server refuses, if its words suggest one; empty otherwise."""
    return CONTEXT_HINT if _CONTEXT.search(said) else ""


def words_of(body: Any, key: str = "", limit: int = 200) -> str:
    """The server's own words in the body of an error, cleaned and short; empty if there are none."""
    if isinstance(body, (bytes, str)):
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
            body = {"message": " ".join(text.split())}
    found: list[str] = []
    parts, seen = [body], 0
    while (
        parts and seen < 50
    ):  # errors nest: error → message; LiteLLM and OpenRouter put the original server's words deeper
        part, seen = parts.pop(0), seen + 1
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, list):
            parts += [one for one in part if isinstance(one, dict)]
        elif isinstance(part, dict):
            named = [
                part.get(name)
                for name in (
                    "error",
                    "detail",
                    "message",
                    "msg",
                    "error_msg",
                    "code",
                    "type",
                    "metadata",
                    "raw",
                )
            ]
            parts += [one for one in named if isinstance(one, (str, dict, list))]
    words = [
        word.strip()
        for word in dict.fromkeys(found)
        if word.strip() and word.strip().lower() not in ("error", "none", "list")
    ]
    said = ", ".join(words)
    for secret in {key, key[:12] if len(key) > 20 else key} - {""}:
        said = said.replace(secret, "***")
    said = re.sub(r"\bsk-[\w*-]{4,}", "***", said)
    return quote(said, limit).rstrip(". ")


def status_hint(status: int, wait: float) -> str:
    """A hint for a server that refuses with an HTTP status, or asks to wait `wait` seconds."""
    if status == 401:
        return "Check OPENAI_API_KEY."
    if status in (404, 405):
        return "Check vlm_model and base_url; base_url usually ends in /v1."
    if 300 <= status < 400:
        return "The server sends its visitors to another address: give that one as base_url."
    if wait > LONGEST_WAIT:
        return f"It asks to wait {wait:.0f} s. What is done is kept; run the same command again then."
    return "What is done is kept; run the same command again when this is mended."


def check_url(url: str | None) -> str | None:
    """The address of a server, unchanged.

    Raises:
        ConfigError: not http or https, or a name, password or query inside it (the address is shown and
            stored).
    """
    if url is None:
        return None
    try:
        plain = (
            bool(re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", url))
            and url.isascii()
            and bool(urlsplit(url).hostname)
        )
        plain = plain and urlsplit(url).port != 0  # reading the port checks it
    except ValueError:
        plain = False
    if not plain:
        raise ConfigError(
            "base_url is not a plain http address.",
            "Write for instance http://127.0.0.1:8000/v1; a key goes into OPENAI_API_KEY.",
        )
    if endpoint := re.search(r"/(?:chat/completions|completions|models|responses)/?$", url):
        hint = f"Leave {endpoint[0].rstrip('/')} out: {url[: endpoint.start()]}."
        raise ConfigError(
            "base_url names one of the server's endpoints, not the address below which they are.", hint
        )
    return url


def no_connection(error: BaseException) -> str:
    """The reason why there is no connection, in words, from the innermost cause of a client's error."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    said = str(error)
    words = next(
        (words for pattern, words in _CONNECTING if re.search(pattern, said, re.IGNORECASE)),
        type(error).__name__,
    )
    return f"no connection ({words})"


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number or a date); 0 if it is missing or invalid."""
    if header and header.strip().isdecimal():
        return float(header)
    try:
        then = email.utils.parsedate_to_datetime(header or "")
        return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
