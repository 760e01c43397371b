"""Check that a LoRA fits a model, by the file's header and the model's config, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from triptych.backbones.checkpoint import shapes_of
from triptych.backbones.registry import BACKBONES
from triptych.backbones.settings import model_class, part_config, resolve_model
from triptych.errors import ModelError
from triptych.lora.adapter import TITLES, LoraHeader, read_header
from triptych.lora.families import refuse_undecided
from triptych.lora.models import hidden_size, known_base, takes_loras_of
from triptych.lora.names import SIDES, pattern_of


def check_lora_fits(model: str, lora: Path) -> str:
    """Check a LoRA against a model. Returns a warning if it was trained on another model of the same sizes,
    else "".

    A model that cannot be looked up (a hub id without a network) is not checked here; loading it raises the
    error.

    Raises:
        ModelError: the LoRA cannot be read (see `read_header`), or does not fit the model.
    """
    header = read_header(lora)
    header.refuse_other_models()
    try:
        pipeline = model_class(model)
    except ModelError:
        return ""
    if pipeline not in BACKBONES:
        return ""
    family, ours = BACKBONES[pipeline].name, known_base(model) or _plain(Path(model).name)
    said = str(header.about.get("base_model", ""))
    trained = known_base(said) or _plain(said)
    if header.model.certain and header.family != family:
        raise _other(
            header, trained or header.model.title, f"{ours}, a {TITLES.get(family, family)} model", said
        )
    shapes = _shapes(pipeline, resolve_model(model))
    if header.model.either and family == "flux2" and shapes:
        try:
            refuse_undecided(header.diffusers_layers, shapes)
        except ModelError as error:
            raise ModelError(f"The LoRA {header.path} {error.message}.", error.hint) from error
    misfit = _misfit(header, shapes)
    if misfit:
        raise _other(header, trained if trained and trained != ours else "another model", ours, said, misfit)
    if known_base(said) and known_base(model) and not takes_loras_of(ours, trained):
        return (
            f"The LoRA was trained on {trained}, and this is {ours}: its layers fit, but it may do less "
            "or something else here."
        )
    return ""


def _other(header: LoraHeader, trained: str, ours: str, said: str, why: str = "") -> ModelError:
    again = re.fullmatch(r"pocket|[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", said, re.A)
    hint = (
        f"Give --model {said}, or a LoRA for this model."
        if again
        else "Use it with the model it was trained on."
    )
    return ModelError(f"The LoRA {header.path} was trained on {trained}, and this is {ours}{why}.", hint)


def _plain(name: str) -> str:
    """A name from a file, cut short and made safe for a message."""
    return re.sub(r"[^\w./ -]", "", name)[:80]


def _misfit(header: LoraHeader, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describe the first size that differs between LoRA and model; empty if none differs or the model's sizes
    are unknown (`shapes` is empty).
    """
    if not shapes:
        return ""
    for layer in header.layers:
        theirs = [shapes.get(f"{part}.weight") for part in layer.parts]
        if any(shape is None for shape in theirs):
            return (
                ", which has no layer "
                f"'{next(p for p, shape in zip(layer.parts, theirs, strict=True) if shape is None)}'"
            )
        size = (sum(shape[0] for shape in theirs if shape), theirs[0][1] if theirs[0] else 0)
        if size != (layer.up.shape[0], layer.down.shape[1]):
            width, other = hidden_size(header.layers), _width(shapes)
            if width and other and width != other:
                return f": the LoRA's layers are {width} wide, the model's {other}"
            return (
                f": '{layer.parts[0]}' is {size[0]}×{size[1]} there, and "
                f"{layer.up.shape[0]}×{layer.down.shape[1]} in the LoRA"
            )
    return ""


def _width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The model's width, from the first layer inside a block that is in the tables."""
    for name, shape in shapes.items():
        sides = SIDES.get(pattern_of(name.removesuffix(".weight"))[0])
        if sides and len(shape) == 2:
            return shape[1] // sides[1]
    return None


@lru_cache(maxsize=4)
def _shapes(pipeline: str, model: str) -> dict[str, tuple[int, ...]]:
    config = part_config(model, "transformer/config.json")
    try:
        return shapes_of(BACKBONES[pipeline].transformer_class, config) if config else {}
    except (
        TypeError,
        ValueError,
        KeyError,
        RuntimeError,
    ):  # a config that describes no model raises its error when the model is loaded
        return {}
