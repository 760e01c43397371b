"""Polygons around the white area of a mask: the way back from `masks.polygon_mask`.

The borders are followed along the edges of pixels, then simplified as far as the area allows it (Ramer 1972,
Douglas and Peucker 1973). A hole becomes part of the outline around it: a cut of no width leads to it and
back, and it runs the other way round, so that its winding number is 0.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.masks import bounds, polygon_mask
from triptych.pictures.polygons import MAX_POLYGONS, Polygon

KEPT = 0.995
"""Least intersection over union of the mask and its polygons."""
_SPECKS = 0.001  # share of the white area that specks and pinholes left out may have together
_COARSEST = 1 / 200  # first tolerance of the simplification, as a fraction of the mask's longer side
_FINEST = 0.3  # pixels; a smaller tolerance keeps the steps of a slanting line
_FINER = 0.7  # from one tolerance to the next
_FEW = 40  # corners that need no simplification: of a box, for one
_SPAN = 512  # most corners that are simplified at once: the worst case is quadratic in them
MAX_STEPS = 1_000_000  # pixel edges on borders; a garment in a photo of 24 megapixels has 50,000
MAX_LOOPS = 20_000  # borders; specks and pinholes have one, too


def outlines(mask: Image.Image | np.ndarray) -> list[Polygon]:
    """The polygons around the white area of a mask, few corners each, so that a person can correct them.

    Filled again they cover the mask with an intersection over union of at least `KEPT`. Specks and pinholes
    of less than 0.1 % of the area together are left out. White pixels that touch at a corner only belong to
    two polygons.

    Args:
        mask: a greyscale picture, white from 128 on, or bool (H, W).

    Returns:
        polygons with corners (x, y) in pixels, as `masks.polygon_mask` takes them, largest first. A hole is
        joined to the outline around it.

    Raises:
        InputError: the mask is black, or so ragged that it would take too many corners.
    """
    white = np.asarray(mask.convert("L")) > 127 if isinstance(mask, Image.Image) else np.asarray(mask)
    assert white.ndim == 2
    assert white.dtype == bool
    box = bounds(white)
    white = white[box.top : box.bottom, box.left : box.right]
    loops = _without_specks(_loops(white), white.sum())
    if len(loops) > MAX_POLYGONS:
        raise _ragged()
    _join(loops, white.shape[1] + 1)
    exact = _polygons(loops, 0.0)
    tolerance = max(white.shape) * _COARSEST if sum(map(len, exact)) > _FEW else 0.0
    while True:
        polygons = _polygons(loops, tolerance) if tolerance > _FINEST else exact
        if _overlap(polygons, white) >= KEPT:
            return [[(x + box.left, y + box.top) for x, y in corners] for corners in polygons]
        if polygons is exact:
            raise _ragged()
        tolerance *= _FINER


def _ragged() -> InputError:
    return InputError(
        "The mask is too ragged to be outlined.", "Smooth it, or remove its specks; a mask is white or black."
    )


def _overlap(polygons: list[Polygon], white: np.ndarray) -> float:
    """Intersection over union of polygons and mask; 0 if `polygon_mask` refuses the polygons."""
    try:
        filled = polygon_mask(polygons, (white.shape[1], white.shape[0])) >= 0.5
    except InputError:
        return 0.0
    return float((filled & white).sum() / (filled | white).sum())


# --- borders
# ------------------------------------------------------------------------------------------------------------


class _Loop:
    """A closed border, with the white area to the right of every step (in a picture, y downwards).

    points: (2 N, 2) middles and corners of pixel edges by turns, beginning with a middle; that of a hole is
    in its leftmost edge, where it is cut open. area: in pixels, negative for a hole. pins: indices of middles
    that stay. holes: those that a cut leads to, by pin.
    """

    def __init__(self, corners: np.ndarray) -> None:
        x, y = corners.T.astype(float)
        self.area = float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
        if self.area < 0:
            downwards = np.roll(y, -1) > y
            corners = np.roll(corners, -int(np.argmin(np.where(downwards, x, np.inf))), axis=0)
        after = np.roll(corners, -1, axis=0)
        self.points = np.stack([(corners + after) / 2, after], axis=1).reshape(-1, 2)
        self.pins = {0}
        self.holes: dict[int, list[_Loop]] = {}


def _loops(white: np.ndarray) -> list[_Loop]:
    """All borders of a mask (H, W). At a corner where two white pixels touch, each keeps its own border."""
    inside = np.pad(white, 1)
    above, below, left, right = inside[:-1], inside[1:], inside[:, :-1], inside[:, 1:]
    across, down = (above != below)[:, 1:], (left != right)[1:]  # edges that begin at a corner of a pixel
    wide = white.shape[1] + 1
    # Steps east, south, west and north from each corner (H + 1, W + 1), flat.
    steps = [np.zeros((white.shape[0] + 1, wide), dtype=bool) for _ in range(4)]
    steps[0][:, :-1] = (across & below[:, 1:])[:, :-1]
    steps[2][:, 1:] = (across & above[:, 1:])[:, :-1]
    steps[1][:-1] = (down & left[1:])[:-1]
    steps[3][1:] = (down & right[1:])[:-1]
    if sum(int(one.sum()) for one in steps) > MAX_STEPS:
        raise _ragged()
    starts = np.flatnonzero(steps[0]).tolist()  # every border has a step to the east
    there = [one.tobytes() for one in steps]
    left_to_go = bytearray(there[0])
    moves = (1, wide, -1, -wide)
    loops = list[_Loop]()
    for start in starts:
        if not left_to_go[start]:
            continue
        at, heading, path = start, 0, list[int]()
        while not path or at != start or heading != 0:
            if heading == 0:
                left_to_go[at] = 0
            path.append(at)
            at += moves[heading]
            # Right first: where two white pixels touch at a corner, the border stays at the same pixel.
            heading = next(turned for turn in (1, 0, 3) if there[turned := (heading + turn) % 4][at])
        y, x = np.divmod(np.array(path), wide)
        if len(loops) == MAX_LOOPS:
            raise _ragged()
        loops.append(_Loop(np.stack([x, y], axis=1)))
    return loops


def _without_specks(loops: list[_Loop], white: int) -> list[_Loop]:
    """The borders without the smallest ones, the largest first."""
    loops = sorted(loops, key=lambda loop: abs(loop.area))
    sums = np.cumsum([abs(loop.area) for loop in loops])
    kept = loops[int(np.searchsorted(sums, _SPECKS * white, side="right")) :]
    return kept[::-1]


# --- from borders to polygons
# ------------------------------------------------------------------------------------------------------------


def _join(loops: list[_Loop], wide: int) -> None:
    """Find a cut from every hole to the border at its left, which may be another hole's, and pin its end.
    wide: pixel corners in a row.
    """
    steps, owners, places = [], [], []
    for number, loop in enumerate(loops):  # where borders run upwards, white lies to their right
        (x, y), (_, after) = loop.points[::2].T, loop.points[1::2].T
        (up,) = np.nonzero(after < y)
        steps.append((after[up] * wide + x[up]).astype(int))
        owners.append(np.full(len(up), number))
        places.append(2 * up)
    order = np.argsort(np.concatenate(steps))
    step, owner, place = (np.concatenate(parts)[order] for parts in (steps, owners, places))
    for loop in loops:
        if loop.area < 0:
            x, row = loop.points[0].astype(int).tolist()
            # What lies between is white, but for specks and pinholes that were left out.
            found = int(np.searchsorted(step, row * wide + x)) - 1
            assert found >= 0 and step[found] // wide == row
            target, pin = loops[owner[found]], int(place[found])
            target.pins.add(pin)
            target.holes.setdefault(pin, []).append(loop)


def _polygons(loops: list[_Loop], tolerance: float) -> list[Polygon]:
    """The outer borders with their holes, simplified."""
    walks: dict[_Loop, Polygon] = {}
    # A hole lies to the right of what it is joined to, and is done before it.
    for loop in sorted(loops, key=lambda loop: (loop.area > 0, -loop.points[0, 0])):
        walk: Polygon = []
        for index in _simplified(loop, tolerance):
            x, y = loop.points[index].tolist()
            walk.append(corner := (x, y))
            for hole in loop.holes.get(index, []):
                walk += [*walks[hole], walks[hole][0], corner]
        walks[loop] = walk
    return [walks[loop] for loop in loops if loop.area > 0]


def _simplified(loop: _Loop, tolerance: float) -> list[int]:
    """Indices of the points that are kept: the pins, and as few corners as leave no point farther than
    `tolerance` from the border; with 0, all corners.
    """
    pins = sorted(loop.pins)
    step = 1 if tolerance == 0 else 2  # the middles of stairs lie on a straight line
    ring = loop.points[::step]
    turns = (np.roll(ring, -1, axis=0) + np.roll(ring, 1, axis=0) != 2 * ring).any(axis=1)
    turns[np.array(pins) // step] = True
    chosen = np.flatnonzero(turns) * step
    if tolerance == 0:
        return list(chosen.tolist())
    points = np.concatenate([loop.points[chosen], loop.points[:1]])
    fixed = np.searchsorted(chosen, pins).tolist()
    ends = sorted({*fixed, *range(0, len(chosen), _SPAN), len(chosen)})
    kept, spans = {*ends}, list(pairwise(ends))
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        offsets, along = points[first + 1 : last] - points[first], points[last] - points[first]
        share = np.clip(offsets @ along / max(float(along @ along), 1e-9), 0, 1)
        away = np.hypot(*(offsets - share[:, None] * along).T)
        far = int(away.argmax())
        if away[far] > tolerance:
            kept.add(first + 1 + far)
            spans += [(first, first + 1 + far), (first + 1 + far, last)]
    kept.discard(len(chosen))
    return [int(chosen[index]) for index in sorted(kept)] if len(kept) > 2 else _simplified(loop, 0.0)
