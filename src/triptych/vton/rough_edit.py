"""The rough edit: puts the product photo's garment inside the polygon, as a start that SDEdit turns into
cloth.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from triptych.pictures import masks
from triptych.pictures.colours import from_srgb
from triptych.pictures.panels import place
from triptych.vision.garment import garment_mask

Rough = Literal["none", "paint", "paste"]

_SIDE = 256  # longer side in pixels at which the garment is separated from its background
_COLOURS, _BANDS = 4, 8


def rough_edit(
    person: Image.Image,
    product: Image.Image,
    mask: np.ndarray,
    rough: Literal["paint", "paste"],
    icc_profile: bytes | None = None,
) -> Image.Image:
    """The person photo with the garment roughly inside the mask.

    "paint": for each height, the garment's dominant colour at that height. "paste": in addition the garment
    itself, cut out, its aspect kept, centred in the mask's box.

    Args:
        person: RGB, in the colour space of `icc_profile`. product: sRGB. mask: (H, W) with the size of
            `person`, 1 = repaint, not empty.

    Raises:
        InputError: the garment cannot be separated from its background.
    """
    small = product.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    garment = garment_mask(small)
    rows, columns = np.flatnonzero(garment.any(axis=1)), np.flatnonzero(garment.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    box = masks.bounds(mask)
    size = box.right - box.left, box.bottom - box.top
    bands = _dominant(np.asarray(small)[top:bottom, left:right], garment[top:bottom, left:right])
    edit = Image.fromarray(bands[:, None]).resize(size, Image.Resampling.NEAREST)
    if rough == "paste":
        scale = product.width / small.width, product.height / small.height
        source = left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]
        at = place((round(source[2] - source[0]), round(source[3] - source[1])), *size)
        cut = product.convert("RGB").resize((at.width, at.height), Image.Resampling.LANCZOS, source)
        # without the rim, which is mixed with the background
        core = masks.grow((~garment).astype(np.float32), 1) == 0
        alpha = Image.fromarray(core[top:bottom, left:right].astype(np.uint8) * 255).resize(
            cut.size, Image.Resampling.BILINEAR
        )
        edit.paste(cut, (at.left, at.top), alpha)
    result = person.convert("RGB").copy()
    result.paste(
        from_srgb(edit, icc_profile),
        box[:2],
        masks.mask_image(mask[box.top : box.bottom, box.left : box.right]),
    )
    return result


def _dominant(pixels: np.ndarray, garment: np.ndarray) -> np.ndarray:
    """(_BANDS, 3) uint8: for each band of rows, the most frequent palette colour among the garment's pixels.

    pixels: (H, W, 3) uint8. garment: (H, W) bool with at least one pixel in the first and in the last row.
    """
    chosen = Image.fromarray(pixels[garment][None])
    numbers = np.asarray(
        chosen.quantize(_COLOURS, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    )[0]
    palette = np.stack(
        [
            np.median(pixels[garment][numbers == n], axis=0) if (numbers == n).any() else np.zeros(3)
            for n in range(_COLOURS)
        ]
    )
    band = np.nonzero(garment)[0] * _BANDS // len(garment)
    overall = np.bincount(numbers, minlength=_COLOURS)
    counts = [np.bincount(numbers[band == n], minlength=_COLOURS) for n in range(_BANDS)]
    return palette[[int((count if count.any() else overall).argmax()) for count in counts]].astype(np.uint8)
