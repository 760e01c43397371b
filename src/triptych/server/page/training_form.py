"""The settings of a training as fields: those that people change, with the config's own help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic import ValidationError

from triptych.errors import ConfigError, ModelError, TriptychError
from triptych.server.page import parts
from triptych.training.config import TrainConfig
from triptych.wording.settings import first_mistake

FIRST = {
    "model": "Base model",
    "max_train_steps": "Steps",
    "rank": "Rank",
    "learning_rate": "Learning rate",
    "batch_size": "Batch size",
    "context": "Context",
}
MORE = {
    "task": "Task",
    "gradient_accumulation_steps": "Passes per step",
    "noise_levels": "Noise levels",
    "caption_dropout": "Caption dropout",
    "optimizer": "Optimizer",
    "quantize": "Quantised base",
    "blocks_to_swap": "Blocks to swap",
    "checkpointing_steps": "Steps between checkpoints",
    "checkpoints_total_limit": "Checkpoints to keep",
    "validation_steps": "Steps between validations",
    "num_validation_triptychs": "Held-out triptychs",
    "num_validation_images": "Triptychs in pictures",
    "early_stopping_patience": "Stop early after",
    "seed": "Seed",
}
"""Labels of the settings by name."""
_CHOICES = {"task": ("try-on", "try-off", "outfit")}
_LIKE_MODEL = ("rank", "context", "caption_dropout", "task")
"""Settings whose default hangs on the model or the triptychs."""


def in_words_of_the_page(error: TriptychError) -> TriptychError:
    """An error about settings, for somebody who sees their fields: named by label, without command lines."""
    labels = {**FIRST, **MORE}
    if isinstance(error, ConfigError) and isinstance(error.__cause__, ValidationError):
        name, value, allowed = first_mistake(error.__cause__, TrainConfig)
        if name in labels:
            return ConfigError(f"{labels[name]}: give {allowed}.", f"Now it is {value}.")
    if isinstance(error, ModelError) and error.message.startswith("The shapes of "):
        return ModelError(
            "Nothing is known of this base model, and the page downloads none to look.",
            error.hint.replace("Give a folder with its configs", "Give its folder, in the work folder"),
        )
    if isinstance(error, ModelError) and error.message == "No model is given.":
        return ModelError("Base model: give one.", parts.help_of(TrainConfig, "model"))
    return TriptychError(_labelled(error.message, labels), _labelled(error.hint, labels))


def _labelled(text: str, labels: Mapping[str, str]) -> str:
    """A sentence that names fields by their labels, not by options; what is typed, in backticks, stays."""

    def label(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return f"“{labels[name]}”" if name in labels else found[0]

    said = text.split("`")
    said[::2] = [re.sub(r"--([a-z][a-z-]*[a-z])", label, piece) for piece in said[::2]]
    return "`".join(said)


class Fields:
    """The fields; made inside gradio's blocks."""

    def __init__(self, model: str) -> None:
        """model: the one that the page was started with."""
        self.fields: dict[str, Any] = {}
        with gr.Row():
            for name in FIRST:
                self.fields[name] = _field(name, FIRST[name], model)
        with gr.Accordion("More settings", open=False, elem_id="train-more"), gr.Row():
            for name in MORE:
                self.fields[name] = _field(name, MORE[name], model)

    def values(self, given: tuple[Any, ...]) -> dict[str, Any]:
        """The settings by name, as text; "" where a field is empty, which means the default."""
        return dict(zip(self.fields, given, strict=True))

    def filled(self, settings: Mapping[str, Any]) -> list[Any]:
        """What the fields show for these settings."""
        return ["" if settings.get(name) is None else str(settings[name]) for name in self.fields]


def _field(name: str, label: str, model: str) -> Any:
    """A field of text, because an empty number reaches the server as 0; the config reads it."""
    about = TrainConfig.model_fields[name]
    usual = "" if name in _LIKE_MODEL else str(about.default)
    common: dict[str, Any] = {
        "label": label,
        "info": parts.help_of(TrainConfig, name),
        "elem_id": f"train-{name.replace('_', '-')}",
        "min_width": 240,
        "interactive": True,
    }
    literal = get_args(about.annotation) if get_origin(about.annotation) is Literal else ()
    if choices := _CHOICES.get(name, literal):
        first = (f"default: {usual}" if usual else "default", "")
        return gr.Dropdown([first, *((one, one) for one in choices)], value="", **common)
    usual = usual or "default"
    return gr.Textbox(model if name == "model" else "", placeholder=usual, max_lines=1, **common)
