"""Reports wrong usage in one sentence: the option, the given value, the accepted values, or the probable
intention.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from pydantic import ValidationError

from triptych.config.files import Values
from triptych.verbs import STAGES, Stage
from triptych.wording.settings import allowed, first_mistake, option, shown

SPELLINGS: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "steps": ("max_train_steps", "num_inference_steps"),
    "num_steps": ("max_train_steps", "num_inference_steps"),
    "train_steps": ("max_train_steps",),
    "iterations": ("max_train_steps", "num_inference_steps"),
    "sampling_steps": ("num_inference_steps",),
    "cfg": ("true_cfg_scale",),
    "cfg_scale": ("true_cfg_scale",),
    "guidance": ("guidance_scale",),
    "scale": ("lora_scale", "guidance_scale"),
    "lora_strength": ("lora_scale",),
    "lora_weight": ("lora_scale",),
    "weight": ("lora_scale",),
    "denoise": ("strength",),
    "denoising_strength": ("strength",),
    "size": ("panel_width",),
    "width": ("panel_width",),
    "height": ("panel_height",),
    "resolution": ("panel_width",),
    "mask": ("mask", "polygon", "loss_masks"),
    "inpaint_mask": ("mask",),
    "image": ("person", "front", "photos", "image"),
    "photo": ("person", "front", "photos"),
    "images": ("photos",),
    "input": ("photos", "front", "lora"),
    "data": ("photos", "triptychs"),
    "dataset": ("photos", "triptychs"),
    "garment": ("front", "garment"),
    "cloth": ("front", "garment"),
    "human": ("person", "human"),
    "model_path": ("model",),
    "pretrained_model_name_or_path": ("model",),
    "checkpoint": ("model", "lora"),
    "base_model": ("model",),
    "vlm": ("vlm_model",),
    "captioner": ("vlm_model",),
    "llm": ("vlm_model",),
    "api_base": ("base_url",),
    "url": ("base_url",),
    "output": ("out", "lora_folder"),
    "output_dir": ("out", "lora_folder"),
    "o": ("out",),
    "folder": ("work",),
    "n": ("num_images_per_prompt", "items"),
    "num_images": ("num_images_per_prompt",),
    "count": ("num_images_per_prompt", "items"),
    "bs": ("batch_size",),
    "batch": ("batch_size",),
    "p": ("prompt",),
    "text": ("prompt", "caption"),
    "m": ("model",),
    "s": ("seed",),
    "r": ("rank",),
    "network_dim": ("rank",),
    "network_alpha": ("alpha",),
    "lora_rank": ("rank",),
    "lora_alpha": ("alpha",),
    "precision": ("dtype",),
    "mixed_precision": ("dtype",),
    "fp16": ("dtype",),
    "quantization": ("quantize",),
    "gpu": ("device", "card"),
    "cpu": ("device", "card"),
    "resume": (),
}
"""Option names of other programs, and ours. The first one that the verb has is suggested."""
ENDINGS = {
    ".safetensors": ("lora",),
    ".yaml": ("config",),
    ".yml": ("config",),
    ".json": ("polygon",),
    ".csv": ("batch",),
}
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def leave_server_out(typed: dict[str, Any], values: Values) -> str:
    """If the command line names a captioner on this machine, the config's base_url does not apply: clear it
    in `typed`. Returns the message about it.
    """
    captioner = str(typed.get("vlm_model") or "")
    if (
        not values.get("base_url")
        or "base_url" in typed
        or not (captioner == "pocket" or captioner.startswith("local:"))
    ):
        return ""
    typed["base_url"] = None
    place = values.places.get("base_url")
    return (
        f"base_url of the config{f' ({place})' if place else ''} is left out: --vlm-model {captioner} "
        "runs on this machine."
    )


def _home_in_config(name: str) -> str:
    """The config section in which `run` finds a setting that only its stages have; empty for unknown
    settings.
    """
    homes = [stage.name for stage in STAGES if stage.in_run and name in stage.config_class().model_fields]
    return f"Put `{name}:` under `{homes[0]}:` in the config." if homes else ""


def mistake(error: CycloptsError, stage: Stage | None) -> tuple[str, str]:
    """(the problem, a hint) for a command line."""
    see = f"See `triptych {' '.join(stage.words)} --help`." if stage else "`triptych --help` lists the verbs."
    options = [*stage.config_class().model_fields, "config", "json", "verbose", "help"] if stage else []
    cause = error.__cause__
    if stage and isinstance(cause, ValidationError):
        name, value, takes = first_mistake(cause, stage.config_class())
        return f"{option(name)} is {value}; it takes {takes}.", see
    if isinstance(error, UnknownOptionError) and stage:
        given = (error.token.keyword or error.token.value or "").split("=")[0]
        meant = _meant(given.lstrip("-").replace("-", "_").lower(), options)
        hint = "It goes on by itself: run the same command again." if given.lstrip("-") == "resume" else see
        name = given.lstrip("-").replace("-", "_").lower()
        if stage.name == "run" and name not in options and (home := _home_in_config(name)):
            return f"`triptych run` has no option {given}.", home
        return (
            f"`triptych {' '.join(stage.words)}` has no option {given}.",
            f"Did you mean {option(meant)}?" if meant else hint,
        )
    if isinstance(error, UnusedCliTokensError) and stage and error.unused_tokens:
        word = error.unused_tokens[0]
        ending = Path(word).suffix.lower()
        fitting = [
            name
            for name in (
                *ENDINGS.get(ending, ()),
                *(("front", "photos", "image") if ending in PICTURES else ()),
            )
            if name in options
        ]
        return (
            f"'{word}' stands there without an option before it.",
            f"Did you mean {option(fitting[0])} {word}?" if fitting else see,
        )
    if isinstance(error, MissingArgumentError | RepeatArgumentError | CoercionError) and error.argument:
        return _of_argument(error, stage), see
    if isinstance(error, RepeatArgumentError) and error.token is not None:
        return f"{error.token.keyword} is given more than once.", "Keep one of them."
    return f"{str(error).splitlines()[0]}", see


def _of_argument(error: CycloptsError, stage: Stage | None) -> str:
    assert error.argument is not None
    name = error.argument.name
    field = (
        stage.config_class().model_fields.get(name.removeprefix("--").replace("-", "_")) if stage else None
    )
    takes = f"it takes {allowed(field)}" if field else ""
    if isinstance(error, RepeatArgumentError):
        return f"{name} is given more than once."
    if isinstance(error, CoercionError) and error.token is not None:
        return f"{name} is {shown(error.token.value)}{f'; {takes}' if takes else ', which it does not take'}."
    if error.argument.name == "--config":
        return "--config names no file."
    return f"{name} needs a value{f'; {takes}' if takes else ''}."


def _meant(given: str, options: Iterable[str]) -> str | None:
    options = list(options)
    for name in SPELLINGS.get(given.removeprefix("no_"), ()):
        if name in options:
            return name
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.7)
    if near:
        return near[0]
    inside = [name for name in options if len(given) > 3 and given in name.split("_")]
    return inside[0] if len(inside) == 1 else None


def unknown_verb(given: str) -> tuple[str, str]:
    verbs = [" ".join(each.words) for each in STAGES]
    common = {
        "infer": "generate",
        "inference": "generate",
        "sample": "generate",
        "try-on": "tryon",
        "try_on": "tryon",
        "fit": "train",
    }
    near = [common[given]] if given in common else difflib.get_close_matches(given, verbs, n=1, cutoff=0.6)
    hint = f"Did you mean `triptych {near[0]}`?" if near else f"Verbs: {', '.join(verbs)}."
    return f"There is no verb '{given}'.", hint


__all__ = ["mistake", "unknown_verb"]
