"""What stands before every request: the token, the name of the host, the origin, and the size of the body."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz"})
"""Paths that need no token: they say nothing but that the server is there."""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def problem(status: int, title: str, detail: str, hint: str = "") -> tuple[int, bytes]:
    """(status, body) of an error, in the form of RFC 9457."""
    about = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return status, json.dumps(about | ({"hint": hint} if hint else {}), ensure_ascii=False).encode()


class _TooLarge(Exception):
    """The body has more bytes than it may."""


class Guard:
    """An ASGI middleware. Without a token only this machine's own programs, and pages that it serves, may
    ask: the names in `Host` and `Origin` must be loopback ones, so that no web page elsewhere can use the
    server through its user's browser.
    """

    def __init__(self, app: App, token: str, most_bytes: int, origins: Sequence[str] = ()) -> None:
        self.app, self.token, self.most = app, token, most_bytes
        self.origins = frozenset(origin.rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        if refused := self._refused(scope, headers):
            return await _answer(send, *refused)
        told = headers.get("content-length", "0")
        if not told.isdigit() or int(told) > self.most:
            return await _answer(send, *self._too_large())
        counted, begun = 0, False

        async def counting() -> MutableMapping[str, Any]:
            nonlocal counted
            message = await receive()
            counted += len(message.get("body", b""))
            if counted > self.most:
                raise _TooLarge
            return message

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], *_SAFE]
            await send(message)

        try:
            await self.app(scope, counting, sending)
        except _TooLarge:
            if not begun:
                await _answer(send, *self._too_large())

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, bytes] | None:
        origin = headers.get("origin", "").rstrip("/")
        if origin and origin not in self.origins and _host(origin) != _name(headers.get("host", "")):
            return problem(
                403, "Forbidden", "Pages from other origins may not ask this server.", "See --allow-origin."
            )
        if not self.token:
            if not is_loopback(_name(headers.get("host", ""))):
                return problem(403, "Forbidden", "Without a token the server answers this machine alone.")
            return None
        if scope["path"] in OPEN:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("utf-8", "replace"), self.token.encode()
        ):
            return problem(
                401, "Unauthorized", "The request has no valid token.", "Send Authorization: Bearer TOKEN."
            )
        return None

    def _too_large(self) -> tuple[int, bytes]:
        return problem(
            413,
            "Content Too Large",
            f"A request has at most {self.most >> 20} MB.",
            "Scale the pictures down.",
        )


_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.rpartition("@")[2].rpartition(":")[0] or urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A `Host` header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *([(b"www-authenticate", b"Bearer")] if status == 401 else []),
        *_SAFE,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
