"""Shows a tab anew when the page is loaded, and whenever the tab is opened: files may have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context as Building

from triptych.server.page import parts


def whenever_it_is_opened(function: Callable[..., Any], given: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Call a function when the page is loaded and when one of the tabs around this place is chosen."""
    block: Any = Building.block
    while block is not None:
        if isinstance(block, gr.Tab):
            block.select(function, [*given], [*outputs], **parts.QUIET)
        block = block.parent
    assert Building.root_block is not None
    Building.root_block.load(function, [*given], [*outputs], **parts.QUIET)
