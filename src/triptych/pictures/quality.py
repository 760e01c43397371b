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
    grey = np.asarray(image.convert("L"))
    contrast = around(np.maximum, grey) - around(np.minimum, grey)
    edges = contrast >= LEAST_CONTRAST
    if edges.mean() < LEAST_EDGES:
        return UNKNOWN
    down, right = (_steps(grey, axis) for axis in (0, 1))
    steps = around(np.maximum, np.maximum(down, right))
    return float(np.percentile(steps[edges] / contrast[edges], 90))


def around(extreme: np.ufunc, values: np.ndarray) -> np.ndarray:
    """The highest or lowest value (`np.maximum`, `np.minimum`) among the `WINDOW` × `WINDOW` neighbours of
    each pixel: (H, W) of the same type. Windows of 2, 4 and 8 pixels are joined to one of 11, which is many
    times as fast as looking at all neighbours.
    """
    for axis in (0, 1):
        values = np.pad(
            values, [(WINDOW // 2,) * 2 if axis == one else (0, 0) for one in (0, 1)], mode="edge"
        )
        for shift in (1, 2, 4, WINDOW - 8):
            low, high = [slice(None)] * 2, [slice(None)] * 2
            low[axis], high[axis] = slice(None, -shift), slice(shift, None)
            values = extreme(values[tuple(low)], values[tuple(high)])
    return values


def _steps(grey: np.ndarray, axis: int) -> np.ndarray:
    """The difference of each pixel to the one before it along an axis, without its sign: (H, W) uint8."""
    before = np.concatenate([grey.take([0], axis), grey.take(range(grey.shape[axis] - 1), axis)], axis)
    return np.maximum(grey, before) - np.minimum(grey, before)


def levels(image: Image.Image) -> int:
    """The range of the colour channel of an RGB picture that varies most, in levels of 255, without the
    darkest and the lightest half per cent; at least 1 unless the picture has one colour all over.
    """
    counts = np.reshape(image.histogram(), (3, 256))
    spread = max(_percentile(channel, 99.5) - _percentile(channel, 0.5) for channel in counts)
    return max(int(spread), int(((counts > 0).sum(1) > 1).any()))


def _percentile(counts: np.ndarray, percent: float) -> float:
    """`np.percentile` of values that occur `counts` times each; many times as fast as from the values."""
    place = percent / 100 * (counts.sum() - 1)
    below = int(place)
    low, high = np.searchsorted(np.cumsum(counts), (below, below + 1), side="right")
    return float(low + (place - below) * (min(high, 255) - low))


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
