"""Masks of the repainted area, made from polygons. White (1) = repaint, black (0) = keep.

A mask is (H, W) float32 in [0, 1] with multiples of 1/255 as values, so that it is the same in memory and in
a PNG. Polygon corners are (x, y) in pixels of the photo; (0, 0) is the outer corner of the top left pixel, so
the pixel in column x and row y covers [x, x + 1) × [y, y + 1). Distances are in pixels along rows and columns
(a square neighbourhood).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from triptych.errors import InputError
from triptych.pictures.panels import Box
from triptych.pictures.polygons import Polygons, check_polygons

# Crossings of outlines with scan lines; an outline around a person in a photo of 24 megapixels has 100,000.
MAX_CROSSINGS = 3_000_000


# --- polygon → mask
# ---------------------------------------------------------------------------------------------------

_LINES = 8  # scan lines per pixel row
_STEPS = 256  # positions per pixel along a scan line; a power of two keeps every float32 sum exact


def polygon_mask(polygons: Polygons, size: tuple[int, int], noun: str = "polygon") -> np.ndarray:
    """The share of every pixel that the union of `polygons` covers: (H, W) float32 in [0, 1], rounded up to
    n/255.

    The whole inside of an outline counts, also where it crosses itself (non-zero winding). Parts outside the
    photo are cut off. Coverage is exact along a row and sampled on eight lines within a pixel's height.

    Args:
        size: (width, height) of the photo in pixels. noun: the word for a polygon in error messages.

    Raises:
        InputError: no polygon; malformed polygons (see `check_polygons`); a polygon wholly outside the photo
            or without area; or outlines that cross so many rows that filling them would take minutes.
    """
    width, height = size
    outlines = [np.asarray(corners) for corners in check_polygons(polygons)]
    if sum(int(_count_crossings(corners, height).sum()) for corners in outlines) > MAX_CROSSINGS:
        raise InputError(
            f"The {noun}s run up and down the photo too often to be filled.",
            "Simplify them; a few dozen corners are plenty.",
        )
    spans: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, corners in enumerate(outlines, 1):
        lines, xs, signs = _boundaries(*_crossings(corners, height))
        xs = np.clip(xs, 0, width * _STEPS)
        if (signs * xs).sum() == 0:  # minus the area left inside the photo
            x, y = corners.T
            name = f"{noun.capitalize()} {number}"
            if x.max() <= 0 or y.max() <= 0 or x.min() >= width or y.min() >= height:
                raise InputError(
                    f"{name} lies outside the photo of {width}×{height} px.", "Was it drawn on another photo?"
                )
            raise InputError(
                f"{name} encloses no part of the photo of {width}×{height} px.", "Draw it larger."
            )
        spans.append((lines, xs, signs))
    lines, xs, signs = _boundaries(*(np.concatenate(parts) for parts in zip(*spans, strict=True)))
    pixel, part = np.divmod(xs, _STEPS)
    weight = signs.astype(np.float32) / _LINES
    # A step up at x fills the rest of its pixel and all pixels to the right; the sum along the row does the
    # latter.
    steps = np.zeros((height, width + 2), dtype=np.float32)
    np.add.at(steps, (lines // _LINES, pixel), weight * (1 - part / _STEPS).astype(np.float32))
    np.add.at(steps, (lines // _LINES, pixel + 1), weight * (part / _STEPS).astype(np.float32))
    np.cumsum(steps, axis=1, out=steps)
    return from_bytes(to_bytes(steps[:, :width]))


def _edges(corners: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges (N, 2, 2) of an outline (N, 2); for each the first scan line that it crosses, and the one
    after its last.
    """
    edges = np.stack([corners, np.roll(corners, -1, axis=0)], axis=1)
    ends = np.sort(edges[:, :, 1], axis=1)
    # Scan line n lies at y = (n + 0.5) / _LINES. An edge includes its upper end but not its lower one, so
    # that no end counts twice.
    first, last = np.clip(np.ceil(ends * _LINES - 0.5), 0, height * _LINES).astype(int).T
    return edges, first, last


