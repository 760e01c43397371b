"""Puts the tabs together and mounts them on the API's application.

A tab is a row of `TABS`: its name and a function `build(context: Context) -> None` in a file of its own. The
function is called once, inside the tab's `gr.Tab`, and makes its components and their events there. What it
owes:

- Its state lies in the context's stores, in files, or in `gr.State`, never in a global: several people may
  have the page open. Long work becomes a job of the store or a process of its own, which a `gr.Timer` looks
  at; a function behind a button returns within seconds. One that holds a model is `parts.one_at_a_time`.
- A component that a setting stands behind takes its help from the config, or in the page's own words:
  `info=parts.help_of(Config, "name")`.
- A function behind an event is wrapped by `parts.told`, with a `parts.message()` as its last output: a
  TriptychError is then shown in place, as sentence and hint, and nothing else is changed. Every event gets
  `**parts.PRIVATE` or `**parts.QUIET`, which say why none goes through gradio's queue.
- Text that comes from elsewhere goes through `html.escape` before it becomes HTML.
- Pictures are shown by address: `parts.thumbnail(...)` and the routes of `files.py` and the API. No path of
  the server goes to the browser, and none is taken from it; a row of a table is named by its key.
- No subclass of a gradio component: gradio writes a file beside its source. `widgets.py` has `photo` and
  `polygon_canvas`; a table or list with buttons is a `gr.HTML` whose `js_on_load` calls
  `trigger("select", {…})`, see `jobs.py`.
- Whatever is empty says what to do next. No element gets an `elem_id` without the tab's name in it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response

from triptych.server.page import catalogue, files, jobs, look, training, tryon
from triptych.server.page.context import Context
from triptych.server.page.door import PAGE, only_what_the_page_needs

TABS: tuple[tuple[str, Callable[[Context], None]], ...] = (
    ("Try on", tryon.build),
    ("Catalogue", catalogue.build),
    ("Train", training.build),
    ("Jobs", jobs.build),
)


def blocks_of(context: Context) -> gr.Blocks:
    """The page as gradio's blocks."""
    with gr.Blocks(title="triptych", analytics_enabled=False, delete_cache=(3600, 86_400)) as blocks:
        gr.HTML(look.head(context))
        with gr.Tabs():
            for name, build in TABS:
                with gr.Tab(name):
                    build(context)
    return blocks


def mount(api: FastAPI, context: Context) -> None:
    """Mount the page on the API's application, with `/` leading to it.

    Gradio's own copies of what is sent and shown lie in a folder of this process, which only its owner can
    read and which goes with it. Its name is in addresses on the page, and says nothing of the work folder.
    """
    folder = tempfile.mkdtemp(prefix="triptych-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder  # read whenever a component is made

    @api.get("/", include_in_schema=False)
    def home() -> Response:
        return RedirectResponse(f"{PAGE}/", 303)

    @api.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(look.ICON, media_type="image/svg+xml")

    for module in (files, catalogue, training):
        module.add_routes(api, context)
    blocks = blocks_of(context)
    blocks.has_launched = (
        True  # unless this is set, gradio does not look where the files lie that it is told of
    )
    gr.mount_gradio_app(
        api,
        blocks,
        PAGE,
        root_path=PAGE,  # or an event's answer names files without it
        server_name=context.config.host,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=context.server.max_upload,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=look.theme(),
        css=look.CSS,
    )
    mounted = next(route for route in api.routes if getattr(route, "path", "") == PAGE)
    mounted.app = only_what_the_page_needs(mounted.app, folder)  # type: ignore[attr-defined]
