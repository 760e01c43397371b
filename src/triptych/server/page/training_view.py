"""How trainings look: their state, their losses, their pictures, as HTML. No gradio."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.server.page import parts
from triptych.server.page.curves import Line, chart, smoothed
from triptych.server.page.places import shown
from triptych.server.page.trainings import Status, Trainings
from triptych.wording.amounts import duration, number

MOST_PICTURES = 12
"""Steps whose pictures are shown: the first, and the last ones."""
CSS = """
.curve { width: 100%; height: auto; display: block; }
.curve-grid line { stroke: currentColor; opacity: 0.15; }
.curve-grid text { fill: currentColor; font-size: 12px; }
.curve-legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; margin: 0 0 1rem; font-size: 0.85rem; }
.curve-legend i { display: inline-block; width: 1.6rem; margin-right: 0.4rem; vertical-align: middle; }
.train-samples, .train-plan { width: 0; min-width: 100%; overflow-x: auto; }
.train-samples { display: flex; gap: 0.75rem; padding-bottom: 0.5rem; }
.train-samples figure { margin: 0; flex: 0 0 min(420px, 80vw); }
.train-samples img { width: 100%; border-radius: 6px; background: #fff; }
.train-samples figcaption { font-size: 0.85rem; }
.train-loras { font-size: 0.85rem; overflow-wrap: anywhere; }
.train-plan { font-size: 0.8rem; }
@media (max-width: 600px) { .curve-grid text { font-size: 20px; } }
"""
_EMPTY = """<div class="triptych-empty"><p>No training is here yet. It needs triptychs with captions, encoded
for the model that is trained:</p><pre>triptych embed --work {work} --model MODEL</pre><p>MODEL is the base
model at the left, such as black-forest-labs/FLUX.2-klein-base-4B. Then choose the settings and press
<strong>Start</strong>; leave fields empty for what is usual.</p><p class="triptych-help">{where}</p></div>"""
_STATES = {
    "new": "Nothing has been trained here yet.",
    "starting": "Starting: libraries and model are loaded.",
    "running": "Running.",
    "stopped": "Stopped. <strong>Go on</strong> continues where it ended.",
    "done": "Done.",
    "failed": "It ended with an error.",
}


def empty(work: Path) -> str:
    """What stands where no training is yet."""
    return _EMPTY.format(work=parts.work_named(work), where=parts.where(work))


def status_of(trainings: Trainings, name: str, status: Status) -> str:
    """The state of a training."""
    words = "Stopping when this step is done and saved." if status.stopping else _STATES[status.state]
    if status.saving:
        words += " The LoRA of this step is being saved."
    of = f" of {number(status.of)}" if status.of else ""
    parts_of = [f'<p role="status"><strong>{html.escape(name)}</strong>: {words}</p>']
    if status.step or status.goes:
        left = ""
        if status.seconds and status.of and status.state == "running":
            left = f", about {duration(status.seconds * max(0, status.of - status.step))} left"
        speed = f", {duration(status.seconds)} a step" if status.seconds else ""
        parts_of.append(f"<p>Step {number(status.step)}{of}{speed}{left}.</p>")
    if status.of:
        share = min(1.0, status.step / status.of)
        parts_of.append(
            f'<progress value="{share:.4f}" max="1" aria-label="Progress of {html.escape(name)}"></progress>'
        )
    if status.state == "failed":
        told = {"message": shown(status.error, trainings.work), "hint": shown(status.hint, trainings.work)}
        parts_of.append(f'<div class="triptych-message">{parts.sentence(told)}</div>')
    if loras := trainings.loras(name):
        listed = ", ".join(f"<code>{html.escape(one)}</code>" for one in loras)
        parts_of.append(
            '<p class="train-loras">LoRAs in the work folder, to be given with <code>--lora</code>: '
            f"{listed}</p>"
        )
    return "".join(parts_of)


def curves_of(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The losses of one training, or of two, the second dashed. logs: their rows by name."""
    if not any(logs.values()):
        return ""
    names = list(dict.fromkeys(key for rows in logs.values() for row in rows[-50:] for key in row))
    panels = [
        "loss",
        *(name for name in names if name.startswith("loss/") and not name.startswith("loss/t ")),
    ]
    levels = sorted(name for name in names if name.startswith("loss/t "))
    checks = sorted(name for name in names if name.startswith("validation/"))
    found, span = "", 1
    for title, chosen in (("Loss of each panel", panels), ("Loss by noise level", levels)):
        lines = []
        for place, (run, rows) in enumerate(logs.items()):
            for colour, name in enumerate(chosen):
                points, span = smoothed([(row["step"], row[name]) for row in rows if name in row])
                lines.append(Line(_called(name, run, len(logs)), points, colour, dashed=place > 0))
        found += chart(title, lines)
    if checks:
        lines = [
            Line(
                _called(name, run, len(logs)),
                [(row["step"], row[name]) for row in rows if name in row],
                colour,
                dashed=place > 0,
            )
            for place, (run, rows) in enumerate(logs.items())
            for colour, name in enumerate(checks)
        ]
        found += chart("On held-out triptychs", lines)
    told = f"Each point is the mean of the last {span} steps that have it." if span > 1 else ""
    return found + f'<p class="triptych-help">{told}</p>'


def _called(name: str, run: str, runs: int) -> str:
    short = name.removeprefix("loss/").removeprefix("validation/")
    short = {"loss": "all"}.get(short, short)
    return f"{run}: {short}" if runs > 1 else short


def pictures_of(trainings: Trainings, names: Sequence[str]) -> str:
    """The validation pictures of one training or two, step by step."""
    found = ""
    for name in names:
        steps = trainings.pictures(name)
        chosen = steps if len(steps) <= MOST_PICTURES else [steps[0], *steps[1 - MOST_PICTURES :]]
        figures = "".join(_figure(name, step) for step in chosen)
        if figures:
            shown_as = f"<h4>Pictures of {html.escape(name)}, always with the same seeds</h4>"
            found += (
                f'{shown_as}<div class="train-samples" tabindex="0" role="region" aria-label="Pictures of '
                f'{html.escape(name)}">{figures}</div>'
            )
    return found


def _figure(name: str, step: int) -> str:
    address = f"../files/training/{html.escape(name)}/{step}"
    return (
        f'<figure><a href="{address}?whole=1" target="_blank" rel="noopener"><img loading="lazy" '
        f'src="{address}" alt="True panels above, made ones below, at step {step}"></a>'
        f"<figcaption>step {number(step)}</figcaption></figure>"
    )
