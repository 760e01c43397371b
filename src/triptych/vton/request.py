"""One try-on in memory: the garment, the person, and the fit of the photo to the model. No paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures import given_masks
from triptych.pictures.polygons import Polygons
from triptych.vton.area import area_of, check_given
from triptych.vton.rough_edit import Rough, rough_edit


@dataclass(frozen=True)
class Person:
    """The person to dress.

    photo: the photo. polygons: the repainted area, in pixels of `photo`. mask: the same area as a mask,
    instead of polygons: of the photo's size, white = repaint, as (H, W) of bool, of uint8 0 and 255, of
    floats in [0, 1], or as a picture. Both may be a file. prompt: describes the whole triptych. seeds: one
    picture each. icc_profile: colour space of `photo`; the model sees sRGB, the result is in the photo's own
    space again. start: `photo` with a rough edit, of the same size, which sampling starts from. The result is
    put back into `photo`.
    """

    photo: Image.Image
    polygons: Polygons | np.ndarray | Image.Image | Path | str | None = None
    prompt: str = ""
    seeds: Sequence[int] = (0,)
    icc_profile: bytes | None = None
    start: Image.Image | None = None
    mask: np.ndarray | Image.Image | Path | str | None = None

    def repainted(self) -> np.ndarray:
        """The repainted area: (H, W) float32 in [0, 1] of the photo's size, 1 = repaint.

        Raises:
            InputError: neither polygons nor a mask, both, or an unusable one.
        """
        if isinstance(self.polygons, Image.Image) or _is_array_of_pixels(self.polygons):
            check_given(self.polygons, self.mask)
            return given_masks.as_mask(self.polygons, self.photo.size)
        return repainted(self.photo.size, cast(Polygons | Path | str | None, self.polygons), self.mask)


@dataclass(frozen=True)
class Fit:
    """How a person's photo is shown to the model, and what sampling starts from.

    crop: the polygon and its surroundings in full detail, or (none) the whole photo, scaled down.
    crop_margin: the visible margin around the polygon, as a fraction of its longer side. expand: repaint each
    polygon (none), or its convex hull. grow: pixels by which the polygons or the mask are widened. feather:
    width in pixels of the soft edge. rough: the start inside the polygon: the photo (none), the garment's
    colours (paint), or the garment cut out of its front photo (paste). polygon_label: the shapes to take from
    a file of polygons with several labels. mask_free: make the worn panel anew from reference pictures, and
    put back what has changed; polygons or a mask are then only a limit. refine: strength in [0, 1] of a
    second pass at twice the resolution (see `refined`); 0: none.
    """

    crop: Literal["polygon", "none"] = "polygon"
    crop_margin: float = 0.5
    expand: Literal["none", "hull"] = "none"
    grow: int = 0
    feather: int = 8
    rough: Rough = "none"
    polygon_label: str = ""
    mask_free: bool = False
    refine: float = 0.0

    @property
    def margin(self) -> float | None:
        """See `masks.crop_box`; None: the whole photo."""
        return self.crop_margin if self.crop == "polygon" else None


@dataclass(frozen=True)
class Request:
    """One try-on, ready for sampling: its mask is final, and its rough edit is done. garments: photos by
    role, sRGB.
    """

    garments: Mapping[str, Image.Image]
    person: Person
    fit: Fit
    references: tuple[Image.Image, ...] = ()
    """Further pictures that the model sees."""


def request_of(
    garments: Mapping[str, Image.Image],
    photo: Image.Image,
    fit: Fit,
    area: np.ndarray,
    prompt: str = "",
    seeds: Sequence[int] = (0,),
    icc_profile: bytes | None = None,
    references: Sequence[Image.Image] = (),
) -> Request:
    """A try-on with its rough edit done. garments: photos by role, sRGB. area: (H, W) in [0, 1] of the
    photo's size, 1 = repaint.

    Raises:
        InputError: the garment cannot be separated from its background; or there are several garments for a
            rough edit.
    """
    start = None
    if fit.rough != "none":
        views = [view for role, view in garments.items() if role == "front" or len(garments) == 1]
        if not views:
            raise InputError(
                f"A rough edit shows one garment, and there are {len(garments)}.",
                "Leave --rough out, or dress the person in one garment after the other.",
            )
        start = rough_edit(photo, views[0], area, fit.rough, icc_profile)
    person = Person(photo, None, prompt, seeds, icc_profile, start, area)
    return Request(garments, person, fit, tuple(references))


def repainted(
    size: tuple[int, int],
    polygons: Polygons | Path | str | None,
    mask: np.ndarray | Image.Image | Path | str | None,
    *,
    grow: int = 0,
    expand: Literal["none", "hull"] = "none",
) -> np.ndarray:
    """The repainted area: (H, W) float32 in [0, 1], 1 = repaint. size: (width, height) of the photo.

    Raises:
        InputError: neither polygons nor a mask, both, or an unusable one.
    """
    return area_of(size, polygons, mask).repainted(size, grow, expand)


def _is_array_of_pixels(value: object) -> bool:
    """Whether a value is a mask of any library; an array (N, corners, 2) holds polygons."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) == 2 or (len(shape) == 3 and shape[2] != 2)
