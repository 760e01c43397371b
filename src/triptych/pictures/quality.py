"""Measures of a photo's quality: how sharp its edges are, how many levels it uses, and whether its colours
occur in another photo.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from triptych.pictures.copies import COLOUR, SHAPE

WINDOW = 11
"""Side in pixels of the neighbourhood in which an edge is measured."""
LEAST_CONTRAST = 40
"""Levels of 255 between the darkest and the lightest pixel of a neighbourhood that has an edge."""
LEAST_EDGES = 0.002
"""Share of neighbourhoods with an edge below which the sharpness of a picture cannot be told."""
UNKNOWN = 1.0
"""Sharpness of a picture without edges."""
NEAR, ENOUGH = 12.0, 0.04
"""Two colours are one up to this distance in YCbCr with half the lightness; a garment's colour is in a
photo if that share of the photo has it.
"""


def sharpness(image: Image.Image) -> float:
    """How steep the steepest edges of an RGB picture are, from 0 (blurred) to 1 and above.

    In every neighbourhood with an edge: the largest step between two adjacent pixels, as a share of the
    contrast there; of these the 90th percentile. Contrast cancels out, so a pale picture is not taken for a
    blurred one. Measure it at the size in which the photo is used. docs/photos.md has figures.
    """
    from scipy import ndimage  # takes half a second, which `--help` should not wait for

    grey = np.asarray(image.convert("L")).astype(np.int16)
    contrast = ndimage.maximum_filter(grey, WINDOW) - ndimage.minimum_filter(grey, WINDOW)
    down = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    right = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    edges = contrast >= LEAST_CONTRAST
    if edges.mean() < LEAST_EDGES:
        return UNKNOWN
    steps = ndimage.maximum_filter(np.maximum(down, right), WINDOW)
    return float(np.percentile(steps[edges] / contrast[edges], 90))


def levels(image: Image.Image) -> int:
    """The range of the colour channel of an RGB picture that varies most, in levels of 255, without the
    darkest and the lightest half per cent; at least 1 unless the picture has one colour all over.
    """
    pixels = np.asarray(image).reshape(-1, 3)
    low, high = np.percentile(pixels, (0.5, 99.5), axis=0)
    return max(int((high - low).max()), int(np.ptp(pixels, axis=0).max() > 0))


def shared_colours(garment: np.ndarray, worn: np.ndarray) -> float:
    """How much of a garment's colour is in a photo of a person, from 0 to 1.

    The mean over the garment's fields of the share of the other photo that has this colour, where `ENOUGH`
    of it counts as all. The plain ground of either photo does not count. garment, worn: `copies.signature`
    of the two.
    """
    own, other = _colours(garment), _colours(worn)
    distances = np.linalg.norm(own[:, None] - other[None], axis=2)
    return float(np.minimum(1.0, (distances < NEAR).mean(1) / ENOUGH).mean())


def _colours(signature: np.ndarray) -> np.ndarray:
    """(N, 3): half the lightness, blueness and redness of the fields in front of the ground; of all fields
    if the ground is not plain.
    """
    from scipy import ndimage

    grey, blue, red = np.split(signature.astype(np.float32), [SHAPE**2, SHAPE**2 + COLOUR**2])
    times = SHAPE // COLOUR
    planes: list[np.ndarray] = [grey.reshape(SHAPE, SHAPE) / 2]
    planes += [part.reshape(COLOUR, COLOUR).repeat(times, 0).repeat(times, 1) for part in (blue, red)]
    fields = np.stack(planes, axis=2)
    border = np.concatenate([fields[0], fields[-1], fields[:, 0], fields[:, -1]])
    plain = np.abs(fields - np.median(border, axis=0)).max(axis=2) <= 10
    areas, _ = ndimage.label(np.pad(plain, 1, constant_values=True))
    front = areas[1:-1, 1:-1] != areas[0, 0]
    chosen: np.ndarray = fields[front] if front.mean() > 0.02 else fields.reshape(-1, 3)
    return chosen
