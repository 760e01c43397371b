"""What a user gives to say which area of a photo is repainted: polygons or a mask, in memory or in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures import given_masks, masks
from triptych.pictures.annotations import read_annotations
from triptych.pictures.outlines import outlines
from triptych.pictures.polygons import Outlines, Polygons, check_polygons, check_units


@dataclass(frozen=True)
class Area:
    """An area as it was given, before it is widened: polygons, or a mask (H, W) in [0, 1]."""

    drawn: Outlines | None
    mask: np.ndarray | None
    warnings: list[str] = field(default_factory=list)

    def polygons(self) -> Outlines:
        """The area as polygons; of a mask, with an overlap of at least `outlines.KEPT`.

        Raises:
            InputError: the mask is too ragged.
        """
        if self.drawn is not None:
            return self.drawn
        assert self.mask is not None
        return Outlines(outlines(self.mask >= 0.5), [], True)

    def repainted(
        self, size: tuple[int, int], grow: int = 0, expand: Literal["none", "hull"] = "none"
    ) -> np.ndarray:
        """The area, widened: (H, W) float32 in [0, 1], 1 = repaint. size: (width, height) of the photo.

        Raises:
            InputError: see `masks.repaint_mask`.
        """
        if self.mask is not None and expand == "none":
            return masks.grow(self.mask, grow)
        polygons, holes, _ = self.polygons()
        return masks.repaint_mask(polygons, size, holes=holes, grow_by=grow, expand=expand)


def area_of(
    size: tuple[int, int],
    polygons: Polygons | Path | str | None,
    mask: np.ndarray | Image.Image | Path | str | None,
    *,
    photo: str = "",
    labels: str = "",
) -> Area:
    """The area that a user gives. Files may be of any kind that `read_annotations` or `read_mask` read.

    Args:
        size: (width, height) of the upright photo. photo, labels: see `read_annotations`.

    Raises:
        InputError: neither polygons nor a mask, both, or an unusable one.
    """
    check_given(polygons, mask)
    if labels and not isinstance(polygons, Path | str):
        raise InputError(
            "Labels stand in files of polygons alone.", "Leave --polygon-label out, or give such a file."
        )
    if isinstance(polygons, Path | str):
        found, warnings = read_annotations(Path(polygons), size, photo, labels)
        return Area(found, None, warnings)
    if polygons is not None:
        drawn = check_polygons(polygons)
        return Area(Outlines(drawn, [], False), None, check_units(drawn, size))
    if isinstance(mask, Path | str):
        white, warnings = given_masks.read_mask(Path(mask), size)
        return Area(None, white.astype(np.float32), warnings)
    return Area(None, given_masks.as_mask(mask, size))


def whole(size: tuple[int, int]) -> Area:
    """The whole photo: no limit. size: (width, height)."""
    return Area(None, np.ones((size[1], size[0]), np.float32))


def check_given(polygons: object, mask: object) -> None:
    """Raises InputError unless one of the two is given."""
    if (polygons is None) == (mask is None):
        raise InputError("A person needs polygons or a mask, one of the two.", "Give polygons=…, or mask=….")
