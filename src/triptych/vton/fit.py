"""Turns a person's photo into a panel of the triptych, and puts the generated panel back into the photo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from triptych.pictures import masks
from triptych.pictures.colours import from_srgb, to_srgb
from triptych.pictures.panels import Box, PanelLayout, concatenate, fit, place
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
    box = shown_box(mask, layout, crop_margin)
    shown = (photo if person.start is None else person.start.convert("RGB")).crop(box)
    pictures = {**garments, layout.made[0]: to_srgb(shown, person.icc_profile)}
    canvas = concatenate([pictures[role] for role in layout.roles], layout)
    return Fitting(person, photo, mask, box, canvas, repainted_cells(mask, box, layout, unit))


def shown_box(mask: np.ndarray, layout: PanelLayout, crop_margin: float | None) -> Box:
    """The part of the photo that the made panel shows. mask: (H, W), with its soft edge. crop_margin: see
    `masks.crop_box`; None: the whole photo.
    """
    if crop_margin is None:
        return Box(0, 0, *mask.shape[::-1])
    return masks.crop_box(mask, layout.width / layout.height, crop_margin)


def repainted_cells(mask: np.ndarray, box: Box, layout: PanelLayout, unit: int) -> np.ndarray:
    """The repainted latents of the canvas whose made panel shows `box`: (H, W) float32 of 0 and 1."""
    repaint = np.zeros((layout.size[1] // unit, layout.size[0] // unit), dtype=np.float32)
    left, top, right, bottom = layout.box(layout.made[0], unit)
    panel = token_sets.fit_mask(mask, box, layout.width, layout.height)
    repaint[top:bottom, left:right] = token_sets.latent_mask(panel, unit)
    return repaint


def closer(fitting: Fitting, image: Image.Image, box: Box, layout: PanelLayout, unit: int) -> Fitting:
    """The same person with another part of the photo in the made panel, to start from `image`, a result."""
    canvas = fitting.canvas.copy()
    panel = fit(to_srgb(image.crop(box), fitting.person.icc_profile), layout.width, layout.height)
    canvas.paste(panel, layout.box(layout.made[0])[:2])
    return replace(fitting, box=box, canvas=canvas, repaint=repainted_cells(fitting.mask, box, layout, unit))


def put_back(fitting: Fitting, panel: Image.Image, layout: PanelLayout) -> TryOnResult:
    """Scale the generated panel to the photo and blend it in along the mask."""
    box, photo = fitting.box, fitting.photo.crop(fitting.box)
    canvas = fitting.canvas.copy()
    canvas.paste(panel, layout.box(layout.made[0])[:2])
    mask = fitting.mask[box.top : box.bottom, box.left : box.right]
    image = fitting.photo.copy()
    image.paste(masks.composite(photo, on_photo(fitting, panel, layout), mask), box[:2])
    return TryOnResult(image, fitting.mask, canvas, fitting.canvas, box)


def on_photo(fitting: Fitting, panel: Image.Image, layout: PanelLayout) -> Image.Image:
    """A generated panel without its padding, at the size of `fitting.box` and in the photo's colour space."""
    box = fitting.box
    size = box.right - box.left, box.bottom - box.top
    at = place(size, layout.width, layout.height)
    made = panel.crop((at.left, at.top, at.left + at.width, at.top + at.height))
    return from_srgb(made.resize(size, Image.Resampling.LANCZOS), fitting.person.icc_profile)
