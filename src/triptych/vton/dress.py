"""Mode (b), in memory: given people wear the garment of two product photos. No files, no config."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.images import from_srgb, to_srgb
from triptych.pictures.panels import Box, PanelLayout, concatenate, place
from triptych.pictures.polygons import Polygons, check_polygons, check_units
from triptych.sampling import token_sets
from triptych.sampling.canvas import decoded_panel, left_out, to_pixels
from triptych.sampling.opened import Models
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, OnStep, sample_latents
from triptych.tasks.tryon import TRY_ON


@dataclass(frozen=True)
class Person:
    """Who is dressed.

    photo: as it is. polygons: what is repainted, in pixels of `photo`. mask: the same as a mask of the
    photo's size, white = repaint: (H, W) of bool, of uint8 0 and 255, or of floats in [0, 1], or a picture;
    it may also stand in the place of the polygons. prompt: of the whole triptych. seeds: one picture each.
    icc_profile: colour space of `photo`; the model sees sRGB, the result is in the photo's own space again.
    start: `photo` with a rough edit, of the same size; what the model starts from. The result is put back
    into `photo`.
    """

    photo: Image.Image
    polygons: Polygons | np.ndarray | Image.Image | None = None
    prompt: str = ""
    seeds: Sequence[int] = (0,)
    icc_profile: bytes | None = None
    start: Image.Image | None = None
    mask: np.ndarray | Image.Image | None = None

    def repainted(self) -> np.ndarray:
        """(H, W) float32 in [0, 1] of the photo's size, 1 = repaint.

        Raises:
            InputError: neither polygons nor a mask, both, or one that cannot be used.
        """
        size = self.photo.size
        given = [one for one in (self.polygons, self.mask) if one is not None]
        if len(given) != 1:
            raise InputError(
                "A person needs polygons or a mask, one of the two.",
                "Give Person(photo, polygons=…) or Person(photo, mask=…).",
            )
        if (
            self.mask is not None
            or isinstance(self.polygons, Image.Image)
            or _is_array_of_pixels(self.polygons)
        ):
            return masks.as_mask(given[0], size)
        outlines = check_polygons(self.polygons)
        check_units(outlines, size)
        return masks.polygon_mask(outlines, size)


def _is_array_of_pixels(value: object) -> bool:
    """A mask of any library; an array (N, corners, 2) holds polygons."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) == 2 or (len(shape) == 3 and shape[2] != 2)


@dataclass(frozen=True)
class TryOnResult:
    """One re-dressed photo. `image` has the size of the person photo; where `mask` (H, W) in [0, 1] is 0 it
    is that photo, bit for bit. `canvas` is the triptych with the worn panel as the model made it, `known`
    what it started from; `box` is the part of the photo that its worn panel shows.
    """

    image: Image.Image
    mask: np.ndarray
    canvas: Image.Image
    known: Image.Image
    box: Box


@dataclass(frozen=True)
class _Fitting:
    """A person before sampling: photo and soft mask (H, W), the part `box` of it that the panel shows, the
    triptych to start from, and what is repainted of the triptych's latents.
    """

    person: Person
    photo: Image.Image
    mask: np.ndarray
    box: Box
    canvas: Image.Image
    repaint: np.ndarray


