"""The tab with everything queued, running, done, failed: what it is, how it is, its pictures."""

from __future__ import annotations

import html
import time
from typing import Any

import gradio as gr

from triptych.server.jobs import ENDED, Job
from triptych.server.page import parts
from triptych.server.page.context import Context
from triptych.server.page.files import result, thumbnail, upload
from triptych.server.page.watch import progress

EVERY, MOST = 1.5, 60
"""Seconds between looks at the table, and most jobs that are shown."""
_EMPTY = (
    '<p class="triptych-empty">No job yet. Press <strong>Dress</strong> at “Try on”, or send a request to '
    "<code>/v1/tryon</code>: whatever is made or waits is listed here.</p>"
)
_LISTEN = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-job]");
  if (!button) return;
  button.disabled = true;
  trigger("cancel", { job: button.dataset.job });
});
"""


def build(context: Context) -> None:
    """Build the tab, see `page.py`."""
    told = gr.State("")
    shown = gr.HTML(_EMPTY, js_on_load=_LISTEN, elem_id="jobs-list")
    problem = parts.message()

    def look(before: str) -> Any:
        now = listed(context)
        return (gr.skip(), gr.skip()) if now == before else (now, now)

    def cancel(event: gr.EventData) -> None:
        context.store.cancel(str(event._data.get("job", ""))[:64])

    timer = gr.Timer(EVERY)
    timer.tick(look, [told], [shown, told], **parts.QUIET)
    shown.cancel(cancel, None, None, **parts.QUIET).then(
        parts.told(2)(look), [told], [shown, told, problem], **parts.QUIET
    )


def listed(context: Context) -> str:
    """The newest jobs, in HTML."""
    jobs = context.store.newest(MOST)
    if not jobs:
        return _EMPTY
    counts = [f"{number} {state}" for state, number in context.store.counts().items() if number]
    older = sum(context.store.counts().values()) - len(jobs)
    more = f"<p>{older} older ones are not shown.</p>" if older > 0 else ""
    rows = "".join(_row(context, job) for job in jobs)
    return f'<p role="status">{", ".join(counts)}</p><ul class="triptych-jobs">{rows}</ul>{more}'


def _row(context: Context, job: Job) -> str:
    made = time.strftime("%d %b, %H:%M:%S", time.localtime(job.created))
    prompt = str(job.request.get("prompt", ""))
    words = html.escape(prompt[:160] + ("…" if len(prompt) > 160 else "")) or "Prompt by the captioner"
    end = "" if job.state in ENDED else _button(job)
    return (
        f'<li class="is-{job.state}"><div class="pictures">{_pictures(job)}</div><div class="words">'
        f"<p><strong>{job.state}</strong> {job.kind} {job.number}, {made}</p><p>{words}</p>"
        f"{progress(context, job)}{end}</div></li>"
    )


def _button(job: Job) -> str:
    return f'<button type="button" data-job="{job.id}" aria-label="Cancel job {job.number}">Cancel</button>'


def _pictures(job: Job) -> str:
    if not job.results:
        photo = job.request.get("person") or job.request.get("front")
        return f'<img src="{upload(photo)}" alt="">' if photo else ""
    return "".join(
        f'<a href="{result(job.id, number)}" download="{job.kind}-{job.number}-{number}.png">'
        f'<img src="{thumbnail(job.id, number)}" alt="Download picture {number + 1} of job {job.number}"></a>'
        for number in range(len(job.results))
    )
