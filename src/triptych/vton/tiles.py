"""Where the second pass of a try-on looks: tiles of the photo, in finer detail than in the first pass."""

from __future__ import annotations

import math

import numpy as np

from triptych.pictures import masks
from triptych.pictures.panels import Box, PanelLayout
from triptych.vton.fit import shown_box
from triptych.vton.request import Request

TIMES = 2.0
"""How much finer than the first pass the second one shows the photo."""
WORTH = 1.25
"""The least that pays. Less is left of a photo that the first pass shows almost at its own resolution."""
OVERLAP = 0.25
"""Share of a tile's sides that it has in common with the next one."""


def finer(box: Box, layout: PanelLayout) -> float:
    """How much finer than the panel, which shows `box`, a second pass can show the photo: `TIMES`, or less
    where that would be finer than the photo; 1 if nothing is gained.
    """
    size = box.right - box.left, box.bottom - box.top
    times = min(TIMES, max(size[0] / layout.width, size[1] / layout.height))
    return times if times >= WORTH else 1.0


def tiles(mask: np.ndarray, box: Box, layout: PanelLayout) -> list[Box]:
    """The parts of the photo that the second pass shows, one in each panel; together they hold the mask.

    They have the panel's shape where the photo is large enough, and the same size. Neighbours overlap by
    `OVERLAP` or more. None if the mask (H, W) is empty, or nothing is gained. box: the part of the photo that
    the first pass has shown.
    """
    times = finer(box, layout)
    if times == 1.0 or not mask.any():
        return []
    pixels = max((box.right - box.left) / layout.width, (box.bottom - box.top) / layout.height) / times
    height, width = mask.shape
    left, top, right, bottom = masks.bounds(mask)
    columns = _spread(left, right, math.ceil(layout.width * pixels - 1e-6), width)
    rows = _spread(top, bottom, math.ceil(layout.height * pixels - 1e-6), height)
    found = [Box(x, y, x + w, y + h) for y, h in rows for x, w in columns]
    return [tile for tile in found if mask[tile.top : tile.bottom, tile.left : tile.right].any()]


def _spread(start: int, stop: int, length: int, limit: int) -> list[tuple[int, int]]:
    """(start, length) of equal intervals in [0, limit) that together cover [start, stop)."""
    length = min(length, limit)
    over = stop - start - length
    if over <= 0:
        return [(min(max(start + over // 2, 0), limit - length), length)]
    count = 1 + math.ceil(over / (length * (1 - OVERLAP)))
    return [(start + over * number // (count - 1), length) for number in range(count)]


def nothing_finer(request: Request, layout: PanelLayout) -> list[str]:
    """A warning if the request asks for a second pass that has nothing to add."""
    person, fit = request.person, request.fit
    if not fit.refine:
        return []
    box = shown_box(masks.feather(person.repainted(), fit.feather), layout, fit.margin)
    if finer(box, layout) > 1:
        return []
    return ["There is no second pass (refine): the first one shows almost all detail that the photo has."]
