"""The tab where somebody is dressed: photos, region, prompt, seeds; then the picture beside the photo."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from triptych.errors import InputError
from triptych.pictures.images import load_image
from triptych.server.api import queue
from triptych.server.page import form, parts, prompts, watch
from triptych.server.page.context import Context
from triptych.server.page.fields import Settings
from triptych.server.page.files import PREVIEW
from triptych.server.page.widgets import photo, polygon_canvas
from triptych.vton.config import TryonConfig
from triptych.vton.proposal import asked_for, proposed
from triptych.vton.region import KINDS, kind_in

_SEE = """() => {
  const below = matchMedia("(max-width: 900px)").matches;
  const wrong = document.querySelector("#tryon-problem [role=alert]");
  if (below && !wrong) document.querySelector("#tryon-status").scrollIntoView({ block: "center" });
}"""
"""On a phone the result stands below: it is brought into view once a job is queued."""
Data = dict[Any, Any]
"""What gradio gives a function whose inputs are a set: values by component."""


def build(context: Context) -> None:
    """Build the tab, see `page.py`."""
    _TryOn(context).build()


class _TryOn:
    """The components of the tab, and what happens behind them. It holds nothing of any one visitor."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def build(self) -> None:
        with gr.Row(elem_classes="triptych-columns"):
            with gr.Column(scale=6, min_width=300):
                self._photos()
                self._region()
                self._prompt()
                self.settings = Settings(self.context)
                self.go = gr.Button("Dress", variant="primary", size="lg", elem_id="tryon-go")
                self.problem = parts.message("tryon-problem")
            with gr.Column(scale=5, min_width=300):
                self.result = watch.Result(self.context)
                self._again()
        self._events_of_fields()
        self._events_of_pictures()

    # --- what is seen

    def _photos(self) -> None:
        gr.Markdown("## Photos")
        self.photos: dict[str, gr.Image] = {}
        with gr.Row(elem_classes="triptych-photos"):
            for name in form.PHOTOS:
                with gr.Column(min_width=140):
                    self.photos[name] = photo(name.capitalize(), f"tryon-{name}")
                    gr.HTML(parts.help_line(TryonConfig, name))
        self.examples = gr.Button(
            "Fill in rendered photos to try it",
            size="sm",
            visible=self.context.knows == "rendered",
            elem_id="tryon-examples",
        )

    def _region(self) -> None:
        gr.Markdown("## Region")
        kinds = [("What the prompt names", form.AUTO), *((kind, kind) for kind in KINDS)]
        if self.context.mask_free:
            kinds.append(("No region: find what changes (mask_free)", form.FREE))
        with gr.Row(elem_classes="triptych-line"):
            self.kind = gr.Dropdown(
                kinds,
                value=form.AUTO,
                label="What is put on",
                info="A human parser proposes the region that such a garment needs. Correct the outlines, or "
                "draw your own; without any the region is proposed when the picture is made.",
                elem_id="tryon-kind",
                scale=3,
            )
            self.propose = gr.Button(
                "Propose the region", scale=1, min_width=170, size="md", elem_id="tryon-propose"
            )
        self.canvas = polygon_canvas("tryon-canvas")
        self.region_problem = parts.message()
        with gr.Accordion("Rough edit: paint on the photo", open=False, elem_id="tryon-edit"):
            gr.HTML(
                '<p class="triptych-help">Sampling starts from the photo. Where you paint a colour or a '
                "coarse shape inside the region, the cloth follows it, all the more at a low strength.</p>"
            )
            self.editor = gr.ImageEditor(
                label="Painted on the photo of the person",
                type="numpy",
                format="png",
                sources=[],
                transforms=[],
                layers=False,
                brush=gr.Brush(
                    default_size=12, colors=["#1f2937", "#ffffff", "#b91c1c", "#1d4ed8", "#15803d"]
                ),
                eraser=gr.Eraser(default_size=18),
                buttons=[],
                height=420,
                elem_id="tryon-editor",
            )

    def _prompt(self) -> None:
        gr.Markdown("## Prompt")
        sources = prompts.sources(self.context)
        with gr.Row(elem_classes="triptych-line"):
            self.source = gr.Dropdown(
                sources,
                value=sources[0][1],
                label="Take it from",
                info="A template, a captioner (--vlm-model), or a caption of the work folder.",
                elem_id="tryon-source",
                scale=3,
            )
            self.write = gr.Button("Write it", scale=1, min_width=170, size="md", elem_id="tryon-write")
        self.prompt = gr.Textbox(
            prompts.template(self.context, ""),
            label="Prompt",
            info=prompts.about(self.context),
            lines=3,
            elem_id="tryon-prompt",
        )
        self.remarks = gr.HTML(elem_id="tryon-remarks")

    def _again(self) -> None:
        with gr.Accordion("Again with the settings of a picture", open=False, elem_id="tryon-again"):
            gr.HTML(
                '<p class="triptych-help">Drop a picture that was made here or on the command line: its '
                "settings are filled in, and its photos too if they are still on this server.</p>"
            )
            self.made = photo("A picture of a try-on", "tryon-made")
            self.taken = gr.HTML(elem_id="tryon-taken")
            self.taken_problem = parts.message()
            self.more = gr.State({})

    # --- what happens

    def _events_of_fields(self) -> None:
        photos = self.photos
        photos["person"].change(
            parts.told(2)(self.show_person),
            [photos["person"], self.canvas, self.kind, self.prompt],
            [self.canvas, self.editor, self.region_problem],
            **parts.QUIET,
        ).then(
            parts.told(1)(self.first_region),
            [self.canvas, self.kind, self.prompt],
            [self.canvas, self.region_problem],
            **parts.QUIET,
        )
        self.examples.click(
            parts.told(5)(self.fill_examples),
            None,
            [*photos.values(), self.kind, self.prompt, self.problem],
            **parts.QUIET,
        )
        self.propose.click(
            parts.told(1)(self.propose_region),
            [self.canvas, self.kind, self.prompt],
            [self.canvas, self.region_problem],
            **parts.PRIVATE,
        )
        self.kind.input(
            parts.told(2)(self.another_kind),
            [self.canvas, self.kind, self.prompt],
            [self.canvas, self.prompt, self.region_problem],
            **parts.PRIVATE,
        )
        self.write.click(
            parts.told(1)(self.write_prompt),
            [self.source, self.kind, *photos.values()],
            [self.prompt, self.problem],
            **parts.PRIVATE,
        )
        self.prompt.change(
            self.lint, [self.prompt], [self.remarks], trigger_mode="always_last", **parts.QUIET
        )

    def _events_of_pictures(self) -> None:
        photos, fields = self.photos, self.settings.fields
        inputs = {
            *photos.values(),
            self.canvas,
            self.kind,
            self.prompt,
            self.editor,
            self.more,
            *fields.values(),
        }
        self.go.click(
            parts.told(1)(self.dress), inputs, [self.result.job, self.problem], **parts.PRIVATE
        ).then(
            self.result.look, [self.result.job, self.result.told], self.result.outputs, **parts.QUIET
        ).then(None, js=_SEE, **parts.QUIET)
        self.made.change(
            parts.told(7 + len(fields))(self.take),
            [self.made],
            [
                *photos.values(),
                self.canvas,
                self.kind,
                self.prompt,
                self.taken,
                *fields.values(),
                self.taken_problem,
            ],
            **parts.QUIET,
        ).then(self.keep_more, [self.made], [self.more], **parts.QUIET)

    def show_person(self, path: str | None, canvas: Data | None, kind: str, prompt: str) -> Any:
        """Put a new photo of the person onto the canvas and into the editor."""
        id = form.uploaded(self.context, path)
        if id is None:
            return None, None
        if canvas and canvas["upload"] == id:  # set together with the photo
            return gr.skip(), gr.skip()
        image = load_image(self.context.uploads.path(id, "person"), longest=PREVIEW)
        return form.canvas_of(self.context, id), image

    @parts.one_at_a_time
    def propose_region(self, canvas: Data | None, kind: str, prompt: str) -> Any:
        """The canvas with the region that a parser proposes."""
        if not canvas:
            raise InputError("There is no photo of the person yet.", "Drop one at “Person”.")
        if kind == form.FREE:
            return {**canvas, "polygons": [], "holes": []}
        asked = asked_for(form.AUTO if kind == form.AUTO else f"{form.AUTO}:{kind}", prompt)
        image = load_image(self.context.uploads.path(str(canvas["upload"]), "person"))
        drawn = proposed(image, asked, self.context.config.parser)
        return {**canvas, "polygons": drawn.polygons, "holes": drawn.holes}

    def first_region(self, canvas: Data | None, kind: str, prompt: str) -> Any:
        """The region for a new photo, if it is known what is put on."""
        known = kind in KINDS or (kind == form.AUTO and kind_in(prompt))
        if not canvas or not known or canvas.get("polygons"):
            return gr.skip()
        return self.propose_region(canvas, kind, prompt)

    def another_kind(self, canvas: Data | None, kind: str, prompt: str) -> Any:
        """The region and, if nobody has changed it, the prompt for another kind of garment."""
        if prompts.is_template(self.context, prompt):
            prompt = prompts.template(self.context, kind)
        return self.propose_region(
            canvas, kind, prompt
        ) if canvas and kind != form.AUTO else gr.skip(), prompt

    @parts.one_at_a_time
    def write_prompt(self, source: str, kind: str, *paths: str | None) -> str:
        photos = {
            name: form.uploaded(self.context, path) for name, path in zip(form.PHOTOS, paths, strict=True)
        }
        return prompts.taken_from(self.context, source, kind, {name: id for name, id in photos.items() if id})

    def lint(self, prompt: str) -> str:
        found = prompts.problems(self.context, prompt)
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in found)
        return f'<div class="triptych-remarks">The prompt:<ul>{items}</ul></div>' if found else ""

    def fill_examples(self) -> Any:
        """A garment and a person of the rendered world, with the kind and the prompt that belong to them."""
        from triptych.evaluation.rendered import held_out_items  # not at the top: it imports torch

        item = held_out_items(1, seed=1)[0]
        views = (item.front, item.back, item.view(2, item.other()).image)
        kind = item.garment.type if item.garment.type in KINDS else form.AUTO
        return (*views, kind, prompts.template(self.context, kind))

    def dress(self, data: Data) -> str:
        """Queue the job; its id."""
        photos = {name: form.uploaded(self.context, data[field]) for name, field in self.photos.items()}
        canvas, editor = data[self.canvas], data[self.editor] or {}
        settings = {**data[self.more], "prompt": data[self.prompt], **self.settings.values(data)}
        request = form.tryon_request(photos, canvas, data[self.kind], settings)
        if canvas and canvas["upload"] == request["person"]:
            request["person"] = form.painted(self.context, request["person"], editor.get("layers") or [])
        return queue(self.context.server, "tryon", request)[0].id

    def take(self, path: str | None) -> Any:
        """Fill in what a picture says about its making."""
        if not path:
            return [gr.skip()] * 6 + [""] + [gr.skip()] * len(self.settings.fields)
        found = form.again(self.context, path)
        photos = [
            form.photo_of(self.context, found.photos[name]) if name in found.photos else gr.skip()
            for name in form.PHOTOS
        ]
        person = found.photos.get("person")
        canvas = form.canvas_of(self.context, person, found.region) if person else gr.skip()
        kind = form.FREE if found.settings.get("mask_free") else form.AUTO
        return (
            *photos,
            canvas,
            kind,
            found.settings["prompt"],
            _account(found, self.settings.others(found.settings)),
            *self.settings.filled(found.settings),
        )

    def keep_more(self, path: str | None) -> dict[str, Any]:
        """Settings of the picture that have no field here."""
        try:
            return self.settings.others(form.again(self.context, path).settings) if path else {}
        except InputError:
            return {}


def _account(found: form.Again, more: dict[str, Any]) -> str:
    """What was taken from a picture, in words."""
    words = ["The settings are filled in."]
    if found.missing:
        words.append(
            f"These photos are no longer on this server, drop them again: {', '.join(found.missing)}."
        )
    if found.region is None and not found.settings.get("mask_free"):
        words.append("Its region is not on this server: let it be proposed, or draw it.")
    listed = ", ".join(f"{name} {value}" for name, value in more.items())
    if listed:
        words.append(f"Taken over as well: {listed}.")
    return "".join(f"<p>{html.escape(word)}</p>" for word in [*words, *found.notes])
