"""The prompt of a try-on: a template, the captions of the work folder, or what a captioner says; and what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from triptych.captioning.write import prompt_problems
from triptych.data.captions import Caption, read_caption
from triptych.data.triptychs import caption_file, list_pictures
from triptych.errors import InputError, TriptychError
from triptych.server.page.context import Context
from triptych.server.requests import config_of
from triptych.vton.config import TryonConfig
from triptych.vton.garments import dressed
from triptych.vton.prompt import PromptWriter
from triptych.vton.region import KINDS

TEMPLATE, CAPTIONER, ITEM = "template", "captioner", "item:"
MOST_ITEMS = 500
"""Most captions of the work folder that are offered."""
_NAMES = {"upper": "top", "lower": "bottom", "whole": "outfit"}
_PANELS = {
    "front": "The front of the {}, on a plain background.",
    "back": "The back of the {}, on a plain background.",
    "worn": "Somebody wearing the {}, seen from the front.",
}


def template(context: Context, kind: str) -> str:
    """A prompt for a garment of a kind of `KINDS`, or of any: what the model has to be told at least."""
    name = _NAMES.get(kind, kind if kind in KINDS else "garment")
    if not context.session.describes_panels:
        return f"the person of picture 3 wearing the {name} of picture 1"
    roles = context.session.layout().roles
    panels = [_PANELS.get(role, f"The {role}, with the {{}}.").format(name) for role in roles]
    return Caption(f"Pictures of one {name}.", tuple(panels)).render()


def about(context: Context) -> str:
    """What a prompt for this model says, as help."""
    if not context.session.describes_panels:
        return (
            "Say what the model has to do, such as: the person of picture 3 wearing the dress of picture 1."
        )
    panels = len(context.session.layout().roles)
    listed = ", ".join(f"<IMAGE {number}> …" for number in range(1, panels + 1))
    return f"Describe all {panels} pictures: a summary, then {listed}."


def is_template(context: Context, prompt: str) -> bool:
    """Whether nobody has changed a prompt yet."""
    return not prompt.strip() or prompt in {template(context, kind) for kind in ("", *KINDS)}


def sources(context: Context) -> list[tuple[str, str]]:
    """What a prompt can be taken from: (words, value)."""
    captioner = Path(context.config.vlm_model or "").name  # of a folder no more than its name
    found = [("A template for this model", TEMPLATE)]
    found += [(f"Written by {captioner}, who looks at the photos", CAPTIONER)] if captioner else []
    pictures = list_pictures(context.config.triptych_folder).taken[:MOST_ITEMS]
    captions = [(picture.stem, caption_file(picture)) for picture in pictures]
    return found + [(f"The caption of {id}", f"{ITEM}{id}") for id, file in captions if file.is_file()]


def taken_from(context: Context, source: str, kind: str, photos: Mapping[str, str]) -> str:
    """A prompt from one of `sources`. photos: ids of uploads: front, back, person.

    Raises:
        InputError: the caption is gone, or the captioner lacks a photo. ModelError, AnswerError: see
            `PromptWriter.fill`.
    """
    if source == CAPTIONER:
        return _asked(context, photos)
    if source.startswith(ITEM):
        id = source.removeprefix(ITEM)
        for picture in list_pictures(context.config.triptych_folder).taken:
            if picture.stem == id:
                return read_caption(caption_file(picture))
    return template(context, kind)


def _asked(context: Context, photos: Mapping[str, str]) -> str:
    if not photos.get("person") or not photos.get("front"):
        raise InputError("The captioner looks at the photos.", "Drop the front and the person first.")
    own = {
        name: getattr(context.config, name)
        for name in TryonConfig.model_fields
        if hasattr(context.config, name)
    }
    folder = context.results.parent / "prompts"
    config = cast(TryonConfig, config_of("tryon", photos, own, context.uploads, folder))
    layout, _ = dressed(context.session.layout(photos=config.garments()), config.garments())
    writer = PromptWriter(config, folder)
    try:
        return writer.fill(config, layout, context.session.settings.max_sequence_length).prompt
    except TriptychError as error:  # without paths of this machine
        words = [text.replace(str(context.uploads.folder), "") for text in (error.message, error.hint)]
        raise InputError(*words) from error
    finally:
        writer.close()


def problems(context: Context, prompt: str) -> list[str]:
    """What the linter finds, as short phrases."""
    if not prompt.strip():
        return ["it is empty"] if not context.config.vlm_model else []
    panels = len(context.session.layout().roles) if context.session.describes_panels else 0
    return prompt_problems(context.config.model, prompt, panels)
