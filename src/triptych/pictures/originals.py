"""Keeps transparency and metadata of the original in an edited photo, as far as the file format allows."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.pictures.colours import to_srgb
from triptych.pictures.images import JPEG_SUFFIXES, OriginalPhoto


def writable_metadata(photo: OriginalPhoto, path: Path) -> tuple[OriginalPhoto, list[str]]:
    """Drop the parts of the photo that a file called `path` cannot hold, and return a warning for each. A
    JPEG has no transparency and at most 64 KB of EXIF.
    """
    warnings = []
    jpeg = path.suffix.lower() in JPEG_SUFFIXES

    def writes(**metadata: bytes) -> bool:
        try:
            Image.new("RGB", (8, 8)).save(io.BytesIO(), "JPEG" if jpeg else "PNG", **metadata)
        except Exception:  # each writer refuses in its own way
            return False
        return True

    if photo.exif and not writes(exif=photo.exif):
        warnings.append(
            f"The photo's EXIF of {len(photo.exif)} bytes does not go into a {path.suffix} and is left out: "
            "use a .png."
        )
        photo = replace(photo, exif=None)
    if photo.icc_profile and not writes(icc_profile=photo.icc_profile):
        warnings.append(
            f"The photo's colour profile does not go into a {path.suffix}: its colours are converted to sRGB."
        )
        photo = replace(photo, image=to_srgb(photo.image, photo.icc_profile), icc_profile=None)
    if photo.alpha and jpeg:
        warnings.append(
            "The photo is transparent in places, which no JPEG is: it is laid on white. Use a .png to keep "
            "that."
        )
        photo = replace(photo, alpha=None, under=None)
    return photo, warnings


def with_transparency(photo: OriginalPhoto, edited: Image.Image, mask: np.ndarray) -> Image.Image:
    """Give an edit of `photo.image` the photo's transparency: RGBA, with the file's alpha where the mask is
    0, opaque where it is 1.

    edited: RGB, (1 - mask) · photo on white + mask · new. mask: (H, W) float32 in [0, 1].
    """
    assert photo.alpha is not None and photo.under is not None
    if not mask.any():
        return Image.merge("RGBA", [*photo.under.split(), photo.alpha])
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    part = mask[box[1] : box[3], box[0] : box[2]]
    opacity = np.asarray(photo.alpha.crop(box)).astype(np.float32) / 255
    light = (
        np.asarray(edited.crop(box)).astype(np.float32) - ((1 - part) * (1 - opacity) * 255)[:, :, None]
    )  # less the white below
    covered = (1 - part) * opacity + part
    colours = np.clip(np.rint(light / np.maximum(covered, 1e-6)[:, :, None]), 0, 255).astype(np.uint8)
    changed = Image.fromarray(((part > 0) * 255).astype(np.uint8))
    under, alpha = photo.under.copy(), photo.alpha.copy()
    opaque = opacity == 1
    colours[opaque] = np.asarray(edited.crop(box))[opaque]
    under.paste(Image.fromarray(colours), box[:2], changed)
    alpha.paste(Image.fromarray(np.rint(covered * 255).astype(np.uint8)), box[:2], changed)
    return Image.merge("RGBA", [*under.split(), alpha])
