"""The photos of the tab *Catalogue*: thumbnails with verdicts, and the keys that correct them."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi import Path as InPath
from fastapi.responses import Response

from triptych.data.catalogue import OVERRIDDEN, PHOTOS
from triptych.errors import InputError, TriptychError
from triptych.pictures.images import load_image
from triptych.server.page import parts
from triptych.server.page.context import Context
from triptych.server.page.places import shown, without_paths
from triptych.server.page.review import Card, Review, State
from triptych.wording.amounts import number

A_PAGE = 60
"""Photos on a page."""
THUMB = 240
"""Longest side of a thumbnail in pixels."""
SHOWN = {
    "All": "all",
    "Unsure": "unsure",
    "People": "human",
    "Garments": "garment",
    "Left out": "rejected",
    "Front or back is a guess": "guessed",
    "Flagged": "flagged",
    "Corrected by you": "corrected",
}
_COUNTED = {"unsure": "unsure", "human": "of people", "garment": "of garments", "rejected": "left out"}
_LABELS = {"human": "person", "garment": "garment", "unsure": "unsure", "rejected": "left out"}
_EMPTY = """<div class="triptych-empty"><p>There is no catalogue yet. Let <code>clean</code> sort your photos:
</p><pre>triptych clean --work {work} --photos PHOTOS \\
  --human EXAMPLES/human --garment EXAMPLES/garment</pre>
