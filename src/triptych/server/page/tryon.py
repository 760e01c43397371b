"""The tab tryon."""

from __future__ import annotations

import gradio as gr

from triptych.server.page.context import Context


def build(context: Context) -> None:
    """Build the tab, see `page.py`."""
    gr.Markdown("Nothing here yet.")
