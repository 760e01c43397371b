"""Find a model by name, and the settings that it recommends. Imports no torch: `concat` and `--help` need it
too.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from triptych.backbones.families import FAMILIES, FLUX, Family
from triptych.backbones.known import known_index
from triptych.backbones.model_folder import KLEIN, no_folder
from triptych.errors import ModelError
from triptych.pocket import POCKETS, checkpoint_path
from triptych.pocket.known_worlds import known_by
from triptych.wording.hub import hub_unreachable

log = logging.getLogger(__name__)

SETTINGS_FILE = "triptych.json"

ContextMode = Literal["noisy", "clean", "native"]
ContextPlacement = Literal["canvas", "reference"]
ContextReading = Literal["joint", "products", "each"]


@dataclass(frozen=True)
class ModelSettings:
    """The settings that a model works best with. A model folder may carry its own in `triptych.json`, with
    any subset of the keys.
    """

    panel_width: int = 576
    panel_height: int = 768
    stride: int = 16
    """Side of a token in pixels; panel sides are multiples of it. Read from the autoencoder's config where
    that is on disk.
    """
    max_sequence_length: int = 512
    """Number of text tokens that reach the transformer (of T5, or of Qwen3 with its chat template)."""
    guidance_scale: float | None = 3.5
    """Distilled guidance, fed to the model as a number; None for models without it."""
    true_cfg_scale: float = 1.0
    """Classifier-free guidance with an empty negative prompt; 1 is off."""
    context_guidance_scale: float = 1.0
    """Guidance on the known panels, for LoRAs trained with clean context; 1 is off."""
    context: ContextMode = "noisy"
    """How known panels are shown to the model without a LoRA, see `Sampling.context`."""
    context_placement: ContextPlacement = "canvas"
    """Where known panels stand without a LoRA, see `Sampling.context_placement`."""
    num_inference_steps: int = 28
    knows: str = ""
    """The only world that the model has seen pictures of, see `known_worlds.py`; empty: any."""


def no_model(trained_on: object = None) -> ModelError:
    """The error for an empty model name. `trained_on`: the base model that a LoRA file names; the hint
    repeats it if it looks like a hub id.
    """
    hint = (
        f"Give --model {KLEIN} (Apache-2.0) or black-forest-labs/FLUX.1-dev (gated, non-commercial), or put "
        "`model:` into the config; --model pocket only draws rendered clothes."
    )
    if trained_on in list(POCKETS) or (
        isinstance(trained_on, str) and re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", trained_on, re.A)
    ):
        hint = (
            f"The LoRA says that it was trained on {trained_on}: give that with --model, or put `model:` "
            "into the config."
        )
    return ModelError("No model is given.", hint)


def resolve_model(model: str) -> str:
    """The folder of the embedded checkpoint for `pocket` and `pocket-klein`; any other name unchanged (a
    folder, a hub id).

    Raises:
        ModelError: the name is empty, or looks like a path but is no diffusers folder.
    """
    if not model.strip():
        raise no_model()
    if model in POCKETS:
        return str(checkpoint_path(model))
    path = Path(model)
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        if not (path / "model_index.json").is_file():
            raise no_folder(path)
        return str(path)
    return model


def model_class(model: str) -> str:
    """The pipeline class of a model folder or hub id. Raises ModelError, see `model_index`."""
    return str(model_index(model)["_class_name"])


def model_index(model: str) -> dict[str, Any]:
    """The model_index.json of a model folder or hub id; it names the pipeline class (`_class_name`).

    Raises:
        ModelError: the model is not on this machine, and the hub cannot be reached or refuses; or the file
            is damaged.
    """
    path = Path(resolve_model(model)) / "model_index.json"
    try:
        if not path.is_file():
            path = _from_hub(model, "model_index.json")
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise hub_unreachable(model, error, "--model FOLDER") or ModelError(
            f"The model {model} cannot be opened: {(str(error) or repr(error)).splitlines()[0][:200]}.",
            "Check the name and the network; gated models need `hf auth login` and their licence accepted.",
        ) from error
    return _read_index(path, model)


@lru_cache(maxsize=256)
def _from_hub(model: str, file: str) -> Path:
    """The local path of a file of a hub model. Cached, except for failures. Raises any error of the hub
    client.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, file))


