"""Turns a person's photo into a panel of the triptych, and puts the generated panel back into the photo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from triptych.pictures import masks
from triptych.pictures.colours import from_srgb, to_srgb
from triptych.pictures.panels import Box, PanelLayout, concatenate, place
from triptych.sampling import token_sets
from triptych.vton.request import Person


@dataclass(frozen=True)
class TryOnResult:
    """One re-dressed photo. `image` has the size of the person photo; where `mask` (H, W) in [0, 1] is 0, it
    equals that photo bit for bit. `canvas` is the triptych with the made panel as generated, `known` the
    triptych that sampling started from; `box` is the part of the photo shown in the made panel.
    """

    image: Image.Image
    mask: np.ndarray
    canvas: Image.Image
    known: Image.Image
    box: Box


@dataclass(frozen=True)
class Fitting:
    """A person before sampling: photo and soft mask (H, W), the part `box` of the photo in the panel, the
    triptych to start from, and the repainted part of its latents.
    """

    person: Person
    photo: Image.Image
    mask: np.ndarray
    box: Box
    canvas: Image.Image
    repaint: np.ndarray


def fitted(
    garments: Mapping[str, Image.Image],
    person: Person,
    layout: PanelLayout,
    unit: int,
    feather: int,
    crop_margin: float | None,
) -> Fitting:
    """Fit photo and mask of a person into the made panel. garments: photos of the others, by role. unit:
    pixels per latent cell.

    Raises:
        InputError: an unusable polygon or mask.
    """
    photo = person.photo.convert("RGB")
    mask = masks.feather(person.repainted(), feather)
    box = (
        Box(0, 0, *photo.size)
        if crop_margin is None
        else masks.crop_box(mask, layout.width / layout.height, crop_margin)
    )
    repaint = np.zeros((layout.size[1] // unit, layout.size[0] // unit), dtype=np.float32)
    (made,) = layout.made
    left, top, right, bottom = layout.box(made, unit)
    repaint[top:bottom, left:right] = token_sets.latent_mask(
        token_sets.fit_mask(mask, box, layout.width, layout.height), unit
    )
    shown = (photo if person.start is None else person.start.convert("RGB")).crop(box)
    pictures = {**garments, made: to_srgb(shown, person.icc_profile)}
    return Fitting(
        person, photo, mask, box, concatenate([pictures[role] for role in layout.roles], layout), repaint
    )


def put_back(fitting: Fitting, panel: Image.Image, layout: PanelLayout) -> TryOnResult:
    """Scale the generated panel to the photo and blend it in along the mask."""
    box, photo = fitting.box, fitting.photo.crop(fitting.box)
    at = place(photo.size, layout.width, layout.height)
    canvas = fitting.canvas.copy()
    canvas.paste(panel, layout.box(layout.made[0])[:2])
    repainted = panel.crop((at.left, at.top, at.left + at.width, at.top + at.height))
    repainted = from_srgb(repainted.resize(photo.size, Image.Resampling.LANCZOS), fitting.person.icc_profile)
    image = fitting.photo.copy()
    image.paste(
        masks.composite(photo, repainted, fitting.mask[box.top : box.bottom, box.left : box.right]), box[:2]
    )
    return TryOnResult(image, fitting.mask, canvas, fitting.canvas, box)
