"""What a client may ask for: the settings of `tryon` and `generate` that change a picture, and uploads in
place of files. The model, folders, the machine and the captioner are the server's own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from triptych.config.marks import AMOUNT, RESULT, marked
from triptych.config.stage import StageConfig
from triptych.errors import InputError
from triptych.pictures.polygons import Polygons, check_polygons, write_polygons
from triptych.sampling.options import LOADED
from triptych.server.config import ServeConfig
from triptych.server.jobs import Job
from triptych.server.uploads import Uploads
from triptych.tasks.outfit import OUTFIT
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.generate_config import GenerateConfig
from triptych.vton.config import TryonConfig, is_proposed
from triptych.wording.docstrings import help_texts
from triptych.wording.settings import first_mistake

Kind = Literal["tryon", "generate"]
MOST_PICTURES, MOST_STEPS, MOST_SIDE = 8, 100, 2048
"""Largest values that one request may ask for."""
ROLES = tuple(dict.fromkeys([*TRY_ON.photo_roles.names, *OUTFIT.photo_roles.names]))
_OTHER_NAMES = {"polygon": "polygons", "garment": "garments", "panel": "panels"}
"""Options of the command line that the API calls something else."""
_AREA = "polygon.json"
_NOT_OVER_HTTP = frozenset({"anyway", "parser", "polygon_label"})

UploadId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Id of an upload.")]
Corner = tuple[float, float]


def _fields(config: type[StageConfig]) -> dict[str, Any]:
    """The fields of a config that say how a picture is made, with its own limits and help."""
    texts = help_texts(config)
    names = marked(config, RESULT, AMOUNT) - LOADED - _NOT_OVER_HTTP
    found: dict[str, Any] = {}
    for name, about in config.model_fields.items():
        if name in names:
            limits = [one for one in about.metadata if not type(one).__module__.startswith("triptych")]
            default = about.default
            kind = Annotated[(about.annotation, *limits)] if limits else about.annotation
            found[name] = (kind, Field(default=default, description=texts.get(name, "")))
    return found


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _TryonPhotos(_Request):
    """Dress a given person."""

    person: UploadId
    front: UploadId | None = None
    back: UploadId | None = None
    garments: dict[Literal[ROLES], UploadId] = Field(  # type: ignore[valid-type]
        default={}, description="Photos of several garments by role, in place of front and back."
    )
    reference: list[UploadId] = Field(default=[], max_length=8, description="Further photos, for FLUX.2.")
    polygons: list[list[Corner]] | None = Field(
        default=None, description="Outlines in pixels of the upright person photo: their inside is repainted."
    )
    holes: list[list[Corner]] | None = Field(default=None, description="What inside them stays.")
    mask: str | None = Field(
        default=None,
        max_length=2000,
        description="In place of polygons: the id of an uploaded mask (white is repainted), auto, auto:KIND "
        "or points:X,Y;X,Y.",
    )


class _GeneratePhotos(_Request):
    """Make a person who wears a garment."""

    front: UploadId | None = None
    back: UploadId | None = None
    panels: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")], UploadId] = Field(
        default={}, description="Photos of panels by role."
    )
    reference: list[UploadId] = Field(default=[], max_length=8, description="Further photos, for FLUX.2.")


TryonRequest = create_model("TryonRequest", __base__=_TryonPhotos, **_fields(TryonConfig))
GenerateRequest = create_model("GenerateRequest", __base__=_GeneratePhotos, **_fields(GenerateConfig))
MODELS: dict[Kind, type[BaseModel]] = {"tryon": TryonRequest, "generate": GenerateRequest}
PICTURES: dict[Kind, tuple[str, ...]] = {
    "tryon": ("person", "front", "back", "mask", "reference", *(f"garments.{role}" for role in ROLES)),
    "generate": ("front", "back", "reference"),
}
"""Fields that may come as files of a multipart request; `panels.ROLE` besides."""
_PHOTOS = ("person", "front", "back", "garments", "panels", "reference", "mask")


def checked(kind: Kind, data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request, without those that have their default.

    Raises:
        InputError: an unknown setting, or one outside its limits.
    """
    try:
        request = MODELS[kind].model_validate(data)
    except ValidationError as error:
        raise _mistake(error, MODELS[kind]) from error
    given = request.model_dump(mode="json", exclude_defaults=True)
    for name, most in (
        ("num_images_per_prompt", MOST_PICTURES),
        ("num_inference_steps", MOST_STEPS),
        ("panel_width", MOST_SIDE),
        ("panel_height", MOST_SIDE),
    ):
        if (given.get(name) or 0) > most:
            raise InputError(f"The setting {name} is at most {most} here.", "Ask for less at a time.")
    return given


