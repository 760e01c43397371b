"""How a browser gets in: a form for the token, a cookie for those who knew it; and which of gradio's own
addresses are open at all. No gradio here.
"""

from __future__ import annotations

import hmac
import html
import json
import re
import secrets
from collections.abc import MutableMapping
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from triptych.server.guard import App, Receive, Scope, Send

PAGE = "/page"
"""Where gradio is mounted."""
LOGIN = "/login"
COOKIE = "triptych"
_NEEDED = re.compile(
    r"/|/config|/theme\.css|/(assets|static)/[\w./-]+"
    r"|/gradio_api/(startup-events|upload|upload_progress|app_id|cancel|reset|run/predict"
    r"|heartbeat/\w+|file=.+|component_server/?)"
)
_UPLOAD = "/gradio_api/upload"
CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Gradio needs inline scripts and `eval`; everything comes from this server, whatever the page asks for."""


def only_what_the_page_needs(app: App, folder: str) -> App:
    """The mounted gradio without the addresses that this page never asks for (proxy, history, monitoring,
    documentation), and without other files than those in `folder`: a browser names what it has sent by the
    path that it was told, and gradio would read, or fetch from elsewhere, whatever is named there.
    """
    home = Path(folder).resolve()

    async def narrowed(scope: Scope, receive: Receive, send: Send) -> None:
        inside = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if scope["type"] == "http" and not _NEEDED.fullmatch(inside):
            return await Response("Not Found", 404, media_type="text/plain")(scope, receive, send)
        if scope["type"] != "http" or scope["method"] != "POST" or inside == _UPLOAD:
            return await app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if not _names_only(body, home):
            return await Response("Forbidden", 403, media_type="text/plain")(scope, receive, send)
        told = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await app(scope, again, send)

    return narrowed


def _names_only(body: bytes, home: Path) -> bool:
    """Whether every file that a request names lies in a folder."""
    try:
        left = [json.loads(body or b"null")]
    except (ValueError, RecursionError):
        return False
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if (path := value.get("path")) is not None and not _within(path, home):
                return False
            left += value.values()
        elif isinstance(value, list):
            left += value
    return True


def _within(path: Any, home: Path) -> bool:
    try:
        return Path(path).is_absolute() and Path(path).resolve().is_relative_to(home)
    except (TypeError, ValueError, OSError):
        return False


class Door:
    """The form and the cookie. The cookie's value is random, known to this process alone, and not the
    token.
    """

    login, page, policy = LOGIN, PAGE, CSP

    def __init__(self, token: str) -> None:
        self._token, self._value = token, secrets.token_urlsafe(32)

    def knows(self, cookies: str) -> bool:
        """Whether a `Cookie` header has the right cookie."""
        given = [
            part.strip().removeprefix(f"{COOKIE}=") for part in cookies.split(";") if f"{COOKIE}=" in part
        ]
        return any(hmac.compare_digest(one.encode(), self._value.encode()) for one in given)

    def add_routes(self, api: FastAPI) -> None:
        """The form at `LOGIN`."""

        @api.get(LOGIN, include_in_schema=False)
        def form() -> Response:
            return HTMLResponse(_form())

        @api.post(LOGIN, include_in_schema=False)
        async def enter(request: Request) -> Response:
            async with request.form(max_files=0, max_fields=1) as form:
                given = str(form.get("token") or "")
            if not hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token.encode()):
                return HTMLResponse(_form("This is not the token."), 401)
            answer = RedirectResponse(f"{PAGE}/", 303)
            answer.set_cookie(
                COOKIE, self._value, httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
            return answer


def _form(problem: str = "") -> str:
    page = (resources.files("triptych") / "web" / "login.html").read_text(encoding="utf-8")
    return page.replace("PROBLEM", html.escape(problem))


__all__ = ["COOKIE", "CSP", "Door", "LOGIN", "PAGE", "only_what_the_page_needs"]