def family_of(model: str) -> Family:
    """The family of a model; if it cannot be looked up, that of the hub model the package knows by this name,
    else FLUX.1. Loading the model then raises the error.
    """
    try:
        pipeline = model_class(model)
    except ModelError:
        pipeline = str(known_index(model).get("_class_name"))
    return FAMILIES.get(pipeline, FLUX)


def _read_index(path: Path, model: str) -> dict[str, Any]:
    """A model_index.json. Raises ModelError if the file describes no pipeline."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = f"it is no JSON ({str(error).splitlines()[0][:100]})"
    except OSError as error:
        what = f"it cannot be read ({error.strerror})"
    else:
        name = about.get("_class_name") if isinstance(about, dict) else None
        if isinstance(name, str) and name:
            return dict(about)
        what = (
            "it names no pipeline class (_class_name)"
            if isinstance(about, dict)
            else "it is no object with keys"
        )
    raise ModelError(f"{path} is damaged: {what}.", f"Copy or download the model {model} again.")


def part_config(model: str, file: str) -> dict[str, Any]:
    """A config of a model, such as `transformer/config.json`; for a hub id it is downloaded. Empty if it is
    not available.
    """
    try:
        path = Path(resolve_model(model)) / file
        if not path.is_file():
            if path.parent.parent.is_dir():
                return {}
            path = _from_hub(model, file)
        about = json.loads(path.read_text(encoding="utf-8"))
    except Exception:  # the hub client raises a dozen unrelated types; loading the model reports the error
        return {}
    return about if isinstance(about, dict) else {}


_WORDS = {"context": get_args(ContextMode), "context_placement": get_args(ContextPlacement)}
"""The possible values of settings that are words."""


def _check_setting(name: str, value: Any) -> None:
    """Raise ValueError for a value that makes no sense. Anybody can write a model folder, so its settings are
    not trusted.
    """
    usual = getattr(ModelSettings(), name)
    if name in _WORDS:
        good = value in _WORDS[name]
    elif isinstance(usual, str):
        good = isinstance(value, str)
    elif isinstance(usual, int):
        good = type(value) is int and 1 <= value <= 8192
    else:
        good = (value is None and name == "guidance_scale") or (
            type(value) in (int, float) and 0 <= value <= 1000
        )
    if not good:
        raise ValueError(f"{name} is {str(value)[:40]!a}")


def recommended_settings(family: Family, index: Mapping[str, Any]) -> ModelSettings:
    """The settings for a model of a family that carries none of its own. index: its model_index.json."""
    return replace(ModelSettings(), **{**family.recommended, **family.of_this_model(index)})


def model_settings(model: str) -> ModelSettings:
    """The settings a model recommends; without a `triptych.json`, those of its family.

    If the family cannot be looked up (a hub id without a network), the settings are those of the hub model
    that the package knows by this name, else FLUX.1-dev's, with a warning: panels can be concatenated and
    captioned without the model. Loading the model then raises the error.

    Raises:
        ModelError: see `resolve_model`; or `triptych.json` cannot be read or has unknown keys.
    """
    folder = Path(resolve_model(model))
    file, autoencoder = folder / SETTINGS_FILE, folder / "vae" / "config.json"
    try:
        index = model_index(model)
    except ModelError as error:
        if (folder / "model_index.json").is_file():  # the folder is damaged; the network is not the cause
            raise
        index = known_index(model)
        usual = recommended_settings(FAMILIES.get(index.get("_class_name", ""), FLUX), index)
        log.warning(
            "%s %s panels of %d × %d px and captions of %d tokens are assumed; token counts are estimated "
            "from the number of words.",
            error.message,
            "Its" if index else "FLUX.1-dev's",
            usual.panel_width,
            usual.panel_height,
            usual.max_sequence_length,
        )
    family = FAMILIES.get(index.get("_class_name", ""), FLUX)
    settings = recommended_settings(family, index)
    try:
        if autoencoder.is_file():
            cell = family.latent_stride(json.loads(autoencoder.read_text(encoding="utf-8")))
            settings = replace(settings, stride=cell * family.latents_per_token)
        own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(own, dict):
            raise ValueError("it holds no names with values")
        unknown = set(own) - {field.name for field in fields(ModelSettings)}
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        for name, value in own.items():
            _check_setting(name, value)
        known_by(folder)
        return replace(settings, **own)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"The settings of {model} cannot be used: {error}.",
            f"Mend {file}, or delete it to use the defaults.",
        ) from error
