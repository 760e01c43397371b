"""Compute token sets of the canvas from masks and photos: tokens to run, known tokens, tokens to leave out.

A token set is (rows, columns) bool on the model's token grid, of one panel or of the canvas; `stride` is the
side of a token in pixels (for `latent_mask`, of a latent).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.panels import Box, PanelLayout, place
from triptych.vision.garment import garment_mask

PLAIN = 8
"""Largest channel difference (of 255) from the border's colour that still counts as plain background."""


def fit_mask(mask: np.ndarray, box: Box, width: int, height: int) -> np.ndarray:
    """The part of the mask inside `box`, scaled into a panel exactly as `panels.fit` scales the photo:
    (height, width).

    Padding is 0 (kept). Every panel pixel that overlaps a mask pixel above 0 is above 0.
    """
    part = np.ascontiguousarray(mask[box.top : box.bottom, box.left : box.right])
    left, top, w, h = place((part.shape[1], part.shape[0]), width, height)
    scaled = np.asarray(Image.fromarray(part).resize((w, h), Image.Resampling.BOX))
    # The filter may miss a pixel whose centre lies exactly between two panel pixels.
    scaled = np.maximum(scaled, touched(part > 0, h, w) / np.float32(255))
    panel = np.zeros((height, width), dtype=np.float32)
    panel[top : top + h, left : left + w] = np.asarray(
        masks.mask_image(np.clip(scaled, 0, 1)), np.float32
    ) / np.float32(255)
    return panel


def touched(part: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool: pixels of the scaled picture that any True pixel of `part` (bool) overlaps, even
    by a corner.
    """
    for size in (height, width):  # rows, then columns (by transposing)
        counts = np.concatenate(
            [np.zeros((1, part.shape[1]), np.int32), np.cumsum(part, axis=0, dtype=np.int32)]
        )
        steps = np.arange(size)
        part = (counts[-(-(steps + 1) * len(part) // size)] > counts[steps * len(part) // size]).T
    return part


def latent_mask(mask: np.ndarray, stride: int) -> np.ndarray:
    """(…, H, W) → (…, H / stride, W / stride) bool: cells of `stride` × `stride` pixels that contain any
    pixel above 0.

    `stride` must divide both sides (`PanelLayout.check` ensures it).
    """
    *batch, height, width = mask.shape
    assert not height % stride, (mask.shape, stride)
    assert not width % stride, (mask.shape, stride)
    cells = (mask > 0).reshape(*batch, height // stride, stride, width // stride, stride)
    return np.asarray(cells.any(axis=(-3, -1)))


def rounded_up(sets: np.ndarray, allowed: np.ndarray, multiple: int) -> np.ndarray:
    """Grow the active tokens of each sample (B, rows, columns) by neighbours, so that all samples have the
    same number of tokens, a multiple of `multiple`.

    A batch needs equal numbers, and a compiled model then sees few different sizes. Only `allowed` neighbours
    are added; if there are too few, all of them.
    """
    assert multiple > 0
    most = int(sets.sum((1, 2)).max())
    return np.stack([grown_to(one, allowed, -(-most // multiple) * multiple) for one in sets])


def grown_to(active: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """Grow the active tokens by `allowed` neighbours to `count` tokens, or fewer if there are not enough.

    Neighbours are added ring by ring, within a ring in reading order. An empty set stays empty.
    """
    assert active.shape == allowed.shape
    chosen = active.copy()
    missing = max(0, count - int(chosen.sum()))
    while missing and chosen.any():
        ring = (masks.grow(chosen.astype(np.uint8), 1) > 0) & allowed & ~chosen
        if not ring.any():  # allowed tokens need not be connected with the active ones
            ring = allowed & ~chosen
        taken = np.flatnonzero(ring)[:missing]
        if len(taken) == 0:
            break
        chosen.flat[taken] = True
        missing -= len(taken)
    return chosen


def background_tokens(panel: Image.Image, stride: int) -> np.ndarray:
    """Tokens of a product panel that show only plain background and can be left out: (rows, columns) bool.

    A token is left out if three conditions hold. All its pixels are within `PLAIN` of the border's colour and
    connected with the border. Its eight neighbours show only background too (soft edges and shadows reach
    that far). And it does not lie between garment tokens in its row or column: a white shirt in front of
    white shows little more than its outline, and the inside must stay. No token is left out if the garment
    cannot be told from its background, or covers less than a fiftieth of the panel.
    """
    try:
        garment = garment_mask(panel, PLAIN)
    except InputError:
        garment = np.zeros(panel.size[::-1], dtype=bool)
    if garment.mean() < 0.02:
        return np.zeros((panel.height // stride, panel.width // stride), dtype=bool)
    seen = latent_mask(garment, stride)
    between = _between(seen) | _between(seen.T).T
    return np.asarray(masks.grow((seen | between).astype(np.uint8), 1) == 0)


def _between(seen: np.ndarray) -> np.ndarray:
    """Tokens that are in `seen`, or have tokens of `seen` both before and after them in their row."""
    return np.asarray(
        np.logical_or.accumulate(seen, axis=1) & np.logical_or.accumulate(seen[:, ::-1], axis=1)[:, ::-1]
    )


def background_of(canvas: Image.Image, layout: PanelLayout, roles: Sequence[str], stride: int) -> np.ndarray:
    """`background_tokens` of the panels of `roles`, on the token grid of the canvas; elsewhere False."""
    left_out = np.zeros((layout.size[1] // stride, layout.size[0] // stride), dtype=bool)
    for role in roles:
        left, top, right, bottom = layout.box(role, stride)
        left_out[top:bottom, left:right] = background_tokens(canvas.crop(layout.box(role)), stride)
    return left_out