def try_on(
    models: Models,
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
            (`Models.sampling`).
        feather: width in pixels of the soft edge around the polygons; beyond it every pixel is the photo's
            own.
        crop_margin: give the worn panel to the polygons and this much around them (see `masks.crop_box`);
            None: the whole photo.

    Raises:
        InputError: polygons or a mask that cannot be used, panels that are no garment and who wears it, no
            prompt, or one the models were loaded without. ModelError: no finite numbers come out.
    """
    layout, sampling = TRY_ON.trained(layout or models.layout()), sampling or models.sampling()
    models.warn_of(sampling)
    if not all(person.prompt.strip() for person in persons):
        raise InputError(
            "A person has no prompt.", "Say what the whole triptych shows: Person(…, prompt='… <IMAGE 1> …')."
        )
    unit = models.autoencoder.stride
    fittings = [_fit(front, back, person, layout, unit, feather, crop_margin) for person in persons]
    latents, _ = models.autoencoder.encode(to_pixels([one.canvas for one in fittings]))
    if sampling.context == "clean" and sampling.context_reading == "products":
        pairs = zip(latents, fittings, strict=True)
        latents = torch.cat(
            [_with_products_alone(one[None], fitting.canvas, layout, models) for one, fitting in pairs]
        )
    rows = [number for number, person in enumerate(persons) for _ in person.seeds]
    prompts = [persons[number].prompt for number in rows]
    repaint = [fittings[number].repaint for number in rows] if len(persons) > 1 else fittings[0].repaint
    wanted = Canvases(
        layout,
        latents.shape[1:],
        models.text(prompts),
        [seed for person in persons for seed in person.seeds],
        models.text([""] * len(rows)) if sampling.needs_empty_prompt else None,
        Known(
            latents[rows],
            torch.from_numpy(np.asarray(repaint)),
            left_out([one.canvas for one in fittings], layout, models, sampling),
        ),
    )
    made = sample_latents(
        models.backbone, models.transformer, wanted, sampling, contexts=models.contexts, on_step=on_step
    )
    results: list[list[TryOnResult]] = [[] for _ in persons]
    for number, panel in zip(rows, decoded_panel(models, made, layout, "worn"), strict=True):
        results[number].append(_put_back(fittings[number], panel, layout))
    return results


def _fit(
    front: Image.Image,
    back: Image.Image,
    person: Person,
    layout: PanelLayout,
    unit: int,
    feather: int,
    crop_margin: float | None,
) -> _Fitting:
    photo = person.photo.convert("RGB")
    mask = masks.feather(person.repainted(), feather)
    box = (
        Box(0, 0, *photo.size)
        if crop_margin is None
        else masks.crop_box(mask, layout.width / layout.height, crop_margin)
    )
    repaint = np.zeros((layout.size[1] // unit, layout.size[0] // unit), dtype=np.float32)
    left, top, right, bottom = layout.box("worn", unit)
    repaint[top:bottom, left:right] = token_sets.latent_mask(
        token_sets.fit_mask(mask, box, layout.width, layout.height), unit
    )
    shown = (photo if person.start is None else person.start.convert("RGB")).crop(box)
    pictures = {"front": front, "back": back, "worn": to_srgb(shown, person.icc_profile)}
    return _Fitting(
        person, photo, mask, box, concatenate([pictures[role] for role in layout.roles], layout), repaint
    )


def _put_back(fitting: _Fitting, panel: Image.Image, layout: PanelLayout) -> TryOnResult:
    """The worn panel that was made, scaled to the photo and blended into it along the mask."""
    box, photo = fitting.box, fitting.photo.crop(fitting.box)
    at = place(photo.size, layout.width, layout.height)
    canvas = fitting.canvas.copy()
    canvas.paste(panel, layout.box("worn")[:2])
    repainted = panel.crop((at.left, at.top, at.left + at.width, at.top + at.height))
    repainted = from_srgb(repainted.resize(photo.size, Image.Resampling.LANCZOS), fitting.person.icc_profile)
    image = fitting.photo.copy()
    image.paste(
        masks.composite(photo, repainted, fitting.mask[box.top : box.bottom, box.left : box.right]), box[:2]
    )
    return TryOnResult(image, fitting.mask, canvas, fitting.canvas, box)


def _with_products_alone(
    known_BCHW: Tensor, canvas: Image.Image, layout: PanelLayout, models: Models
) -> Tensor:
    """The latents of a canvas, those of its product panels as if the first of them stood in place of the
    person too.

    The autoencoder's group norms look at the whole canvas: product latents change with the person beside
    them, and what is kept of a product would be good for one person only. `generate` shows the model products
    on just such a canvas.
    """
    alone = canvas.copy()
    alone.paste(canvas.crop(layout.box(layout.given[0])), layout.box("worn")[:2])
    key = hashlib.sha256(f"latents {layout} ".encode() + alone.tobytes()).hexdigest()
    products = models.contexts.get(key, lambda: models.autoencoder.encode(to_pixels([alone]))[0])
    worn = torch.from_numpy(layout.mask(["worn"], models.autoencoder.stride)).to(known_BCHW.device)
    return torch.where(worn, known_BCHW, products)
