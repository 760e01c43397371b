"""The tab *Train*: settings and what they need, start, stop and go on; losses and pictures while it runs."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI, Query
from fastapi import Path as InPath
from fastapi.responses import FileResponse, Response

from triptych.errors import ConfigError, TriptychError
from triptych.server.page import parts, training_view
from triptych.server.page.context import Context
from triptych.server.page.look_again import whenever_it_is_opened
from triptych.server.page.places import shown, without_paths
from triptych.server.page.review_board import thumbnail
from triptych.server.page.training_form import Fields, in_words_of_the_page
from triptych.server.page.trainings import Trainings

EVERY = 2.0
"""Seconds between looks at a training that runs."""
WIDE = 1000
"""Longest side in pixels of validation pictures on the page."""
NOBODY = "none"
_CHECKING = "() => '<p>Checking settings and embeddings, then counting what it needs …</p>'"
_COUNTING = "() => '<p>Counting what it needs …</p>'"


def add_routes(api: FastAPI, context: Context) -> None:
    """Add the validation pictures to the API's application."""
    trainings = Trainings(context.config)

    @api.get("/files/training/{name}/{step}", include_in_schema=False)
    def sample(name: str, step: int = InPath(ge=0, lt=10**9), whole: bool = Query(False)) -> Response:
        try:
            path = trainings.picture(name, step)
            if whole and path.is_file():
                return FileResponse(path, media_type="image/png")
            return Response(thumbnail(path, path.stat().st_mtime_ns, WIDE), media_type="image/jpeg")
        except (TriptychError, OSError):
            return Response(status_code=404)


def build(context: Context) -> None:
    """Build the tab, see `page.py`."""
    _Train(context).build()


