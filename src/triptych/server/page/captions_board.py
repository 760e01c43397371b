"""The captions of the tab *Catalogue*: each beside its triptych, with its problems while it is written."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi import Path as InPath
from fastapi.responses import Response

from triptych.errors import InputError, TriptychError
from triptych.server.page import parts
from triptych.server.page.captions import Captions, Entry
from triptych.server.page.context import Context
from triptych.server.page.places import shown, without_paths
from triptych.server.page.review_board import thumbnail
from triptych.wording.amounts import number

A_PAGE = 12
"""Triptychs on a page."""
WIDE = 900
"""Longest side of a triptych in pixels."""
SHOWN = {"All, without a caption first": "all", "Without a caption": "missing", "With problems": "problems"}
_EMPTY = """<div class="triptych-empty"><p>There are no triptychs yet. Put the photos of each item side by
side, then let a captioner describe them, or write the captions here:</p>
<pre>triptych concat --work {work} --model MODEL
triptych caption --work {work} --model MODEL --vlm-model CAPTIONER</pre>
<p>MODEL is the model that you will train, such as black-forest-labs/FLUX.2-klein-base-4B. CAPTIONER is a
model that looks at pictures, such as gpt-4.1-mini.</p><p class="triptych-help">{where}</p></div>"""


def add_routes(api: FastAPI, captions: Captions) -> None:
    """Triptychs, by their keys."""

    @api.get("/files/triptych/{key}", include_in_schema=False)
    def triptych(key: str = InPath(pattern=r"^[0-9a-f]{16}$")) -> Response:
        try:
            path = captions.job(key).picture
            return Response(thumbnail(path, path.stat().st_mtime_ns, WIDE), media_type="image/jpeg")
        except (TriptychError, OSError):
            return Response(status_code=404)


class Board:
    """The captions, page by page; made inside gradio's blocks."""

    def __init__(self, context: Context, captions: Captions) -> None:
        self.work, self.captions = context.work, captions
        self.model = str(context.server.about["model"])
        with gr.Row(visible=False) as self.choice:
            self.show = gr.Dropdown(
                list(SHOWN),
                value=next(iter(SHOWN)),
                label="Show",
                elem_id="captions-show",
                scale=2,
                min_width=240,
            )
            self.search = gr.Textbox(
                label="Search",
                info="A part of an item or a name.",
                elem_id="captions-search",
                scale=2,
                min_width=240,
            )
        web = resources.files("triptych") / "web"
        self.board = gr.HTML(
            "",
            js_on_load=(web / "captions_board.js").read_text(encoding="utf-8"),
            css_template=(web / "captions_board.css").read_text(encoding="utf-8"),
            server_functions=[self._answered("lint", self.lint), self._answered("save", self.save)],
            elem_id="captions-board",
        )
        with gr.Row(elem_classes="triptych-line", visible=False) as self.pager:
            self.back = gr.Button("Previous page", elem_id="captions-back", min_width=120)
            self.page = gr.Number(
                1, label="Page", precision=0, minimum=1, elem_id="captions-page", min_width=90, scale=0
            )
            self.on = gr.Button("Next page", elem_id="captions-on", min_width=120)
        self.problem = parts.message()
        given = [self.show, self.search, self.page]
        outputs = [self.board, self.page, self.choice, self.pager, self.problem]
        for event, step in ((self.page.submit, 0), (self.back.click, -1), (self.on.click, 1)):
            event(self._turned(step), given, outputs, **parts.QUIET)
        self.show.input(self._turned(None), given, outputs, **parts.PRIVATE)
        self.search.submit(self._turned(None), given, outputs, **parts.QUIET)
        self.refresh = (self._turned(0), given, outputs)

    def _turned(self, step: int | None) -> Callable[..., Any]:
        """What shows a page: `step` pages further, or the first one."""

        @parts.told(4)
        @without_paths(self.work)
        def turned(show: str, search: str | None, page: float | None) -> tuple[Any, ...]:
            wanted = 1 if step is None else int(page or 1) + step
            return parts.paged(*self.shown(show, search, wanted))

        return turned

    def shown(self, show: str, search: str | None, page: int) -> tuple[str, int, int]:
        """(the board, the page that it shows, the number of pages); no page if there are no triptychs."""
        total = len(self.captions.jobs())
        if not total:
            return _EMPTY.format(work=parts.work_named(self.work), where=parts.where(self.work)), 1, 0
        keys = self.captions.listed(SHOWN.get(show, "all"), (search or "").strip())
        pages = max(1, -(-len(keys) // A_PAGE))
        page = min(max(1, page), pages)
        entries = [self.captions.entry(key) for key in keys[(page - 1) * A_PAGE : page * A_PAGE]]
        model = html.escape(self.model)
        told = (
            f"{number(total)} triptychs, {number(len(keys))} shown here, page {page} of {pages}. A caption "
            "that you change is yours: <code>triptych caption</code> keeps it. Run "
            f"<code>triptych embed</code> again before you train. The length is counted for {model}."
        )
        return board(entries, told), page, pages

    def lint(self, given: dict[str, str]) -> dict[str, Any]:
        return {"problems": problems_of(self.captions.lint(given["key"], given["text"]))}

    def save(self, given: dict[str, str]) -> dict[str, Any]:
        entry = self.captions.save(given["key"], given["text"], given["was"])
        return {"was": entry.was, "text": entry.text, "problems": problems_of(entry.problems)}

    def _answered(self, name: str, function: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
        """A function as the browser calls it: its answer, or the error."""

        def answered(data: Any) -> dict[str, Any]:
            given = data[0] if isinstance(data, list) and len(data) == 1 else data
            try:
                wanted = {"key", "text"} | ({"was"} if name == "save" else set())
                if not (
                    isinstance(given, dict)
                    and given.keys() == wanted
                    and all(isinstance(value, str) for value in given.values())
                ):
                    raise InputError("The page sent something odd.", "Load the page again.")
                return function(given)
            except TriptychError as error:
                return {"error": f"{shown(error.message, self.work)} {shown(error.hint, self.work)}"}

        answered.__name__ = name
        return answered


def board(entries: Sequence[Entry], told: str) -> str:
    """A page of captions."""
    nothing = '<p class="triptych-empty">Nothing found. Change the search or the choice above.</p>'
    return f'<p class="captions-told">{told}</p>{"".join(map(_card, entries)) or nothing}'


def _card(entry: Entry) -> str:
    name, roles = html.escape(entry.item or entry.id), html.escape(", ".join(entry.roles))
    by = f"written by {entry.by}" if entry.by else ""
    return f"""<article class="caption-card" data-key="{entry.key}" data-was="{entry.was}">
<img loading="lazy" src="../files/triptych/{entry.key}" alt="{name}: {roles}">
<div><label for="caption-{entry.key}">{name} <small>{html.escape(entry.id)}</small></label>
<textarea id="caption-{entry.key}" rows="5" spellcheck="true">{html.escape(entry.text)}</textarea>
<div class="caption-problems">{problems_of(entry.problems)}</div>
<p class="caption-foot"><button type="button">Save</button> <span role="status">{by}</span></p>
</div></article>"""


def problems_of(problems: Sequence[str]) -> str:
    """The problems of a caption as HTML."""
    if not problems:
        return '<p class="caption-good">In the house format.</p>'
    listed = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    return f'<ul class="caption-bad">{listed}</ul>'