def _count_crossings(corners: np.ndarray, height: int) -> np.ndarray:
    """The number of scan lines that each edge crosses."""
    _, first, last = _edges(corners, height)
    return np.asarray(last - first)


def _crossings(corners: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The crossings of the outline (N, 2) with the scan lines: line, x in 1/_STEPS pixels, and +1 downwards
    or -1 upwards.
    """
    edges, first, last = _edges(corners, height)
    count = last - first
    edge = np.repeat(np.arange(len(edges)), count)
    lines = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = (edges[edge, end].T for end in (0, 1))
    x = x0 + ((lines + 0.5) / _LINES - y0) * ((x1 - x0) / (y1 - y0))
    return lines, np.rint(x * _STEPS).astype(int), np.where(y1 > y0, 1, -1)


def _boundaries(
    lines: np.ndarray, xs: np.ndarray, signs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ends of covered spans: the crossings at which the winding number leaves zero (+1) or returns to it
    (-1).
    """
    order = np.lexsort((-signs, xs, lines))
    lines, xs, signs = lines[order], xs[order], signs[order]
    after = np.cumsum(signs)  # every line sums to 0, so one cumulative sum serves all lines
    before = after - signs
    opens, closes = before == 0, after == 0
    keep = opens | closes
    return lines[keep], xs[keep], np.where(opens, 1, -1)[keep]


def to_bytes(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8, rounded up: a pixel that is touched at all stays touched."""
    # n / 255 · 255 may be slightly above n: hence the 1e-3, and hence the second term for values below that.
    levels: np.ndarray = np.ceil(mask * np.float32(255) - np.float32(1e-3)).astype(np.uint8)
    return np.asarray(np.maximum(levels, mask > 0, dtype=np.uint8))


def from_bytes(mask: np.ndarray) -> np.ndarray:
    values: np.ndarray = mask.astype(np.float32) / np.float32(255)
    return values


def mask_image(mask: np.ndarray) -> Image.Image:
    """The mask as a greyscale picture, white = repaint, without loss."""
    return Image.fromarray(to_bytes(mask))


def repaint_mask(
    polygons: Polygons,
    size: tuple[int, int],
    *,
    holes: Polygons | None = None,
    grow_by: int = 0,
    expand: Literal["none", "hull"] = "none",
) -> np.ndarray:
    """The repainted area: the polygons (with `expand` "hull", their convex hulls), widened by `grow_by`
    pixels, minus the holes.

    Holes are cut out last, so that growing never reaches into them. (H, W) float32 as in `polygon_mask`.

    Raises:
        InputError: see `polygon_mask`; or the holes leave nothing.
    """
    outlines = [_hull(corners) for corners in check_polygons(polygons)] if expand == "hull" else polygons
    mask = grow(polygon_mask(outlines, size), grow_by)
    if holes:
        mask = from_bytes(np.minimum(to_bytes(mask), 255 - to_bytes(polygon_mask(holes, size, "hole"))))
        if not mask.any():
            raise InputError(
                "The holes cover all polygons: nothing would be repainted.", "Make the holes smaller."
            )
    return mask


def _hull(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The convex hull of an outline (Andrew's monotone chain)."""
    ordered = sorted(set(corners))

    def half(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for x, y in points:
            while len(chain) > 1:
                (x0, y0), (x1, y1) = chain[-2:]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    hull = half(ordered) + half(ordered[::-1])
    return hull if len(hull) > 2 else corners  # all on one line: `polygon_mask` reports it


# --- mask → mask
# ------------------------------------------------------------------------------------------------------


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask (H, W) widened by `pixels` ≥ 0 on all sides: every pixel takes the largest value within that
    distance.
    """
    assert mask.ndim == 2
    assert pixels >= 0
    for _ in range(2):  # rows, then columns
        mask = _spread(mask, min(pixels, mask.shape[0])).T
    return np.ascontiguousarray(mask)


def _spread(mask: np.ndarray, reach: int) -> np.ndarray:
    """Running maximum down the columns over 2 · reach + 1 rows; the window doubles, so the cost grows with
    log(reach).
    """
    mask = np.pad(mask, ((reach, reach), (0, 0)))
    window = 1
    while window < 2 * reach + 1:
        step = min(window, 2 * reach + 1 - window)
        mask = np.asarray(np.maximum(mask[:-step], mask[step:]))
        window += step
    return mask


def feather(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask with a soft edge of `pixels` ≥ 0 OUTSIDE it: (H, W) float32 in [0, 1].

    Values of 1 stay exactly 1, pixels farther than `pixels` from the mask stay exactly 0, and no value
    decreases. (A Gaussian never ends and would touch the whole photo. Here the mask grows by half the
    distance, and two box blurs of finite reach make a ramp over the whole distance.)
    """
    blur = pixels // 2
    result = np.zeros(mask.shape, dtype=np.float32)
    if not mask.any():
        return result
    left, top, right, bottom = bounds(mask)  # pixels farther away do not change
    near = np.s_[
        max(0, top - pixels - 1) : bottom + pixels + 1, max(0, left - pixels - 1) : right + pixels + 1
    ]
    image = mask_image(grow(mask[near], pixels - blur))
    for radius in (blur - blur // 2, blur // 2):
        image = image.filter(ImageFilter.BoxBlur(radius))
    result[near] = from_bytes(np.asarray(image))
    return result


def bounds(mask: np.ndarray) -> Box:
    """The smallest box around all values above 0.

    Raises:
        InputError: the mask is empty.
    """
    columns, rows = np.flatnonzero((mask > 0).any(axis=0)), np.flatnonzero((mask > 0).any(axis=1))
    if len(rows) == 0:
        raise InputError(
            "The mask is empty: nothing would be repainted.", "Draw a polygon around what is to be repainted."
        )
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def crop_box(mask: np.ndarray, aspect: float, margin: float = 0.25) -> Box:
    """The smallest box with `aspect` (width / height) around the mask, within the photo.

    The mask's own box is widened by `margin` (a fraction of its longer side, ≥ 0) on every side, extended in
    one direction to the aspect, and shifted into the photo. A side longer than the photo is cut to it. So the
    box always lies inside and always contains the whole mask, but may then be narrower or flatter than
    `aspect`: `panels.fit` pads the rest.

    Raises:
        InputError: the mask is empty.
    """
    assert aspect > 0
    assert margin >= 0
    left, top, right, bottom = bounds(mask)
    around = 2 * margin * max(right - left, bottom - top)
    width, height = right - left + around, bottom - top + around
    width, height = max(width, height * aspect), max(height, width / aspect)
    x, w = _inside(left, right, math.ceil(width - 1e-6), mask.shape[1])
    y, h = _inside(top, bottom, math.ceil(height - 1e-6), mask.shape[0])
    return Box(x, y, x + w, y + h)


def _inside(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """Start and length of an interval centred on [start, stop), shifted and if necessary cut to lie in [0,
    limit).
    """
    length = min(length, limit)
    return min(max((start + stop - length) // 2, 0), limit - length), length


# --- mask and photo
# ---------------------------------------------------------------------------------------------------


def composite(original: Image.Image, repainted: Image.Image, mask: np.ndarray) -> Image.Image:
    """Blend `repainted` into the original along the mask: per channel round((1 - mask) · original + mask ·
    repainted).

    Where the mask is 0, pixels are bit-identical to the original, where it is 1, to `repainted`. All three
    have one size, and both pictures are RGB. Pillow does it in 8 bits: a 4000 × 6000 photo needs no float
    copy.
    """
    assert original.mode == repainted.mode == "RGB"
    assert original.size == repainted.size == mask.shape[::-1]
    return Image.composite(repainted, original, mask_image(mask))
