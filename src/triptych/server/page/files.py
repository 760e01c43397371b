"""What the page shows besides gradio's own: the canvas's module, previews of uploads, small results."""

from __future__ import annotations

from fastapi import FastAPI

from triptych.server.page.context import Context


def add_routes(api: FastAPI, context: Context) -> None:
    """Add the routes to the API's application; they stand behind the same guard."""
