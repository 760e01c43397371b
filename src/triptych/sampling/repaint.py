"""Repaint a triptych that the caller concatenated, inside a mask over the whole canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from triptych.backbones.context import Reference
from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.panels import PanelLayout, concatenate
from triptych.sampling import token_sets
from triptych.sampling.canvas import decoded_panel, encoded, known_latents, left_out
from triptych.sampling.generate import made_latents
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.references import moved, references_of
from triptych.sampling.sampler import Known, OnStep


def repaint_triptych(
    model: OpenedModel,
    canvas: Image.Image,
    mask: np.ndarray,
    prompt: str,
    seeds: Sequence[int] = (0,),
    sampling: Sampling | None = None,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """The canvas with the area inside the mask regenerated, once per seed.

    The model sees the canvas at its own size if that is on the model's grid and no larger than the triptychs
    that the LoRA was trained on. Otherwise the canvas is scaled, and the result is scaled back.

    Args:
        canvas: the panels side by side, all of one size, as in the LoRA's training set, with the known panels
            filled in.
        mask: (H, W) in [0, 1] of the canvas's size, 1 = repaint. Where it is 0, the result equals the canvas
            bit for bit; between 0 and 1, both are blended.

    Raises:
        InputError: the canvas cannot be cut into the panels. ModelError: the result is not finite.
    """
    photo, sampling = canvas.convert("RGB"), sampling or model.sampling()
    layout = layout_of(model, mask)
    shown = photo if photo.size == layout.size else photo.resize(layout.size, Image.Resampling.LANCZOS)
    covered = mask > 0
    if photo.size != layout.size:
        covered = token_sets.touched(covered, layout.size[1], layout.size[0])
    with model.lock:
        model.warn_of(sampling)
        model.encode([prompt])  # before the transformer is loaded
        sampled, references = layout, tuple[Reference, ...]()
        if layout.given and sampling.context_placement == "reference":
            sampled = layout.only(layout.made)
            photos = {role: shown.crop(layout.box(role)) for role in layout.given}
            references = references_of(model, [photos], layout, sampling)
        known = _known(model, shown, covered, layout, sampled, sampling, len(seeds))
        prompts = [prompt] * len(seeds)
        latents = made_latents(model, prompts, sampled, seeds, sampling, known, references, on_step)
        made = [shown.copy() for _ in seeds]
        for role in repainted_panels(covered, layout):
            for one, panel in zip(made, decoded_panel(model, latents, sampled, role), strict=True):
                one.paste(panel, layout.box(role)[:2])
    if photo.size != layout.size:
        made = [one.resize(photo.size, Image.Resampling.LANCZOS) for one in made]
    return [masks.composite(photo, one, mask) for one in made]


def repainted_panels(mask: np.ndarray, layout: PanelLayout) -> list[str]:
    """The roles of panels that are repainted, at least in part. mask: (H, W) of the canvas, at any resolution
    that splits into the panels.
    """
    height, width = mask.shape[0] // layout.rows, mask.shape[1] // layout.columns
    places = {role: divmod(number, layout.columns) for number, role in enumerate(layout.roles)}
    return [
        role
        for role, (row, column) in places.items()
        if mask[row * height : (row + 1) * height, column * width : (column + 1) * width].any()
    ]


def _known(
    model: OpenedModel,
    shown: Image.Image,
    covered: np.ndarray,
    layout: PanelLayout,
    sampled: PanelLayout,
    sampling: Sampling,
    count: int,
) -> Known:
    """The known latents of `count` equal canvases. covered: (H, W) bool in pixels of the canvas. sampled: the
    layout of the panels that are no references.
    """
    without = left_out([shown], layout, model, sampling) if sampled is layout else None
    unit = model.autoencoder.stride
    repaint = torch.from_numpy(token_sets.latent_mask(covered, unit).astype(np.float32))
    if sampled is not layout:
        shown = concatenate([shown.crop(layout.box(role)) for role in sampled.roles], sampled)
        repaint = moved(repaint, layout, sampled, unit)
    if layout.given:
        latents = known_latents(model, [shown], sampled, sampling)
    else:
        latents, _ = encoded(model, [shown], layout)
    return Known(latents.expand(count, *latents.shape[1:]), repaint, without)


def layout_of(model: OpenedModel, mask: np.ndarray) -> PanelLayout:
    """The layout of a canvas with this mask, at the size that the model sees. `made` are the panels that the
    LoRA makes, or if the mask touches others, the repainted panels.

    Raises:
        InputError: a side of the canvas cannot be divided into the panels.
    """
    base, stride = model.layout(), model.settings.stride
    height, width = mask.shape
    if width % base.columns or height % base.rows:
        raise InputError(
            f"A canvas of {width}×{height} px cannot be cut into {base.columns}×{base.rows} equal panels.",
            "Scale its panels to one size before you put them side by side.",
        )
    scale = min(1.0, math.sqrt(base.size[0] * base.size[1] / (width * height)))
    sides = width / base.columns * scale, height / base.rows * scale
    layout = model.layout(*(max(stride, round(side / stride) * stride) for side in sides))
    covered = repainted_panels(mask, layout)
    return layout if {*covered} <= {*layout.made} else replace(layout, made=tuple(covered))
