"""The settings of a try-on as fields: which, in which order, with the config's own help and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from triptych.server.page import parts
from triptych.server.requests import MODELS, MOST_PICTURES
from triptych.vton.config import TryonConfig

FIRST = {"seed": "Seed", "num_images_per_prompt": "Pictures"}
MORE = {
    "num_inference_steps": "Steps",
    "strength": "Strength",
    "guidance_scale": "Guidance",
    "refine": "Second pass",
    "rough": "Rough start",
    "grow": "Widen the region",
    "expand": "Convex hull",
    "feather": "Soft edge",
    "crop": "What the model sees",
}
"""Labels of the settings that people change, by name."""
_FREE = ("prompt", "mask_free", *FIRST, *MORE)


class Settings:
    """The fields; made inside gradio's blocks."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        with gr.Row():
            self._add("seed", gr.Textbox(**self._common("seed", FIRST), value="0", max_lines=1))
            about = self._common("num_images_per_prompt", FIRST)
            self._add("num_images_per_prompt", gr.Slider(1, MOST_PICTURES, 1, step=1, **about))
        with gr.Accordion("Settings", open=False, elem_id="tryon-settings"):
            for name in MORE:
                self._add(name, _field(name, self._common(name, MORE)))

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
        return [str(value) if name == "seed" else value for name, value in found.items()]

    def others(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that a request may name, but no field shows."""
        known = MODELS["tryon"].model_fields
        return {name: value for name, value in settings.items() if name in known and name not in _FREE}


def _field(name: str, common: dict[str, Any]) -> Any:
    about = TryonConfig.model_fields[name]
    kinds = [kind for kind in (about.annotation, *get_args(about.annotation)) if kind is not type(None)]
    if get_origin(about.annotation) is Literal:
        return gr.Dropdown(list(get_args(about.annotation)), value=about.default, **common)
    limits: dict[str, Any] = {}
    for one in about.metadata:
        limits |= {"minimum": one.ge} if getattr(one, "ge", None) is not None else {}
        limits |= {"maximum": one.le} if getattr(one, "le", None) is not None else {}
    whole = int in kinds
    step = 1 if whole else 0.05
    return gr.Number(about.default, precision=0 if whole else None, step=step, **limits, **common)
