"""What stands before every request: the token, the name of the host, the origin, and the size of the body."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz"})
"""Paths that need no token: they say nothing but that the server is there."""


class BrowserDoor(Protocol):
    """How the page lets browsers in, see `page.door.Door`."""

    login: str
    page: str
    policy: str
    """The page's Content-Security-Policy."""

    def knows(self, cookies: str) -> bool:
        """Whether a `Cookie` header has the cookie of somebody who knew the token."""


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


class TooLarge(Exception):
    """The body has more bytes than it may; raised where it is read. detail, hint: for the problem."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.detail = f"A request has at most {most_bytes >> 20} MB."
        self.hint = "Scale the pictures down."

    def problem(self) -> tuple[int, bytes]:
        return problem(413, "Content Too Large", self.detail, self.hint)


class Guard:
    """An ASGI middleware. Without a token only this machine's own programs, and pages that it serves, may
    ask: the names in `Host` and `Origin` must be loopback ones, so that no web page elsewhere can use the
    server through its user's browser. With a page, its cookie does for the token, for requests of its own.
    """

    def __init__(
        self,
        app: App,
        token: str,
        most_bytes: int,
        origins: Sequence[str] = (),
        door: BrowserDoor | None = None,
    ) -> None:
        self.app, self.token, self.most, self.door = app, token, most_bytes, door
        self.origins = frozenset(origin.rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # nothing here speaks over websockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        if refused := self._refused(scope, headers):
            if refused[0] == 401 and self.door and "text/html" in headers.get("accept", ""):
                return await _answer(send, 303, b"", [(b"location", self.door.login.encode())])
            return await _answer(send, *refused)
        safe = self._safe(scope["path"])
        told = headers.get("content-length", "0")
        if not told.isdigit() or int(told) > self.most:
            return await _answer(send, *TooLarge(self.most).problem())
        counted, begun = 0, False

        async def counting() -> MutableMapping[str, Any]:
            nonlocal counted
            message = await receive()
            counted += len(message.get("body", b""))
            if counted > self.most:
                raise TooLarge(self.most)
            return message

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                ours = {name for name, _ in safe}
                theirs = [pair for pair in message.get("headers", []) if pair[0].lower() not in ours]
                message["headers"] = [*theirs, *safe]
            await send(message)

        try:
            await self.app(scope, counting, sending)
        except TooLarge as error:
            if not begun:
                await _answer(send, *error.problem())

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, bytes] | None:
        origin = headers.get("origin", "").rstrip("/")
        own = not origin or _netloc(origin) == headers.get("host", "").lower()
        if not own and origin not in self.origins:
            return problem(
                403, "Forbidden", "Pages from other origins may not ask this server.", "See --allow-origin."
            )
        if not self.token:
            if not is_loopback(_name(headers.get("host", ""))):
                return problem(403, "Forbidden", "Without a token the server answers this machine alone.")
            return None
        if scope["path"] in OPEN or (self.door and scope["path"] == self.door.login):
            return None
        if own and self.door and self.door.knows(headers.get("cookie", "")):
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("utf-8", "replace"), self.token.encode()
        ):
            return problem(
                401, "Unauthorized", "The request has no valid token.", "Send Authorization: Bearer TOKEN."
            )
        return None

    def _safe(self, path: str) -> list[tuple[bytes, bytes]]:
        """The headers that keep a browser from doing more with an answer than it is for."""
        if not self.door or not (path == self.door.login or path.startswith(f"{self.door.page}/")):
            return _SAFE
        kept = b"private, max-age=86400" if path.startswith(f"{self.door.page}/assets/") else b"no-store"
        return [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cache-control", kept),
            (b"content-security-policy", self.door.policy.encode()),
        ]


_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A `Host` header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _answer(send: Send, status: int, body: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    headers = [
        *more,
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *([(b"www-authenticate", b"Bearer")] if status == 401 else []),
        *_SAFE,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
