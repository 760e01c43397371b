"""tryon: dresses a given person in a given garment. Only the inside of the polygon is regenerated; the photo
keeps its size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from triptych.events import Event, Run
from triptych.execution import PerWorker
from triptych.vton.batch import run_batch
from triptych.vton.files import (
    THUMB,
    Inputs,
    TryonConfig,
    check,
    read,
    sample,
    with_prompt,
    write,
    write_sheet,
)
from triptych.vton.preview import preview_of, write_preview
from triptych.vton.prompt import PromptWriter

if TYPE_CHECKING:  # it imports torch
    from triptych.sampling.opened import OpenedModel

log = logging.getLogger(__name__)


def tryon(config: TryonConfig) -> Run:
    """Write the re-dressed photo and, beside it, the model's triptych. A preview of the mask comes first,
    before a model is loaded.

    Several seeds also get a contact sheet. With `batch`, see `run_batch`.

    Raises:
        InputError: a missing or unusable photo or polygon. ModelError: no model, or model or LoRA cannot be
            loaded.
    """
    config = config if config.batch else check(config)
    config.check_model()
    model = PerWorker(_session, config)
    if config.batch:
        return run_batch(config, model)
    return _tryon(model(), config)


def prepared(session: OpenedModel, config: TryonConfig) -> Inputs:
    """The inputs of one try-on, with the prompt that a captioner writes if there is none; the picture of its
    mask is written. Needs no weights.

    Args:
        config: as `check` returns it.

    Raises:
        InputError: a missing or unusable photo or polygon. ModelError: the captioner fails.
    """
    inputs = read(config, session)  # before a captioner is asked, which may cost money
    write_preview(config, preview_of(inputs))
    if config.prompt.strip():
        return inputs
    config = PromptWriter(config, config.picture.parent).fill(
        config, inputs.layout, session.settings.max_sequence_length
    )
    return with_prompt(inputs, config.prompt)


def _tryon(session: OpenedModel, config: TryonConfig) -> Run:
    """The try-on of one person, with one seed or several."""
    inputs = prepared(session, config)
    config = inputs.config
    if not _reads_again(config, inputs):
        session.contexts.limit_bytes = 0
    session.encode([config.prompt])
    warnings = [*inputs.warnings, *filter(None, [session.warnings.get(config.prompt)])]
    for warning in warnings:
        log.warning(warning)
    session.load()
    size = list(inputs.photo.image.size)
    summary: dict[str, Any] = {"images": [], "mask": str(config.preview), "size": size}
    summary |= {name: getattr(config, name) for name in ("prompt", "feather", "strength")}
    summary |= {"refine": config.refine} if config.refine else {}
    summary["warnings"] = warnings

    def work() -> Iterator[Event]:
        small: list[tuple[int, Image.Image]] = []
        for seed in config.seeds:
            ((picture,),) = sample([(inputs, [seed])], session)
            write(inputs.config, inputs.photo, seed, picture)
            small.append((seed, picture.image.copy()))
            small[-1][1].thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
            path, _ = config.files(seed)
            summary["images"].append(str(path))
            if inputs.sampling.context == "clean":
                summary["context_cache"] = session.contexts.summary()
            yield Event(path.name, result=path)
        if len(small) > 1:
            summary["sheet"] = str(write_sheet(config, small))

    return Run("tryon", len(config.seeds), work(), summary)


def _session(config: TryonConfig) -> OpenedModel:
    from triptych.session import Session  # not at the top: it imports torch, and mistakes are told before

    return Session(**config.model_source())


def _reads_again(config: TryonConfig, inputs: Inputs) -> bool:
    """Whether what is read of known panels is needed a second time. In another tile the person's known part
    is another one; with the readings `products` and `each` the products' keys and values stay the same.
    """
    refines = bool(config.refine) and inputs.sampling.context_reading != "joint"
    return len(config.seeds) > 1 or refines


__all__ = ["TryonConfig", "prepared", "tryon"]
