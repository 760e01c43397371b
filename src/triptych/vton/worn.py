"""Samples the worn panels of people who are fitted into their canvases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from triptych.backbones.context import Reference
from triptych.pictures.panels import PanelLayout, concatenate
from triptych.sampling.canvas import decoded_panel, known_latents, left_out
from triptych.sampling.generate import made_latents
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.references import moved
from triptych.sampling.sampler import Known, OnStep
from triptych.vton.fit import Fitting


def worn_panels(
    model: OpenedModel,
    fittings: Sequence[Fitting],
    rows: Sequence[tuple[int, int]],
    layout: PanelLayout,
    sampling: Sampling,
    references: tuple[Reference, ...] = (),
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """The made panels of one batch, SDEdit of the repainted part of each fitting.

    rows: for each panel, its fitting's number and its seed. references: the pictures that the model sees
    beside the canvas (reference placement).
    """
    sampled = layout.only(layout.made) if sampling.context_placement == "reference" else layout
    known = _known(model, fittings, [number for number, _ in rows], layout, sampled, sampling)
    prompts = [fittings[number].person.prompt for number, _ in rows]
    seeds = [seed for _, seed in rows]
    latents = made_latents(model, prompts, sampled, seeds, sampling, known, references, on_step)
    return decoded_panel(model, latents, sampled, layout.made[0])


def _known(
    model: OpenedModel,
    fittings: Sequence[Fitting],
    rows: Sequence[int],
    layout: PanelLayout,
    sampled: PanelLayout,
    sampling: Sampling,
) -> Known:
    """The known part of each picture's canvas. rows: the person of each picture. sampled: the layout of the
    panels that are no references.
    """
    canvases = [fitting.canvas for fitting in fittings]
    without = left_out(canvases, layout, model, sampling) if sampled is layout else None
    if sampled is not layout:
        canvases = [
            concatenate([canvas.crop(layout.box(role)) for role in sampled.roles], sampled)
            for canvas in canvases
        ]
    latents = known_latents(model, canvases, sampled, sampling)
    chosen = fittings if len(fittings) == 1 else [fittings[number] for number in rows]
    repaint = torch.from_numpy(np.stack([fitting.repaint for fitting in chosen]))
    repaint = moved(repaint, layout, sampled, model.autoencoder.stride)
    return Known(latents[rows], repaint[0] if len(fittings) == 1 else repaint, without)
