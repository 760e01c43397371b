"""A job that is watched: its progress and how to cancel it; then its pictures, one beside the photo."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from triptych.pictures.images import load_image
from triptych.pocket import POCKETS
from triptych.server.jobs import ENDED, Job
from triptych.server.page import parts
from triptych.server.page.context import Context
from triptych.server.page.files import PREVIEW, result, thumbnail
from triptych.wording.amounts import duration

EVERY = 0.7
"""Seconds between looks at a job."""
_EMPTY = (
    '<p class="triptych-empty">Nothing is made yet. Drop a photo of a garment and one of a person, '
    "say what is put on, and press <strong>Dress</strong>.</p>"
)


class Result:
    """The right-hand side of the page; made inside gradio's blocks."""

    def __init__(self, context: Context) -> None:
        self.context = context
        gr.Markdown("## Result")
        self.job, self.told = gr.State(""), gr.State("")
        self.timer = gr.Timer(EVERY, active=False)
        self.status = gr.HTML(_EMPTY, elem_id="tryon-status")
        self.cancel = gr.Button("Cancel", visible=False, elem_id="tryon-cancel")
        self.slider = gr.ImageSlider(
            label="Before and after: drag the line",
            type="filepath",
            format="webp",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            max_height=720,
            elem_id="tryon-slider",
        )
        self.seeds = gr.Radio([], label="Show the picture of seed", visible=False, elem_id="tryon-seeds")
        self.pictures = gr.HTML(visible=False, elem_id="tryon-pictures")
        self.outputs = [
            self.status,
            self.told,
            self.timer,
            self.cancel,
            self.slider,
            self.seeds,
            self.pictures,
        ]
        self.timer.tick(self.look, [self.job, self.told], self.outputs, **parts.QUIET)
        self.cancel.click(self.stop, [self.job], None, **parts.QUIET)
        self.seeds.input(self.compare, [self.job, self.seeds], [self.slider], **parts.QUIET)

    @property
    def soft(self) -> str:
        """Why the pictures of an embedded model look as they do, as HTML; "" for any other model."""
        if str(self.context.server.about["model"]) not in POCKETS:
            return ""
        usual = self.context.session.settings
        return (
            f'<p class="triptych-help">The picture is soft because the embedded model is tiny: it paints '
            f"{usual.panel_width} × {usual.panel_height} pixels, which are enlarged to the photo.</p>"
        )

    def stop(self, id: str) -> None:
        self.context.store.cancel(id)

    def look(self, id: str, told: str) -> Any:
        """How the job is; with its end come its pictures."""
        job = self.context.store.get(id) if id else None
        if job is None:
            return [gr.skip()] * len(self.outputs)
        now = progress(self.context, job)
        going, done = job.state not in ENDED, job.state == "done"
        if now == told:
            return [gr.skip()] * len(self.outputs)
        seeds = _seeds(job)
        return (
            now,
            now,
            gr.Timer(active=going),
            gr.Button(visible=going),
            gr.ImageSlider(self._pair(job, 0), visible=True) if done else gr.ImageSlider(visible=False),
            gr.Radio(seeds, value=seeds[0] if seeds else None, visible=done and len(seeds) > 1),
            gr.HTML(self.soft + gallery(job), visible=True) if done else gr.HTML(visible=False),
        )

    def compare(self, id: str, seed: str) -> Any:
        job = self.context.store.get(id)
        return self._pair(job, _seeds(job).index(seed)) if job and seed in _seeds(job) else gr.skip()

    def _pair(self, job: Job, number: int) -> Any:
        """The photo and a picture, in the size of the screen."""
        before = self.context.uploads.path(job.request["person"], "person")
        after = self.context.results / job.id / job.results[number]
        return load_image(before, longest=PREVIEW), load_image(after, longest=PREVIEW)


def _seeds(job: Job) -> list[str]:
    first = int(job.request.get("seed", 0))
    return [str(first + number) for number in range(len(job.results))]


def progress(context: Context, job: Job) -> str:
    """How a job is, in HTML."""
    if job.state == "failed":
        return parts.sentence(job.error)
    if job.state == "cancelled":
        return "<p>Cancelled.</p>"
    if job.state == "done":
        spent = duration(max(0.0, (job.ended or 0) - (job.started or 0)))
        warnings = "".join(f"<li>{html.escape(words)}</li>" for words in job.warnings)
        return f"<p>Done in {spent}.</p>" + (
            f'<ul class="triptych-remarks">{warnings}</ul>' if warnings else ""
        )
    if job.state == "queued":
        ahead = context.store.ahead_of(job)
        return f"<p>Waiting: {ahead or 'no'} other{'s' if ahead > 1 else ''} before it.</p>"
    moment = context.worker.moments.get(job.id)
    if moment is None:
        return "<p>Begun.</p>"
    steps = f" {moment.done} of {moment.of}" if moment.of else ""
    picture = (
        f", picture {min(moment.picture + 1, moment.pictures)} of {moment.pictures}"
        if moment.pictures > 1
        else ""
    )
    left = f", about {duration(moment.eta)} left" if moment.eta is not None else ""
    return (
        f'<p role="status">{html.escape(moment.doing)}{steps}{picture}{left}</p>'
        f'<progress value="{moment.share:.3f}" max="1" aria-label="Progress"></progress>'
    )


def gallery(job: Job) -> str:
    """All pictures of a job, small, each with its file to download."""
    seeds, shown = _seeds(job), []
    for number, seed in enumerate(seeds):
        file = f'<a href="{result(job.id, number)}" download="tryon-{seed}.png">Download PNG</a>'
        shown.append(
            f'<figure><img src="{thumbnail(job.id, number)}" alt="Picture of seed {seed}">'
            f"<figcaption><span>Seed {seed}</span> {file}</figcaption></figure>"
        )
    return (
        f'<div class="triptych-grid">{"".join(shown)}</div>'
        '<p class="triptych-help">Each file holds all its settings: drop it below to make it again, or '
        "give it to <code>triptych reproduce</code>.</p>"
    )
