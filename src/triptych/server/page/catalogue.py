"""The tab *Catalogue*: what `clean` decided, and the captions of the triptychs."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI

from triptych.server.page import captions_board, review_board
from triptych.server.page.captions import Captions
from triptych.server.page.context import Context
from triptych.server.page.look_again import whenever_it_is_opened
from triptych.server.page.review import Review


def add_routes(api: FastAPI, context: Context) -> None:
    """Add the pictures of this tab to the API's application."""
    review_board.add_routes(api, _review(context))
    captions_board.add_routes(api, _captions(context))


def build(context: Context) -> None:
    """Build the tab, see `page.py`."""
    with gr.Tabs():
        with gr.Tab("Photos"):
            whenever_it_is_opened(*review_board.Board(context, _review(context)).refresh)
        with gr.Tab("Captions"):
            whenever_it_is_opened(*captions_board.Board(context, _captions(context)).refresh)


def _review(context: Context) -> Review:
    return Review(context.config.catalogue_folder, context.config.triptych_folder)


def _captions(context: Context) -> Captions:
    return Captions(context.config.triptych_folder, context.config.model)