class _Train:
    """The components of the tab. It holds nothing of any one visitor."""

    def __init__(self, context: Context) -> None:
        self.context, self.trainings = context, Trainings(context.config)

    def build(self) -> None:
        gr.HTML(f"<style>{training_view.CSS}</style>")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._settings()
            with gr.Column(scale=6, min_width=300):
                self._running()
        self._events()

    def _settings(self) -> None:
        gr.Markdown("## Settings")
        self.name = gr.Textbox(
            "lora",
            label="Name",
            info="Name its folder. Start goes on with a training that has this name and these settings.",
            max_lines=1,
            elem_id="train-name",
        )
        self.fields = Fields(self.trainings.model_named(self.context.config.model))
        with gr.Row():
            self.plan = gr.Button("What does it need?", elem_id="train-plan")
            self.start = gr.Button("Start", variant="primary", elem_id="train-start")
        self.anyway = gr.Checkbox(
            False,
            label="Start even if it does not fit",
            info="What a training needs is an estimate.",
            elem_id="train-anyway",
        )
        self.verdict = gr.HTML(elem_id="train-verdict")
        self.problem = parts.message()

    def _running(self) -> None:
        gr.Markdown("## Trainings")
        with gr.Row():
            self.shown = gr.Dropdown(
                [],
                label="Show",
                allow_custom_value=True,  # the choices of a visitor are forgotten when the server starts anew
                elem_id="train-show",
                min_width=140,
            )
            self.other = gr.Dropdown(
                [NOBODY],
                value=NOBODY,
                label="Compare with",
                allow_custom_value=True,
                elem_id="train-other",
                min_width=140,
            )
        self.status = gr.HTML(training_view.empty(self.context.work), elem_id="train-status")
        with gr.Row():
            self.stop = gr.Button("Stop", visible=False, elem_id="train-stop", min_width=120)
            self.save = gr.Button("Save a LoRA now", visible=False, elem_id="train-save", min_width=120)
            self.go_on = gr.Button("Go on", visible=False, elem_id="train-go-on", min_width=120)
            self.take = gr.Button("Take its settings", visible=False, elem_id="train-take", min_width=120)
        self.told = parts.message()
        self.curves = gr.HTML(elem_id="train-curves")
        self.pictures = gr.HTML(elem_id="train-pictures")
        self.before, self.timer = gr.State({}), gr.Timer(EVERY, active=False)

    # --- events

    def _events(self) -> None:
        form = [self.name, self.anyway, *self.fields.fields.values()]
        self.view = [
            self.shown, self.other, self.status, self.curves, self.pictures, self.stop, self.save, self.go_on,
            self.take, self.timer, self.before,
        ]  # fmt: skip
        asked, outputs = [self.shown, self.other, self.before], [*self.view, self.told]
        look = self._seen(lambda name: None)
        for event in (self.timer.tick, self.shown.input, self.other.input):
            event(look, asked, outputs, **parts.QUIET)
        for button, act in (
            (self.stop, self.trainings.stop),
            (self.save, self.trainings.save),
            (self.go_on, self.trainings.go_on),
        ):
            button.click(self._seen(act), asked, outputs, **parts.QUIET)
        self.start.click(None, None, [self.verdict], js=_CHECKING, **parts.QUIET).then(
            self._started, form, [self.shown, self.verdict, self.problem], **parts.PRIVATE
        ).then(look, asked, outputs, **parts.QUIET)
        self.plan.click(None, None, [self.verdict], js=_COUNTING, **parts.QUIET).then(
            self._planned, form, [self.verdict, self.problem], **parts.PRIVATE
        )
        fields = list(self.fields.fields.values())
        self.take.click(self._taken, [self.shown], [self.name, *fields, self.told], **parts.QUIET)
        whenever_it_is_opened(look, asked, outputs)

    @parts.one_at_a_time
    def _planned(self, name: str, anyway: bool, *fields: Any) -> tuple[Any, ...]:
        """What a training would need."""
        try:
            config = self.trainings.config(name, self.fields.values(fields))
            verdict, text = self.trainings.plan(config)
        except TriptychError as error:
            return "", self._sentence(error)
        told = (
            f"<p><strong>{html.escape(verdict)}</strong></p><details><summary>All of it</summary>"
            f'<pre class="train-plan" tabindex="0">{html.escape(text)}</pre></details>'
        )
        return told, ""

    @parts.one_at_a_time
    def _started(self, name: str, anyway: bool, *fields: Any) -> tuple[Any, ...]:
        """Check, plan and start."""
        try:
            config = self.trainings.config(name, self.fields.values(fields))
            self.trainings.check(config)
            fits, told = self.trainings.memory(config)
            if not fits and not anyway:
                raise ConfigError(told, "Change the settings, or tick the box above to start all the same.")
            self.trainings.start(config)
        except TriptychError as error:
            return gr.skip(), "", self._sentence(error)
        name = config.train_folder.name
        return gr.Dropdown(self.trainings.names(), value=name), f"<p>{html.escape(told)}</p>", ""

    def _sentence(self, error: TriptychError) -> str:
        work, error = self.context.work, in_words_of_the_page(error)
        return parts.sentence({"message": shown(error.message, work), "hint": shown(error.hint, work)})

    def _taken(self, name: str | None) -> Any:
        """The fields as the shown training has them."""

        @parts.told(1 + len(self.fields.fields))
        @without_paths(self.context.work)
        def taken() -> list[Any]:
            return [name, *self.fields.filled(self.trainings.settings(name or ""))]

        return taken()

    def _seen(self, act: Callable[[str], None]) -> Callable[..., Any]:
        """Do something to the shown training, and show how it is."""

        @parts.told(len(self.view))
        @without_paths(self.context.work)
        def seen(name: str | None, other: str | None, before: dict[str, str]) -> list[Any]:
            if name:
                act(name)
            return self.look(name, other, before)

        return seen

    def look(self, name: str | None, other: str | None, before: dict[str, str]) -> list[Any]:
        """The right-hand side. before: what it has shown, because what stays is not sent again."""
        names = self.trainings.names()
        name = name if name in names else next(iter(names), None)
        others = [NOBODY, *(one for one in names if one != name)]
        other = other if other in others else NOBODY
        lists = gr.Dropdown(names, value=name), gr.Dropdown(others, value=other)
        if name is None:
            return [
                *lists,
                training_view.empty(self.context.work),
                "",
                "",
                *[gr.Button(visible=False)] * 4,
                gr.Timer(active=False),
                {},
            ]
        status = self.trainings.status(name)
        compared = [name] if other == NOBODY else [name, other]
        now = {
            "status": training_view.status_of(self.trainings, name, status),
            "curves": training_view.curves_of({one: self.trainings.rows(one) for one in compared}),
            "pictures": training_view.pictures_of(self.trainings, compared),
        }
        sent = [gr.skip() if before.get(part) == text else text for part, text in now.items()]
        begun_here = (self.trainings.folder(name) / "train.yaml").exists()
        buttons = (
            status.goes and not status.stopping,
            status.state == "running",
            begun_here and status.state in ("stopped", "failed"),
            True,
        )
        return [
            *lists,
            *sent,
            *(gr.Button(visible=one) for one in buttons),
            gr.Timer(active=status.goes),
            now,
        ]
