"""PolygonMaskAnnotator: draw the repainted area in a notebook; get a mask, or a file for `triptych tryon
--polygon`.
"""

from __future__ import annotations

import base64
import functools
import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.errors import InputError, TriptychError
from triptych.pictures import mask_checks, masks
from triptych.pictures.annotations import read_annotations
from triptych.pictures.images import load_image
from triptych.pictures.polygons import Polygons, check_polygons, to_dict, write_polygons

PREVIEW = 1600  # longest side in pixels of the photo in the browser; in full it would have tens of megabytes


class PolygonMaskAnnotator:
    """A canvas for outlines around the repainted area (inside = repainted = white).

        annotator = PolygonMaskAnnotator("person.jpg")
        annotator.show()                    # draw, close the outline
        annotator.save("polygon.json")      # in another cell; or annotator.get_mask()

    Works in Jupyter, Colab, VS Code and marimo. Only closed outlines count; several mean their union,
    and holes are cut out of all of them.
    """

    def __init__(
        self, image: Image.Image | np.ndarray | str | Path, polygons: Polygons | str | Path | None = None
    ) -> None:
        """
        Args:
            image: the person photo: a path (turned upright by its EXIF tag, as in `triptych tryon`), a PIL
                image, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8. Images and arrays are not turned.
            polygons: outlines to start with, corners (x, y) in pixels of the photo; or a file that
                `triptych tryon` has written with --mask-out, or that --polygon reads, with its holes.

        Raises:
            InputError: the photo cannot be read, the array is no picture, or the polygons are malformed.
            TriptychError: anywidget is not installed.
        """
        self.image = _picture(image)
        self.widget: Any = _canvas_class()(
            image_url=_data_url(self.image), width=self.image.width, height=self.image.height
        )
        if isinstance(polygons, str | Path):
            name = Path(image).name if isinstance(image, str | Path) else ""
            drawn, _ = read_annotations(Path(polygons), self.image.size, name)
            self._draw(drawn.polygons, drawn.holes)
        elif polygons:
            self.polygons = polygons

    @property
    def polygons(self) -> Polygons:
        """The closed outlines, corners (x, y) in pixels of the photo. Setting them redraws the canvas."""
        drawn = self.widget.polygons
        return check_polygons(drawn) if drawn else []

    @polygons.setter
    def polygons(self, polygons: Polygons) -> None:
        self._draw(polygons, self.holes)

    @property
    def holes(self) -> Polygons:
        """The closed holes, which are cut out of all outlines. Setting them redraws the canvas."""
        drawn = self.widget.holes
        return check_polygons(drawn, "The drawing", "hole") if drawn else []

    @holes.setter
    def holes(self, holes: Polygons) -> None:
        self._draw(self.polygons, holes)

    def _draw(self, polygons: Polygons, holes: Polygons) -> None:
        polygons = check_polygons(polygons) if polygons else []
        holes = check_polygons(holes, "The drawing", "hole") if holes else []
        with self.widget.hold_sync():  # one message: the canvas never sees half of it
            self.widget.polygons = to_dict(polygons)["polygons"]
            self.widget.holes = to_dict(holes)["polygons"]

    def show(self) -> None:
        """Show the canvas below the notebook cell."""
        from IPython.display import display

        display(self.widget)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The canvas, which a notebook shows for an annotator in the last line of a cell."""
        return self.widget._repr_mimebundle_(**kwargs)

    def get_mask(self) -> np.ndarray:
        """(H, W) uint8 with the size of the photo: 255 (repaint) for every pixel that an outline touches and
        no hole covers, 0 elsewhere.

        Raises:
            InputError: no closed outline yet, or one without area; or holes leave nothing of them.
        """
        if not self.widget.polygons:
            raise InputError(
                "Nothing is drawn yet.",
                "Click around what is to be repainted and close the outline (Enter or double-click).",
            )
        mask = masks.repaint_mask(self.polygons, self.image.size, holes=self.holes)
        return np.where(mask > 0, np.uint8(255), np.uint8(0))

    def preview(self) -> Image.Image:
        """The photo with the repainted area tinted.

        Raises:
            InputError: see `get_mask`.
        """
        return mask_checks.preview(self.image, self.get_mask() / np.float32(255))

    def save(self, path: str | Path) -> Path:
        """Write the outlines for `triptych tryon --polygon PATH`; return the path.

        Raises:
            InputError: see `get_mask`; unusable outlines are not saved.
        """
        self.get_mask()
        write_polygons(Path(path), self.polygons, self.image.size, self.holes)
        return Path(path)

    def clear(self) -> None:
        """Remove all outlines and holes."""
        self._draw([], [])


def _picture(image: Any) -> Image.Image:
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or image.shape[2:] not in ((), (3,), (4,))
            or image.size == 0
        ):
            raise InputError(
                f"An array of shape {image.shape} and type {image.dtype} is not a picture.",
                "Give (height, width, 3) values of uint8, or the path of the photo.",
            )
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(
            f"A {type(image).__name__} is not a picture.", "Give a path, a PIL image or a numpy array."
        )
    return image


def _data_url(image: Image.Image) -> str:
    """A preview of the photo, at most `PREVIEW` pixels a side, as a data URL, which needs no request."""
    small = image.convert("RGB")
    small.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


@functools.cache
def _canvas_class() -> Any:
    """The widget class; defined at first use because anywidget is an optional extra.

    Raises:
        TriptychError: anywidget is not installed.
    """
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise TriptychError(
            "The polygon canvas needs anywidget, which is not installed.",
            "In a clone of triptych: pip install '.[notebook]'.",
        ) from error

    class PolygonCanvas(anywidget.AnyWidget):  # type: ignore[misc, unused-ignore]
        """The state that Python and the browser share. `polygons` and `holes` are set from both
        sides.
        """

        _esm = (resources.files("triptych") / "web" / "polygon_canvas.js").read_text(encoding="utf-8")
        image_url = traitlets.Unicode().tag(sync=True)
        width = traitlets.Int(1).tag(sync=True)
        height = traitlets.Int(1).tag(sync=True)
        polygons: Any = traitlets.List().tag(sync=True)
        holes: Any = traitlets.List().tag(sync=True)

    return PolygonCanvas