<p>PHOTOS is your folder of photos, with one folder in it for each item. EXAMPLES is a folder with a few dozen
photos of people in <code>human</code> and of garments alone in <code>garment</code>. Then come back and look
at what it was not sure of.</p><p class="triptych-help">{where}</p></div>"""


def add_routes(api: FastAPI, review: Review) -> None:
    """Thumbnails, by the key of a photo."""

    @api.get("/files/photo/{key}", include_in_schema=False)
    def photo(key: str = InPath(pattern=r"^[0-9a-f]{16}$")) -> Response:
        try:
            path = review.path(key)
            return Response(thumbnail(path, path.stat().st_mtime_ns, THUMB), media_type="image/jpeg")
        except (TriptychError, OSError):
            return Response(status_code=404)


@lru_cache(maxsize=4096)
def thumbnail(path: Path, changed: int, longest: int) -> bytes:
    """A picture as a small JPEG. changed: the time of its last change.

    Raises:
        BadImage: it is no picture.
    """
    data = io.BytesIO()
    load_image(path, longest=longest).save(data, "JPEG", quality=80)
    return data.getvalue()


class Board:
    """The photos, page by page; made inside gradio's blocks."""

    def __init__(self, context: Context, review: Review) -> None:
        self.context, self.review = context, review
        with gr.Row(visible=False) as self.choice:
            self.show = gr.Dropdown(list(SHOWN), value="All", label="Show", elem_id="catalogue-show", scale=2)
            self.search = gr.Textbox(
                label="Search", info="A part of an item or a file name.", elem_id="catalogue-search", scale=2
            )
            self.by_item = gr.Checkbox(
                label="Item by item",
                info="Keep the photos of an item together. Else the doubtful ones come first.",
                elem_id="catalogue-by-item",
                scale=1,
            )
        self.board = gr.HTML(
            "",
            js_on_load=(resources.files("triptych") / "web" / "review_board.js").read_text(encoding="utf-8"),
            css_template=(resources.files("triptych") / "web" / "review_board.css").read_text("utf-8"),
            server_functions=[self._answered(review.decide), self._answered(review.swap)],
            elem_id="catalogue-board",
        )
        with gr.Row(elem_classes="triptych-line", visible=False) as self.pager:
            self.back = gr.Button("Previous page", elem_id="catalogue-back", min_width=120)
            self.page = gr.Number(
                1, label="Page", precision=0, minimum=1, elem_id="catalogue-page", min_width=90, scale=0
            )
            self.on = gr.Button("Next page", elem_id="catalogue-on", min_width=120)
        self.problem = parts.message()
        given = [self.show, self.by_item, self.search, self.page]
        outputs = [self.board, self.page, self.choice, self.pager, self.problem]
        for event, step in (
            (self.page.submit, 0),
            (self.back.click, -1),
            (self.on.click, 1),
        ):
            event(self._turned(step), given, outputs, **parts.QUIET)
        for component in (self.show, self.by_item):
            component.input(self._turned(None), given, outputs, **parts.QUIET)
        self.search.submit(self._turned(None), given, outputs, **parts.QUIET)
        self.refresh = (self._turned(0), given, outputs)

    def _turned(self, step: int | None) -> Callable[..., Any]:
        """What shows a page: `step` pages further, or the first one."""

        @parts.told(4)
        @without_paths(self.context.work)
        def turned(show: str, by_item: bool, search: str | None, page: float | None) -> tuple[Any, ...]:
            wanted = 1 if step is None else int(page or 1) + step
            return parts.paged(*self.shown(show, by_item, search, wanted))

        return turned

    def shown(self, show: str, by_item: bool, search: str | None, page: int) -> tuple[str, int, int]:
        """(the board, the page that it shows, the number of pages) for a choice of photos; no page if
        there is no catalogue.
        """
        if not (self.context.config.catalogue_folder / PHOTOS).exists():
            work = self.context.work
            return _EMPTY.format(work=parts.work_named(work), where=parts.where(work)), 1, 0
        state = self.review.state()
        keys = state.listed(SHOWN.get(show, "all"), by_item, (search or "").strip())  # type: ignore[arg-type]
        pages = max(1, -(-len(keys) // A_PAGE))
        page = min(max(1, page), pages)
        cards = state.cards(keys[(page - 1) * A_PAGE : page * A_PAGE])
        place = f"{number(len(keys))} shown here, page {page} of {pages}."
        return board(cards, summary(state), place, self.review.roles.names), page, pages

    def _answered(self, function: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
        """A function as the browser calls it: what changed, or the error."""

        def answered(data: Any) -> dict[str, Any]:
            given = data[0] if isinstance(data, list) and len(data) == 1 else data
            try:
                if not (isinstance(given, str) or _is_words(given)):
                    raise InputError("The page sent something odd.", "Load the page again.")
                before, cards = function(given)
            except TriptychError as error:
                work = self.context.work
                return {"error": f"{shown(error.message, work)} {shown(error.hint, work)}"}
            return {
                "before": before,
                "cards": {card.key: {"label": card.photo.label, "text": text_of(card)} for card in cards},
                "summary": summary(self.review.state()),
                "said": "; ".join(_in_words(card) for card in cards if card.key in before),
            }

        answered.__name__ = function.__name__
        return answered


def _is_words(given: object) -> bool:
    return isinstance(given, dict) and all(isinstance(one, str) for pair in given.items() for one in pair)


def summary(state: State) -> str:
    """How many photos there are of each kind, and what to do about corrections."""
    counts = ", ".join(f"{number(state.counts[label])} {words}" for label, words in _COUNTED.items())
    told = f"{number(len(state.photos))} photos: {counts}."
    if state.waiting:
        told += (
            f" <strong>New corrections: {number(state.waiting)}.</strong> They stand in "
            "<code>overrides.txt</code> of the catalogue: run <code>triptych clean</code> again as before, "
            "then <code>triptych concat</code>."
        )
    return told


def board(cards: Sequence[Card], told: str, place: str, roles: Sequence[str]) -> str:
    """The bar with the verdicts, and a page of photos."""
    options = "".join(f'<option value="{html.escape(role)}">{html.escape(role)}</option>' for role in roles)
    nothing = '<p class="triptych-empty">Nothing found. Change the search or the choice above.</p>'
    grid = "".join(map(card_of, cards)) or nothing
    return f"""<p class="review-summary"><span class="review-told">{told}</span> {html.escape(place)}</p>
<div class="review-bar" role="toolbar" aria-label="Verdict for the chosen photo">
<button type="button" data-word="human">Person <kbd>1</kbd></button>
<button type="button" data-word="garment">Garment <kbd>2</kbd></button>
<button type="button" data-word="rejected">Drop <kbd>3</kbd></button>
<select aria-label="Say which side it shows"><option value="">Side …</option>{options}</select>
<button type="button" data-do="swap">Swap sides <kbd>S</kbd></button>
<button type="button" data-do="undo">Undo <kbd>U</kbd></button>
<span class="review-said" role="status">Arrow keys choose a photo.</span></div>
<div class="review-grid">{grid}</div>"""


def card_of(card: Card) -> str:
    """A photo with its verdict."""
    picture = (
        f'<img loading="lazy" src="../files/photo/{card.key}" alt="" width="{THUMB}">'
        if card.photo.sha256 and not card.fixed
        else '<span class="review-none">no picture</span>'
    )
    return (
        f'<button type="button" class="review-card" data-key="{card.key}" data-label="{card.photo.label}"'
        f"{' disabled' if card.fixed else ''}>{picture}{text_of(card)}</button>"
    )


def text_of(card: Card) -> str:
    """The words below a photo."""
    photo = card.photo
    percent = ""
    if photo.score is not None and not photo.reason and photo.label in ("human", "garment"):
        percent = f" {100 * (1 - photo.score if photo.label == 'garment' else photo.score):.0f} %"
    reason = photo.reason if not photo.reason.startswith(OVERRIDDEN) else "you said so"
    lines = [
        f'<b class="review-verdict">{_LABELS[photo.label]}{percent}</b>',
        html.escape(card.side),
        html.escape(reason if not card.said else f"new: {card.said}"),
        html.escape(photo.flags),
        f"<small>{html.escape(photo.item or 'no item')}<br>{html.escape(Path(photo.path).name)}</small>",
    ]
    return f'<span class="review-text">{"<br>".join(filter(None, lines))}</span>'


def _in_words(card: Card) -> str:
    return f"{Path(card.photo.path).name}: {card.said or _LABELS[card.photo.label]}"
