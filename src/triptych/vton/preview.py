"""What a try-on shows of its area: a picture to judge it by, and polygons to correct it by."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.pictures import mask_checks, masks, polygons
from triptych.pictures.outlines import outlines
from triptych.pictures.saving import save_png
from triptych.store.files import digest, parse_json, write_json
from triptych.vton.config import TryonConfig

if TYPE_CHECKING:
    from triptych.vton.files import Inputs

log = logging.getLogger(__name__)

PREVIEW_SIDE = 1600  # pixels; enough to judge a mask by


class Preview(NamedTuple):
    """What is written before a model is loaded: a picture that shows the repainted area, and the area before
    it was widened, as the content of a polygon file; None if that is not wanted.
    """

    picture: Image.Image
    polygons: dict[str, Any] | None


def preview_of(inputs: Inputs) -> Preview | None:
    """The repainted area, to be looked at and to be corrected; None if only the made picture tells.

    Raises:
        InputError: the mask is too ragged to be written as polygons.
    """
    person, fit = inputs.request.person, inputs.request.fit
    if fit.mask_free:
        return None
    picture = _shown(person.start or person.photo, masks.feather(person.repainted(), fit.feather))
    if not inputs.config.mask_out:
        return Preview(picture, None)
    drawn = polygon_file(inputs.area.polygons(), person.photo.size, proposed=inputs.config.proposes)
    return Preview(picture, drawn)


def polygon_file(drawn: polygons.Outlines, size: tuple[int, int], *, proposed: bool) -> dict[str, Any]:
    """The content of a polygon file. That of a proposal has its digest, which shows that nobody has corrected
    it.
    """
    data = polygons.to_dict(drawn.polygons, size, drawn.holes)
    return data | ({"proposed": digest(data)} if proposed else {})


def _only_proposed(data: Any) -> bool:
    """Whether a polygon file is a proposal as it was written."""
    rest = {key: value for key, value in data.items() if key != "proposed"} if isinstance(data, dict) else {}
    return bool(rest) and data.get("proposed") == digest(rest)


def _shown(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    """A photo with an area (H, W) in [0, 1] marked, small enough to look at."""
    small, shown = photo.copy(), masks.mask_image(mask)
    for picture in (small, shown):
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BOX)
    return mask_checks.preview(small, np.asarray(shown).astype(np.float32) / np.float32(255))


def write_preview(config: TryonConfig, preview: Preview | None) -> None:
    """Write the picture that shows the repainted area, and `mask_out`.

    Raises:
        InputError: `mask_out` is there already and holds something else.
    """
    if preview is None:
        return
    save_png(preview.picture, config.preview, text={"Software": "triptych"})
    if config.mask_out and preview.polygons:
        there = _json_in(config.mask_out) if config.mask_out.exists() else preview.polygons
        if there != preview.polygons and not _only_proposed(there):
            raise InputError(
                f"{config.mask_out} is there already, and holds something else.",
                "If you have corrected it, give it with --polygon; otherwise choose another --mask-out.",
            )
        write_json(config.mask_out, preview.polygons)


def _json_in(path: Path) -> Any:
    """The content of a JSON file; None if it is none."""
    try:
        return parse_json(polygons.read_polygon_text(path))
    except (InputError, ValueError):
        return None


def write_changed(config: TryonConfig, photo: Image.Image, path: Path, mask: np.ndarray) -> None:
    """Write what a mask-free try-on changed: a picture that shows it, and polygons to correct it by. A
    polygon file of other content stays: it may have been corrected.
    """
    save_png(_shown(photo, mask), path.with_name(f"{path.stem}-mask.png"), text={"Software": "triptych"})
    drawn = polygons.to_dict(outlines(mask >= 0.5), photo.size)
    file = config.mask_out if config.mask_out and len(config.seeds) == 1 else None
    file = file or path.with_name(f"{path.stem}-mask.json")
    if not file.exists() or _json_in(file) == drawn:
        write_json(file, drawn)
    else:
        log.warning("%s is there already, and stays as it is: it may have been corrected.", file)