def _mistake(error: ValidationError, request: type[BaseModel]) -> InputError:
    """The first thing that is wrong with a request, as a sentence and a hint."""
    first = error.errors()[0]
    name = str(first["loc"][0])[:80] if first["loc"] else "body"
    where, every = ".".join(str(part) for part in first["loc"])[:200], "/openapi.json lists all settings."
    if first["type"] == "extra_forbidden":
        if name in ServeConfig.model_fields:
            return InputError(f"{name} is the server's own setting.", "Start another server for another one.")
        near = difflib.get_close_matches(name, request.model_fields, n=1, cutoff=0.5)
        return InputError(f"There is no setting {where}.", f"Did you mean {near[0]}?" if near else every)
    if first["type"] == "missing":
        return InputError(f"The setting {where} is missing.", every)
    if name in ("polygons", "holes"):
        return InputError(
            f"{name} holds no outlines.", "Give a list of outlines, each a list of at least 3 corners [x, y]."
        )
    if name in _PHOTOS:
        return InputError(
            f"{where} is no id of an upload.",
            "POST /v1/uploads gives one; or send the picture itself in a form.",
        )
    name, value, taken = first_mistake(error, request)
    return InputError(f"The setting {name} is {value}; it takes {taken}.", every)


def in_words_of_the_api(text: str) -> str:
    """A sentence of the command line, for clients: there `--guidance-scale` is guidance_scale, and an option
    of the server is said to be its own. What only a command line can do is left out.
    """

    def name(found: re.Match[str]) -> str:
        word = found[2].replace("-", "_")
        word = _OTHER_NAMES.get(word, word)
        if any(word in request.model_fields for request in MODELS.values()):
            return (found[1] or "") + word
        return f"the server's --{found[2]}" if word in ServeConfig.model_fields else found[0]

    text = text.replace(", give a --caption file", "")
    return re.sub(r"(\b(?:an?|the|the server's) )?--([a-z][a-z-]*[a-z])", name, text)


def uploads_of(request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, id) of every upload that a request names."""
    for name in ("person", "front", "back"):
        if name in request:
            yield name, request[name]
    for name in ("garments", "panels"):
        yield from ((f"{name}.{role}", id) for role, id in request.get(name, {}).items())
    yield from ((f"reference.{number}", id) for number, id in enumerate(request.get("reference", []), 1))
    if (mask := request.get("mask")) and not is_proposed(mask):
        yield "mask", mask


def config_of(
    kind: Kind, request: Mapping[str, Any], own: Mapping[str, Any], uploads: Uploads, folder: Path
) -> StageConfig:
    """The config of a request; nothing is written yet.

    Args:
        own: the server's settings: model, LoRA, device, captioner. folder: of the job; `write_area` puts its
            polygons there, and pictures will be there.

    Raises:
        InputError: an upload is gone.
    """
    files = {field: uploads.path(id, field) for field, id in uploads_of(request)}
    rest = {
        name: value
        for name, value in request.items()
        if name not in ("garments", "panels", "reference", "polygons", "holes", *files)
    }
    more = [path for field, path in files.items() if field.startswith("reference.")]
    values: dict[str, Any] = {**own, **rest, "reference": more}
    values |= {name: files[name] for name in ("front", "back") if name in files}
    if kind == "generate":
        panels = [f"{field.removeprefix('panels.')}={files[field]}" for field in files if "panels." in field]
        return GenerateConfig(**values, panel=panels, out=folder)
    pieces = [f"{field.removeprefix('garments.')}={files[field]}" for field in files if "garments." in field]
    values |= {"person": files["person"], "garment": pieces, "out": folder / "picture.png"}
    if "mask" in files:
        values["mask"] = files["mask"]
    if "polygons" in request:
        values["polygon"] = folder / _AREA
    return TryonConfig(**values)


def outlines_of(request: Mapping[str, Any]) -> tuple[Polygons, Polygons | None]:
    """The polygons of a request that has some, and its holes.

    Raises:
        InputError: they are none.
    """
    holes = check_polygons(request["holes"], "The hole", "hole") if request.get("holes") else None
    return check_polygons(request["polygons"]), holes


def write_area(request: Mapping[str, Any], folder: Path) -> None:
    """Write the polygons of a request, if it has some, into the job's folder.

    Raises:
        InputError: they are none.
    """
    if "polygons" in request:
        polygons, holes = outlines_of(request)
        write_polygons(folder / _AREA, polygons, holes=holes)


@dataclass(frozen=True)
class RequestReader:
    """Makes configs of requests. own: the server's settings, see `config_of`. results: a folder, with a
    folder for each job.
    """

    own: Mapping[str, Any]
    uploads: Uploads
    results: Path

    def config(self, kind: Kind, request: Mapping[str, Any], folder: Path) -> StageConfig:
        """See `config_of`."""
        known = (TryonConfig if kind == "tryon" else GenerateConfig).model_fields
        own = {name: value for name, value in self.own.items() if name in known}
        return config_of(kind, request, own, self.uploads, folder)

    def of(self, job: Job) -> StageConfig:
        """The config of a job.

        Raises:
            InputError: an upload is gone.
        """
        return self.config(cast(Kind, job.kind), job.request, self.results / job.id)

    def plain(self, text: str, request: Mapping[str, Any], folder: Path) -> str:
        """A sentence in the words of the API, without paths of this machine: uploads have the names of their
        fields.
        """
        for name, id in uploads_of(request):
            text = text.replace(str(self.uploads.folder / id), name).replace(id, name)
        text = text.replace(f"{folder}/", "").replace(str(self.results), "")
        return in_words_of_the_api(text)
