"""From what is filled in on the page to a request of the API, and back from a picture made before."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.colours import from_srgb
from triptych.pictures.images import load_image, load_original
from triptych.pictures.polygons import Outlines, check_polygons, read_outlines
from triptych.pictures.saving import save_png
from triptych.server.page.context import Context
from triptych.store.files import sha256_file
from triptych.verbs.reproduce import about_of, hashes_in, picture_settings
from triptych.vton.config import TryonConfig

PHOTOS = ("front", "back", "person")
AUTO, FREE = "auto", "free"
"""How the region is said, besides by a kind of garment: by the prompt; not at all (mask-free)."""


def uploaded(context: Context, path: str | None) -> str | None:
    """The id of a dropped photo among the uploads; its bytes are kept as they are.

    Raises:
        InputError: it is no picture.
    """
    return context.uploads.add(Path(path).read_bytes()).id if path else None


def tryon_request(
    photos: Mapping[str, str | None],
    region: Mapping[str, Any] | None,
    kind: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The request of a try-on, as the API takes it.

    Args:
        photos: ids of uploads. region: the canvas's value. kind: a kind of garment, `AUTO`, or `FREE`.
            settings: by name; None is the default.

    Raises:
        InputError: a photo is missing, or the outlines are none, or one is not closed yet.
    """
    for name, words in (("front", "photo of the garment"), ("person", "photo of the person")):
        if not photos.get(name):
            raise InputError(f"There is no {words} yet.", f"Drop one at “{name.capitalize()}”.")
    request: dict[str, Any] = {name: id for name, id in photos.items() if id}
    request |= {name: value for name, value in settings.items() if value is not None and value != ""}
    drawn = dict(region or {})
    _check_closed(drawn.get("open"))
    if drawn.get("polygons"):
        request["polygons"] = check_polygons(drawn["polygons"], "The drawing")
        if drawn.get("holes"):
            request["holes"] = check_polygons(drawn["holes"], "The drawing", "hole")
    elif kind != FREE:
        request["mask"] = AUTO if kind == AUTO else f"{AUTO}:{kind}"
    if kind == FREE:
        request["mask_free"] = True
    return request


def _check_closed(corners: object) -> None:
    """Refuse an outline that somebody still draws: without it the region would be another one."""
    if not isinstance(corners, int) or corners < 1:
        return
    many = "1 corner" if corners == 1 else f"{corners} corners"
    close = "Press “Close outline”" if corners >= 3 else "Set three corners or more and close it"
    raise InputError(
        f"An outline is not closed yet: it has {many}.",
        f"{close}, or take it back with “Undo”. Then press “Dress” again.",
    )


def painted(context: Context, person: str, layers: list[Any]) -> str:
    """The id of the person's photo with strokes on it; the photo's own id if there are none.

    Only the pixels under a stroke change: the photo keeps its size, its colours and its profile.

    Args:
        layers: of gradio's editor, (H, W, 4) uint8 in sRGB, of the photo's proportions.
    """
    strokes = [np.asarray(layer) for layer in layers]
    if not any(layer[..., 3].any() for layer in strokes):
        return person
    photo = load_original(context.uploads.path(person, "person"))
    image = photo.image.copy()
    for layer in strokes:
        over = Image.fromarray(layer, "RGBA").resize(image.size, Image.Resampling.BILINEAR)
        image.paste(from_srgb(over.convert("RGB"), photo.icc_profile), (0, 0), over.getchannel("A"))
    if photo.alpha:
        image.putalpha(photo.alpha)
    with tempfile.TemporaryDirectory() as folder:
        save_png(image, Path(folder) / "painted.png", icc_profile=photo.icc_profile)
        return context.uploads.add((Path(folder) / "painted.png").read_bytes()).id


@dataclass(frozen=True)
class Again:
    """What a picture says about its making. photos: ids of uploads that are still here. missing: names of
    those that are not. settings: by name. region: as drawn, or None.
    """

    settings: dict[str, Any]
    photos: dict[str, str]
    missing: list[str]
    region: Outlines | None
    notes: list[str] = field(default_factory=list)


def again(context: Context, path: str) -> Again:
    """Read the settings in a picture. It may come from anybody: only what `reproduce` takes is taken.

    Raises:
        InputError: it does not say how it was made, or something impossible.
    """
    image = Path(path)
    try:
        about = about_of(image)
        if about["verb"] != "tryon":
            raise InputError("The picture was made by generate.", "Drop a picture of a try-on.")
        settings = picture_settings(about, TryonConfig, image)
        hashes = hashes_in(about["sha256"], "tryon", image, mask_free=settings.get("mask_free", False))
    except InputError as error:
        raise InputError(error.message.replace(str(image), "The picture"), error.hint) from error
    here = {
        name: id for name in PHOTOS if (id := hashes.get(name)) and (context.uploads.folder / id).is_file()
    }
    notes = []
    if (model := settings.pop("model", None)) not in (None, _model_name(context)):
        notes.append(f"It was made with the model {str(model)[:80]}; this page has another.")
    if "lora" in hashes and context.config.lora is None:
        notes.append("It was made with a LoRA; this page has none.")
    if others := [name for name in hashes if name not in (*PHOTOS, "polygon", "mask", "lora")]:
        notes.append(f"Photos of other roles are not taken over: {', '.join(others)[:200]}.")
    for name in ("lora_scale", "quantize"):
        settings.pop(name, None)
    return Again(
        settings,
        here,
        [name for name in PHOTOS if name in hashes and name not in here],
        _region(context, hashes),
        notes,
    )


def _model_name(context: Context) -> str:
    return str(context.session.options["model"])


def _region(context: Context, hashes: Mapping[str, str]) -> Outlines | None:
    """The outlines that a job of this server was drawn with, by the hash of their file."""
    if wanted := hashes.get("polygon"):
        for path in context.results.glob("*/*.json"):
            if sha256_file(path) == wanted:
                return read_outlines(path)
    return None


def photo_of(context: Context, id: str) -> str:
    """A copy of an upload with the ending of its format, for the browser; its path."""
    source = context.uploads.path(id, "photo")
    with Image.open(source) as image:
        ending = {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower())
    folder = Path(get_upload_folder()) / "again"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{id}.{ending}"
    if not copy.exists():
        copy.write_bytes(source.read_bytes())
    return str(copy)


def canvas_of(context: Context, id: str, drawn: Outlines | None = None) -> dict[str, Any]:
    """The canvas's value for a photo."""
    width, height = load_image(context.uploads.path(id, "person")).size
    polygons, holes = (drawn.polygons, drawn.holes) if drawn else ([], [])
    return {"upload": id, "width": width, "height": height, "polygons": polygons, "holes": holes}
