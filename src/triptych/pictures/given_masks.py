"""Masks that a user gives, in whatever form, as masks of `pictures.masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.images import load_mask
from triptych.pictures.masks import from_bytes, to_bytes

_MASK_VALUES = "Give 0 and 255 as uint8, False and True, or floats from 0 to 1; white is repainted."


def as_mask(value: Any, size: tuple[int, int]) -> np.ndarray:
    """A mask in any form as (H, W) float32 in [0, 1], white = repaint.

    Args:
        value: bool; uint8 of 0 and 255, or of 0 and 1; floats in [0, 1]; or a picture: its brightness or, if
            it is transparent in places, its alpha. Shape (H, W); extra sides of length 1 and three equal
            channels are accepted. size: (width, height) of the photo.

    Raises:
        InputError: a wrong shape or range, or a mask that repaints nothing.
    """
    if isinstance(value, Image.Image):
        if value.has_transparency_data:
            alpha = value.convert("RGBA").getchannel("A")
            value = alpha if alpha.getextrema() != (255, 255) else value
        value = value if value.mode in ("1", "L") or value.mode[0] in "IF" else value.convert("L")
    array = _array(value)
    if array.ndim == 3 and array.shape[2] == 3 and (array == array[:, :, :1]).all():
        array = array[:, :, 0]
    array = array.reshape([side for side in array.shape if side != 1]) if array.ndim > 2 else array
    width, height = size
    if array.shape != (height, width):
        turned = (
            " Its sides are exchanged: an array is (height, width)." if array.shape == (width, height) else ""
        )
        raise InputError(
            f"The mask is {array.shape}, the photo {height} high and {width} wide.",
            f"Give one value a pixel.{turned}",
        )
    if array.dtype.kind not in "buif":
        raise InputError(f"A mask of {array.dtype} is not understood.", _MASK_VALUES)
    low, high = float(array.min()), float(array.max())
    if high == 0 and low == 0:
        raise InputError("The mask is black: nothing would be repainted.", "White is repainted.")
    top = (
        1.0
        if array.dtype.kind in "bf" or high <= 1
        else 65535.0
        if array.dtype.kind == "u" and array.itemsize == 2
        else 255.0
    )
    if not (low >= 0 and high <= top * (1 + 1e-3)):  # NaN fails too
        raise InputError(f"The mask has values from {low:g} to {high:g}.", _MASK_VALUES)
    mask = np.clip(array.astype(np.float32) / np.float32(top), 0, 1)
    if mask.max() < 0.5:
        raise InputError(
            f"The mask is nowhere whiter than {mask.max():.3g}: next to nothing would be repainted.",
            _MASK_VALUES,
        )
    return from_bytes(to_bytes(mask))


def read_mask(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """The mask in a picture file, (H, W) bool: white from a brightness of 128 on, or where a picture that is
    transparent in places is opaque; and warnings.

    Args:
        size: (width, height) of the upright photo. A mask of the same shape is scaled to it.

    Raises:
        InputError: no usable picture, another shape, or a mask that repaints nothing.
    """
    mask = load_mask(path)
    (width, height), (wide, high) = mask.size, size
    if abs(width * high - height * wide) > max(*mask.size, *size):  # a scaled side is rounded
        raise InputError(
            f"{path} has {width}×{height} px, the photo {wide}×{high}.", "A mask covers the whole photo."
        )
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    white = np.asarray(mask) > 127  # a JPEG is nowhere quite black
    if not white.any():
        raise InputError(f"{path} is black: nothing would be repainted.", "White is repainted.")
    share = float(white.mean())
    told = f"{path} repaints {share:.0%} of the photo: is white (or opaque) what is to be repainted?"
    return white, [told] if share > 0.6 else []


def _array(value: Any) -> np.ndarray:
    """A picture, list or tensor as an array; tensors may be on any device, of any precision, and may require
    gradients.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("The mask is no array of numbers.", _MASK_VALUES) from error
