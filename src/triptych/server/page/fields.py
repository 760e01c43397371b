"""The settings of a try-on as fields: which, in which order, with the config's own help and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from triptych.server.page import parts
from triptych.server.page.context import Context
from triptych.server.requests import MODELS, MOST_PICTURES
from triptych.vton.config import TryonConfig

FIRST = {"seed": "Seed", "num_images_per_prompt": "Pictures"}
MORE = {
    "num_inference_steps": "Steps",
    "strength": "Strength",
    "guidance_scale": "Guidance",
    "true_cfg_scale": "Guidance",
    "context_guidance_scale": "Guidance",
    "refine": "Second pass",
    "rough": "Rough start",
    "grow": "Widen the region",
    "expand": "Convex hull",
    "feather": "Soft edge",
    "crop": "What the model sees",
}
"""Labels of the settings that people change, by name. Of the three guidances the model has one."""


class Settings:
    """The fields; made inside gradio's blocks."""

    def __init__(self, context: Context) -> None:
        self.usual = context.session.sampling()
        self.fields: dict[str, Any] = {}
        with gr.Row():
            self._add("seed", gr.Textbox(**self._common("seed", FIRST), value="0", max_lines=1))
            about = self._common("num_images_per_prompt", FIRST)
            self._add("num_images_per_prompt", gr.Slider(1, MOST_PICTURES, 1, step=1, **about))
        with gr.Accordion("Settings", open=False, elem_id="tryon-settings"):
            for name in MORE:
                if MORE[name] != "Guidance" or name == self._guidance:
                    self._add(name, self._field(name))

    @property
    def _guidance(self) -> str:
        """The guidance that has an effect with this model."""
        if self.usual.context == "clean":
            return "context_guidance_scale"
        return "true_cfg_scale" if self.usual.guidance_scale is None else "guidance_scale"

    def _common(self, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
        return {
            "label": labels[name],
            "info": parts.help_of(TryonConfig, name),
            "elem_id": f"tryon-{name.replace('_', '-')}",
            "interactive": True,
        }

    def _add(self, name: str, component: Any) -> None:
        self.fields[name] = component

    def values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """The settings by name; None where a field is empty, which means the default."""
        found = {name: data[field] for name, field in self.fields.items()}
        return {name: value.strip() if isinstance(value, str) else value for name, value in found.items()}

    def filled(self, settings: Mapping[str, Any]) -> list[Any]:
        """The values of all fields for the settings in a picture; the defaults for those that it lacks."""
        defaults = {name: TryonConfig.model_fields[name].default for name in self.fields}
        found = {name: settings.get(name, default) for name, default in defaults.items()}
        texts = {"seed", *(name for name, default in defaults.items() if default is None)}
        return [
            ("" if value is None else str(value)) if name in texts else value for name, value in found.items()
        ]

    def others(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that a request may name, but no field shows."""
        known, shown = MODELS["tryon"].model_fields, {"prompt", "mask_free", *self.fields}
        return {name: value for name, value in settings.items() if name in known and name not in shown}

    def _field(self, name: str) -> Any:
        about, common = TryonConfig.model_fields[name], self._common(name, MORE)
        if get_origin(about.annotation) is Literal:
            return gr.Dropdown(list(get_args(about.annotation)), value=about.default, **common)
        if about.default is None:  # empty means the model's own; a field for numbers cannot be empty
            usual = f"{getattr(self.usual, name):g}, as the model recommends"
            return gr.Textbox("", placeholder=usual, max_lines=1, **common)
        limits: dict[str, Any] = {}
        for one in about.metadata:
            limits |= {"minimum": one.ge} if getattr(one, "ge", None) is not None else {}
            limits |= {"maximum": one.le} if getattr(one, "le", None) is not None else {}
        whole = about.annotation is int
        return gr.Number(
            about.default, precision=0 if whole else None, step=1 if whole else 0.05, **limits, **common
        )
