"""Given people wear the garment of two product photos: one batch, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout
from triptych.sampling.canvas import decoded_panel, known_latents, left_out
from triptych.sampling.generate import made_latents
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.picture import Picture, ran_on, record
from triptych.sampling.sampler import Known, OnStep
from triptych.tasks.tryon import TRY_ON
from triptych.vton.fit import Fitting, TryOnResult, fitted, put_back
from triptych.vton.request import Fit, Garment, Person, Request


def try_on(
    model: OpenedModel,
    front: Image.Image,
    back: Image.Image,
    persons: Sequence[Person],
    layout: PanelLayout | None = None,
    sampling: Sampling | None = None,
    feather: int = 8,
    on_step: OnStep | None = None,
    *,
    crop_margin: float | None = None,
) -> list[list[TryOnResult]]:
    """These people wearing that garment, all pictures in one batch: for each person one result a seed.

    SDEdit inside the polygons, everything else clamped. With clean context everybody gets as many active
    tokens as the one who needs most: tokens next to the polygon are run too, then put back.

    Args:
        layout, sampling: by default what the LoRA was trained for, else what the model recommends
            (`sampling()` of the model).
        feather: width in pixels of the soft edge around the polygons; beyond it every pixel is the photo's
            own.
        crop_margin: give the worn panel to the polygons and this much around them (see `masks.crop_box`);
            None: the whole photo.

    Raises:
        InputError: polygons or a mask that cannot be used, panels that are no garment and who wears it, or no
            prompt. ModelError: no finite numbers come out, or a part of the model cannot be loaded.
    """
    layout, sampling = TRY_ON.trained(layout or model.layout()), sampling or model.sampling()
    if not all(person.prompt.strip() for person in persons):
        raise InputError(
            "A person has no prompt.", "Say what the whole triptych shows: Person(…, prompt='… <IMAGE 1> …')."
        )
    with model.lock:
        model.warn_of(sampling)
        model.encode([person.prompt for person in persons])  # before the transformer is loaded
        unit, garment = model.autoencoder.stride, Garment(front, back)
        fittings = [fitted(garment, person, layout, unit, feather, crop_margin) for person in persons]
        rows = [number for number, person in enumerate(persons) for _ in person.seeds]
        latents = made_latents(
            model,
            [persons[number].prompt for number in rows],
            layout,
            [seed for person in persons for seed in person.seeds],
            sampling,
            _known(model, fittings, rows, layout, sampling),
            on_step,
        )
        panels = decoded_panel(model, latents, layout, "worn")
    results: list[list[TryOnResult]] = [[] for _ in persons]
    for number, panel in zip(rows, panels, strict=True):
        results[number].append(put_back(fittings[number], panel, layout))
    return results


def _known(
    model: OpenedModel,
    fittings: Sequence[Fitting],
    rows: Sequence[int],
    layout: PanelLayout,
    sampling: Sampling,
) -> Known:
    """What is known of each picture's canvas. rows: the person of each picture."""
    canvases = [one.canvas for one in fittings]
    latents = known_latents(model, canvases, layout, sampling)
    one = len(fittings) == 1
    repaint = fittings[0].repaint if one else np.stack([fittings[number].repaint for number in rows])
    return Known(latents[rows], torch.from_numpy(repaint), left_out(canvases, layout, model, sampling))


def dress(
    model: OpenedModel,
    requests: Sequence[Request],
    layout: PanelLayout,
    sampling: Sampling,
    sha256: Sequence[Mapping[str, str]] | None = None,
    on_step: OnStep | None = None,
) -> list[list[Picture]]:
    """The pictures of several requests for one garment in one batch: for each request one picture a seed. The
    requests' crop and feather are alike.

    Args:
        sha256: of each request, hashes of the files that went in, by option.

    Raises:
        InputError, ModelError: see `try_on`.
    """
    first = requests[0]
    views = first.garment.views()
    made = try_on(
        model,
        views["front"],
        views["back"],
        [request.person for request in requests],
        layout,
        sampling,
        first.fit.feather,
        on_step,
        crop_margin=first.fit.margin,
    )
    hashes = sha256 or [{}] * len(requests)
    pictures: list[list[Picture]] = []
    for request, results, own in zip(requests, made, hashes, strict=True):
        pictures.append([])
        for seed, result in zip(request.person.seeds, results, strict=True):
            about = settings_of(model, request.fit, request.person.prompt, seed, layout, sampling, own)
            about["made_on"] = ran_on(model)
            pictures[-1].append(Picture(result.image, result.mask, result.canvas, ("worn",), about))
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
    """Everything that decides the pixels of one picture."""
    own = {"prompt": prompt, "seed": seed, "strength": sampling.strength, **asdict(fit)}
    return record(model, "tryon", layout, sampling, sha256, **own)


__all__ = ["TryOnResult", "dress", "settings_of", "try_on"]
