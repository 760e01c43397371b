"""PanelLayout: the position of each picture on the single canvas of an In-Context LoRA (arXiv 2410.23775).

All boxes are (left, top, right, bottom), half open. Panels are listed in reading order, all of one size.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from triptych.errors import InputError


class Box(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class PanelLayout:
    """A grid of panels: `roles` in reading order, `columns` in a row, every panel `width` × `height` pixels.

    made: the roles that a model generates; by default the last role. The others are `given`: photos that it
    sees. trim: photos of products are cut to the garment and this margin, a share of its longer side, before
    they are fitted into panels; None: they are fitted whole. Layouts that differ in it alone are equal.
    """

    width: int
    height: int
    roles: tuple[str, ...]
    columns: int
    made: tuple[str, ...] = ()
    trim: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.width > 0 and self.height > 0 and self.columns > 0
        assert len(self.roles) % self.columns == 0 and len(set(self.roles)) == len(self.roles)
        assert {*self.made} <= {*self.roles}, (self.made, self.roles)
        made = tuple(role for role in self.roles if role in self.made) or self.roles[-1:]
        object.__setattr__(self, "made", made)

    @property
    def given(self) -> tuple[str, ...]:
        """The roles that are not generated, in reading order."""
        return tuple(role for role in self.roles if role not in self.made)

    @property
    def rows(self) -> int:
        return len(self.roles) // self.columns

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the canvas in pixels."""
        return self.width * self.columns, self.height * self.rows

    def box(self, role: str, unit: int = 1) -> Box:
        """The box of a role's panel, in units of `unit` pixels (1: pixels, 8: FLUX latents, 16:
        FLUX tokens).
        """
        row, column = divmod(self.roles.index(role), self.columns)
        width, height = self.width // unit, self.height // unit
        return Box(column * width, row * height, (column + 1) * width, (row + 1) * height)

    def mask(self, roles: Sequence[str], unit: int = 1) -> np.ndarray:
        """(H, W) bool, True in the panels of `roles`, in units of `unit` pixels."""
        mask = np.zeros((self.size[1] // unit, self.size[0] // unit), dtype=bool)
        for role in roles:
            left, top, right, bottom = self.box(role, unit)
            mask[top:bottom, left:right] = True
        return mask

    def only(self, roles: Sequence[str]) -> PanelLayout:
        """A layout of these roles alone, all made. They keep their grid if they fill one, else they stand in
        a row.
        """
        places = [divmod(number, self.columns) for number, role in enumerate(self.roles) if role in roles]
        rows, columns = ({place[axis] for place in places} for axis in (0, 1))
        kept = tuple(role for role in self.roles if role in roles)
        across = len(columns) if len(rows) * len(columns) == len(kept) else len(kept)
        return replace(self, roles=kept, columns=across, made=kept)

    def among(self, roles: Collection[str]) -> PanelLayout:
        """The layout without the panels of other roles. Unless all are among `roles`, they stand in a row."""
        kept = tuple(role for role in self.roles if role in roles)
        if kept == self.roles:
            return self
        made = tuple(role for role in self.made if role in roles)
        return replace(self, roles=kept, columns=len(kept), made=made)

    def check(self, stride: int) -> PanelLayout:
        """Return self if every seam falls on the token grid of `stride` pixels.

        Raises:
            InputError: a panel side that `stride` does not divide.
        """
        if self.width % stride or self.height % stride:
            near = [max(stride, round(side / stride) * stride) for side in (self.width, self.height)]
            raise InputError(
                f"Panels of {self.width}×{self.height} px do not fall on the model's grid of {stride} px.",
                f"Use {near[0]}×{near[1]} instead.",
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON. `made` is left out if it is the last role, the default; so is no `trim`."""
        data = asdict(self) | {"roles": list(self.roles), "made": list(self.made)}
        if self.made == self.roles[-1:]:
            del data["made"]
        if self.trim is None:
            del data["trim"]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> PanelLayout:
        """Parse a layout as `to_dict` writes it. The data may come from any file, so all of it is checked.

        Raises:
            ValueError: missing keys; numbers of the wrong type or out of range; roles that are not distinct
                plain words or do not fill the rows; or `made` with unknown roles.
        """
        if not isinstance(data, dict) or not {"width", "height", "roles", "columns"} <= data.keys():
            raise ValueError("a layout needs width, height, roles and columns")
        for name in ("width", "height", "columns"):
            if type(data[name]) is not int or not 0 < data[name] <= MAX_SIDE:
                raise ValueError(f"the {name} of a layout is a whole number from 1 to {MAX_SIDE}")
        roles, columns = data["roles"], data["columns"]
        if (
            not isinstance(roles, list | tuple)
            or not roles
            or len(roles) > MAX_PANELS
            or not all(map(_is_role, roles))
        ):
            raise ValueError(f"the roles of a layout are 1 to {MAX_PANELS} words without slashes")
        if len(set(roles)) != len(roles):
            raise ValueError("the roles of a layout are not all different")
        if len(roles) % columns:
            raise ValueError(f"{len(roles)} roles do not fill rows of {columns}")
        made = data.get("made", [])
        if not isinstance(made, list | tuple) or any(role not in roles for role in made):
            raise ValueError("what is made of a layout is a list of its roles")
        trim = data.get("trim")
        if trim is not None and (type(trim) not in (int, float) or not 0 <= trim <= 1):
            raise ValueError("the trim of a layout is a number from 0 to 1")
        return cls(data["width"], data["height"], tuple(roles), columns, tuple(made), trim)


PLAIN_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
"""Form of a role in a LoRA's file; it becomes part of file names."""
MAX_SIDE, MAX_PANELS = 65_536, 64
"""Limits for a layout from a file: pixels of a panel's side, and number of panels."""


def _is_role(value: Any) -> bool:
    """Whether a value can be a role. Roles name panels in file names, log entries and tables."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 40
        and value.isprintable()
        and not set(value) & set("/\\:")
        and value[0] != "."
    )


def equal_boxes(size: tuple[int, int], layout: PanelLayout) -> list[Box]:
    """The boxes of the panels on a canvas of `size` (width, height) with the layout's rows and columns, in
    reading order. If they do not divide the size, panels differ by a pixel.
    """
    width, height = size
    xs = [number * width // layout.columns for number in range(layout.columns + 1)]
    ys = [number * height // layout.rows for number in range(layout.rows + 1)]
    return [
        Box(xs[column], ys[row], xs[column + 1], ys[row + 1])
        for row in range(layout.rows)
        for column in range(layout.columns)
    ]


class Placement(NamedTuple):
    """The position of a fitted picture inside its panel, in panel pixels; the rest is padding."""

    left: int
    top: int
    width: int
    height: int


def place(size: tuple[int, int], width: int, height: int) -> Placement:
    """The position of a picture of `size` (w, h) that is scaled to fit `width` × `height`: centred, aspect
    kept.
    """
    scale = min(width / size[0], height / size[1])
    fitted = max(1, min(width, round(size[0] * scale))), max(1, min(height, round(size[1] * scale)))
    return Placement((width - fitted[0]) // 2, (height - fitted[1]) // 2, *fitted)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Fit the whole picture into `width` × `height`: scaled with its aspect kept, the rest filled by
    extending its edges.

    Nothing is cropped. Edge extension keeps a plain studio background plain instead of adding bars.
    """
    left, top, w, h = place(image.size, width, height)
    pixels = np.asarray(image.convert("RGB").resize((w, h), Image.Resampling.LANCZOS))
    around = ((top, height - top - h), (left, width - left - w), (0, 0))
    return Image.fromarray(np.pad(pixels, around, mode="edge"))


def concatenate(images: Sequence[Image.Image], layout: PanelLayout) -> Image.Image:
    """One canvas with every picture fitted into its panel, in the order of `layout.roles`."""
    assert len(images) == len(layout.roles)
    canvas = Image.new("RGB", layout.size)
    for role, image in zip(layout.roles, images, strict=True):
        canvas.paste(fit(image, layout.width, layout.height), layout.box(role)[:2])
    return canvas


def split(canvas: Image.Image, layout: PanelLayout) -> list[Image.Image]:
    """The panels of a canvas, in the order of `layout.roles`.

    Raises:
        InputError: the canvas and the layout differ in size.
    """
    if canvas.size != layout.size:
        raise InputError(
            f"The picture is {canvas.size[0]}×{canvas.size[1]} px, its layout "
            f"{layout.size[0]}×{layout.size[1]}."
        )
    return [canvas.crop(layout.box(role)) for role in layout.roles]
