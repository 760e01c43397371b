"""Dresses given people in the garments of product photos: one batch, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from triptych.backbones.context import Reference
from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.picture import Picture, ran_on, record
from triptych.sampling.products import shown
from triptych.sampling.references import references_of
from triptych.sampling.sampler import OnStep
from triptych.vton.fit import TryOnResult, fitted, put_back
from triptych.vton.garments import dressed
from triptych.vton.mask_free import redressed
from triptych.vton.refine import refined
from triptych.vton.request import Fit, Person, Request
from triptych.vton.worn import worn_panels

UNSAID = ("polygon_label", "mask_free", "refine")
"""Fields of `Fit` that a picture records only where they are given."""


def try_on(
    model: OpenedModel,
    front: Image.Image | None,
    back: Image.Image | None,
    persons: Sequence[Person],
    layout: PanelLayout | None = None,
    sampling: Sampling | None = None,
    feather: int = 8,
    on_step: OnStep | None = None,
    *,
    crop_margin: float | None = None,
    garments: Mapping[str, Image.Image] | None = None,
    references: Sequence[Image.Image] = (),
    mask_free: bool = False,
    refine: float = 0.0,
) -> list[list[TryOnResult]]:
    """Dress these people in that garment, all pictures in one batch. Returns one result per seed for each
    person.

    SDEdit inside the polygons; the rest of the canvas is kept at its known values. With clean context, all
    persons get the number of active tokens that the largest polygon needs: for the others, tokens next to the
    polygon are computed too, and then put back.

    Args:
        layout, sampling: by default those the LoRA was trained for, otherwise the model's recommendation
            (`sampling()` of the model).
        feather: width in pixels of the soft edge around the polygons; beyond it every pixel is the photo's
            own.
        crop_margin: fill the worn panel with the polygons and this margin (see `masks.crop_box`); None: the
            whole photo.
        garments: photos of more garments, by role. references: further pictures that the model sees, for all
            persons. mask_free: see `redressed`; polygons and masks are then limits, and persons are dressed
            one by one. refine: strength of a second pass, see `refined`; 0: none.

    Raises:
        ConfigError: the model would not see further references.
        InputError: an unusable polygon or mask, panels other than garments and their wearer, or no prompt.
            ModelError: the model returns non-finite numbers, or a part of it cannot be loaded.
    """
    views = {role: view for role, view in (("front", front), ("back", back)) if view is not None}
    photos = views | {**(garments or {})}
    layout, photos = dressed(layout or model.layout(photos=photos), photos)
    photos = shown(photos, layout)
    sampling = sampling or model.sampling()
    if not all(person.prompt.strip() for person in persons):
        raise InputError(
            "A person has no prompt.", "Say what the whole triptych shows: Person(…, prompt='… <IMAGE 1> …')."
        )
    if references:
        model.check_references(sampling)
    with model.lock:
        model.warn_of(sampling)
        model.encode([person.prompt for person in persons])  # before the transformer is loaded
        unit = model.autoencoder.stride
        fittings = [fitted(photos, person, layout, unit, feather, crop_margin) for person in persons]
        if mask_free:
            return [
                redressed(
                    model, photos, fitting, layout, sampling, feather, references, on_step, refine=refine
                )
                for fitting in fittings
            ]
        pictures = tuple[Reference, ...]()
        if sampling.context_placement == "reference":
            pictures = references_of(model, [photos], layout, sampling, references)
        rows = [(number, seed) for number, person in enumerate(persons) for seed in person.seeds]
        panels = worn_panels(model, fittings, rows, layout, sampling, pictures, on_step)
        results: list[list[TryOnResult]] = [[] for _ in persons]
        for (number, _), panel in zip(rows, panels, strict=True):
            results[number].append(put_back(fittings[number], panel, layout))
        if refine:
            results = refined(model, fittings, results, layout, sampling, refine, pictures, on_step)
    return results


def dress(
    model: OpenedModel,
    requests: Sequence[Request],
    layout: PanelLayout,
    sampling: Sampling,
    sha256: Sequence[Mapping[str, str]] | None = None,
    on_step: OnStep | None = None,
) -> list[list[Picture]]:
    """Make the pictures of several requests for the same garments in one batch. Returns one picture per seed
    for each request. The requests' crop, feather and further references are equal.

    Args:
        sha256: for each request, hashes of the input files, by option.

    Raises:
        InputError, ModelError: see `try_on`.
    """
    first = requests[0]
    made = try_on(
        model,
        None,
        None,
        [request.person for request in requests],
        layout,
        sampling,
        first.fit.feather,
        on_step,
        crop_margin=first.fit.margin,
        garments=first.garments,
        references=first.references,
        mask_free=first.fit.mask_free,
        refine=first.fit.refine,
    )
    hashes = sha256 or [{}] * len(requests)
    pictures: list[list[Picture]] = []
    for request, results, own in zip(requests, made, hashes, strict=True):
        pictures.append([])
        for seed, result in zip(request.person.seeds, results, strict=True):
            about = settings_of(model, request.fit, request.person.prompt, seed, layout, sampling, own)
            about["made_on"] = ran_on(model)
            pictures[-1].append(Picture(result.image, result.mask, result.canvas, layout.made, about))
    return pictures


def settings_of(
    model: OpenedModel,
    fit: Fit,
    prompt: str,
    seed: int,
    layout: PanelLayout,
    sampling: Sampling,
    sha256: Mapping[str, str],
) -> dict[str, Any]:
    """All settings that decide the pixels of one picture."""
    own = {"prompt": prompt, "seed": seed, "strength": sampling.strength, **asdict(fit)}
    own = {name: value for name, value in own.items() if name not in UNSAID or value}
    return record(model, "tryon", layout, sampling, sha256, **own)


__all__ = ["TryOnResult", "dress", "settings_of", "try_on"]
