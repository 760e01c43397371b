"""The files of a try-on: its settings, its input photos, and its pictures.

`triptych tryon` makes one try-on, `triptych tryon --batch` many with the same model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from triptych.captioning.write import prompt_problems
from triptych.config.marks import AMOUNT, EACH, OUTPUT, marked
from triptych.data import captions
from triptych.errors import ConfigError, InputError
from triptych.pictures import mask_checks, polygons, xmp
from triptych.pictures.images import (
    JPEG_SUFFIXES,
    SETTINGS,
    OriginalPhoto,
    load_image,
    load_original,
    read_settings,
    sha256_photo,
)
from triptych.pictures.originals import with_transparency, writable_metadata
from triptych.pictures.overwrite import check_overwrites, check_writable, ends_whole
from triptych.pictures.panels import PanelLayout
from triptych.pictures.saving import save_jpeg, save_png
from triptych.pictures.sheets import contact_sheet
from triptych.sampling.options import Sampling
from triptych.store.files import json_text, sha256_file
from triptych.vton.area import Area, area_of, whole
from triptych.vton.config import AUTO, TryonConfig
from triptych.vton.garments import dressed
from triptych.vton.preview import polygon_file, write_changed
from triptych.vton.proposal import asked_for, proposed_for
from triptych.vton.request import Request, request_of
from triptych.vton.tiles import nothing_finer

if TYPE_CHECKING:  # they import torch, which `--help` can do without
    from triptych.sampling.opened import OpenedModel
    from triptych.sampling.picture import Picture

DEFAULT_STRENGTH = TryonConfig.model_fields["strength"].default
SUFFIXES = {".png"} | JPEG_SUFFIXES
"""Endings of the pictures that it can write."""
SMALL = 64  # pixels: 8 × 8, smaller than one token of the model
THUMB = 320  # pixels; side of a picture on the contact sheet


@dataclass(frozen=True)
class Inputs:
    """The inputs of one try-on, read and checked. sha256: hashes of the files, by option. area: what is
    repainted, as it was given.
    """

    config: TryonConfig
    request: Request
    photo: OriginalPhoto
    layout: PanelLayout
    sampling: Sampling
    sha256: dict[str, str]
    warnings: tuple[str, ...]
    area: Area


def check(config: TryonConfig) -> TryonConfig:
    """The config with its prompt filled in (unless a captioner is to write it), after a check that nothing is
    missing; reads no photo.

    Raises:
        InputError: see `check_asked`; `out` cannot name a new picture; or it would overwrite a file that
            triptych did not write.
    """
    config = check_asked(config)
    if config.proposes and not config.mask_out:
        beside = config.preview.with_suffix(".json")
        config = config.model_copy(update={"mask_out": beside})
    _check_out(config)
    return config


def check_asked(config: TryonConfig) -> TryonConfig:
    """`check` without a look at the files to be written: the config with its prompt, if it asks for something
    possible.

    Raises:
        InputError: a photo, the polygon, the prompt or the caption is missing, or they contradict each other.
    """
    config.garments()  # each is ROLE=FILE
    for name in ("front", "person", "polygon"):
        if (name == "front" and config.garment) or (name == "polygon" and (config.mask or config.mask_free)):
            continue
        if getattr(config, name) is None:
            raise InputError(
                f"The option --{name} is missing.",
                "tryon needs --front (and --back if there is one) or --garment, --person, and --polygon or "
                "--mask.",
            )
    if config.mask and config.polygon:
        raise InputError("There are a polygon and a mask.", "Give one of --polygon and --mask.")
    if config.mask_free:
        _check_mask_free(config)
    if not config.prompt.strip() and config.caption:
        config = config.model_copy(
            update={
                "prompt": captions.read_caption(config.caption, hint="Check the path given to --caption.")
            }
        )
    if not config.prompt.strip() and not config.vlm_model:
        raise InputError(
            "There is no prompt.",
            'Describe all panels: --prompt "… <IMAGE 1> … <IMAGE 2> … <IMAGE 3> …", give a --caption file, '
            "or let a --vlm-model write it.",
        )
    if config.proposes:
        asked_for(config.mask, config.prompt)
    return config


def _check_out(config: TryonConfig) -> None:
    """Raises InputError if a picture cannot be written, or would replace what is not to be replaced."""
    out = config.picture
    if not out.name or out.is_dir() or (config.out and config.out.is_dir()):
        raise InputError(f"{out} is no name for a picture.", "Give --out a file name such as new.png.")
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{out} is neither a PNG nor a JPEG.", "Let the name given to --out end in .png or .jpg."
        )
    inputs = {path.resolve() for path in (*config.photos().values(), config.caption) if path}
    outputs = [config.preview, config.sheet, *(path for seed in config.seeds for path in config.files(seed))]
    if inputs & {path.resolve() for path in outputs}:
        raise InputError(f"{out} would overwrite one of the photos given.", "Choose another name with --out.")
    if config.mask_out:
        _check_mask_out(config.mask_out, inputs)
    check_overwrites(outputs if len(config.seeds) > 1 else [path for path in outputs if path != config.sheet])


def _check_mask_free(config: TryonConfig) -> None:
    """Raises ConfigError if an option has no effect without a mask."""
    idle = {"strength": config.strength not in (DEFAULT_STRENGTH, 1.0), "rough": config.rough != "none"}
    for name in (name for name, given in idle.items() if given):
        raise ConfigError(
            f"--{name} has no effect with --mask-free: sampling starts from noise alone.", "Leave it out."
        )


def _check_mask_out(path: Path, inputs: set[Path]) -> None:
    """Raises InputError if no polygons can be written there."""
    if path.suffix.lower() != ".json" or path.is_dir():
        raise InputError(
            f"{path} is no name for a JSON file.", "Give --mask-out a file name such as me.json."
        )
    if path.resolve() in inputs:
        raise InputError(
            f"{path} would overwrite one of the files given.", "Choose another name with --mask-out."
        )
    check_writable(path.parent, "--mask-out")


def read(config: TryonConfig, model: OpenedModel) -> Inputs:
    """Read the inputs that a checked config names. Needs no weights and writes nothing.

    Raises:
        InputError: an unusable photo or polygon. ConfigError: an option without effect.
    """
    assert config.person
    photos = config.garments()
    layout, photos = dressed(model.layout(config.panel_width, config.panel_height, photos), photos)
    photo, left_out = writable_metadata(load_original(config.person), config.picture)
    size = photo.image.size
    given = _area(config, size)
    area, warnings = given.repainted(size, config.grow, config.expand), list(given.warnings)
    shown = {path: load_image(path) for path in (*photos.values(), *config.reference)}
    config.check_known({**shown, config.person: photo.image})
    request = request_of(
        {role: shown[path] for role, path in photos.items()},
        photo.image,
        config.fit(),
        area,
        config.prompt,
        config.seeds,
        photo.icc_profile,
        [shown[path] for path in config.reference],
    )
    sampling = model.resolved(config, config.noise)
    warnings += left_out
    warnings += nothing_finer(request, layout)
    drawn = "polygon" if config.polygon else "mask"
    if (covered := int((area > 0).sum())) < SMALL:
        warnings.append(f"The {drawn} covers only {covered} pixel{'s' * (covered != 1)} of the photo.")
    roomy = config.mask_free or (config.proposes and str(config.mask).startswith(AUTO))
    if not roomy and mask_checks.edge_ratio(photo.image, area) > mask_checks.HUGGING:
        warnings.append(
            f"The {drawn} follows an outline in the photo, whose shape may show in the result: use --expand "
            "hull or --grow."
        )
    inputs = Inputs(config, request, photo, layout, sampling, hashes_of(config), tuple(warnings), given)
    return with_prompt(inputs, config.prompt) if config.prompt.strip() else inputs


def _area(config: TryonConfig, size: tuple[int, int]) -> Area:
    """The area to repaint, as it is given or proposed."""
    assert config.person
    if config.proposes:
        return Area(_proposal(config), None)
    if config.mask_free and not config.polygon and not config.mask:
        return whole(size)
    return area_of(size, config.polygon, config.mask, photo=config.person.name, labels=config.polygon_label)


def _proposal(config: TryonConfig) -> polygons.Outlines:
    assert config.person
    asked = asked_for(config.mask, config.prompt)
    return proposed_for(config.person, asked, config.parser, config.anyway)


def with_prompt(inputs: Inputs, prompt: str) -> Inputs:
    """The inputs with that prompt, and a warning for each problem that the linter finds."""
    config, request = inputs.config, inputs.request
    panels = len(inputs.layout.roles) if config.describes_panels else 0
    problems = prompt_problems(config.model, prompt, panels)
    found = [f"The prompt: {problem}." for problem in problems]
    if config.picture.suffix.lower() in JPEG_SUFFIXES and len(json.dumps(prompt)) > 60_000:
        found.append(
            "The prompt is so long that a JPEG cannot hold the settings, and cannot be reproduced: use a "
            ".png."
        )
    return replace(
        inputs,
        config=config.model_copy(update={"prompt": prompt}),
        request=replace(request, person=replace(request.person, prompt=prompt)),
        warnings=(*found, *inputs.warnings),
    )


def hashes_of(config: TryonConfig) -> dict[str, str]:
    """sha256 of the input files, by option.

    Raises:
        InputError: a file that is no photo. OSError: a file that cannot be read.
    """
    hashes = {
        name: sha256_file(path, polygons.MAX_BYTES) if name == "polygon" else sha256_photo(path)
        for name, path in config.photos().items()
        if path is not None
    }
    if config.proposes and config.person:  # of the file that `write_preview` writes
        drawn = polygon_file(_proposal(config), load_original(config.person).image.size, proposed=True)
        hashes["polygon"] = hashlib.sha256(json_text(drawn).encode()).hexdigest()
    return hashes


def finished(config: TryonConfig, model: OpenedModel) -> set[int]:
    """The seeds whose picture exists and was made with these settings, on any machine."""
    before = {seed: _settings_in(config.files(seed)[0]) for seed in config.seeds}
    if not any(before.values()):
        return set()
    from triptych.vton.dress import settings_of  # not at the top: it imports torch

    try:
        layout = model.layout(config.panel_width, config.panel_height, config.garments())
        sha256 = hashes_of(config)
    except (InputError, OSError):  # a missing input: `read` reports it
        return set()
    sampling = model.resolved(config, config.noise)
    return {
        seed
        for seed, settings in before.items()
        if settings == settings_of(model, config.fit(), config.prompt, seed, layout, sampling, sha256)
    }


def _settings_in(path: Path) -> dict[str, Any] | None:
    """The settings in a complete picture, without its machine; None if there is no such picture."""
    try:
        settings = read_settings(path)
        if not settings or not ends_whole(path):
            return None
    except (InputError, OSError):
        return None
    return {key: value for key, value in settings.items() if key != "made_on"}


def write(config: TryonConfig, photo: OriginalPhoto, seed: int, picture: Picture) -> None:
    """Write the model's triptych, then the picture: an existing picture means that the try-on is complete.
    photo: the person's, whose transparency and metadata the picture keeps.
    """
    from triptych.sampling.picture import text_chunks  # not at the top: it imports torch

    path, triptych = config.files(seed)
    if config.mask_free:
        write_changed(config, photo.image, path, picture.mask)
    packet = xmp.packet("compositeWithTrainedAlgorithmicMedia")
    save_png(picture.triptych, triptych, text=text_chunks(picture.settings, "triptych"), xmp=packet)
    text = text_chunks(picture.settings)
    if path.suffix.lower() in JPEG_SUFFIXES:
        save_jpeg(
            picture.image,
            path,
            comment=text[SETTINGS],
            icc_profile=photo.icc_profile,
            exif=photo.exif,
            xmp=packet,
        )
    else:
        image = with_transparency(photo, picture.image, picture.mask) if photo.alpha else picture.image
        save_png(image, path, text=text, icc_profile=photo.icc_profile, exif=photo.exif, xmp=packet)


def write_sheet(config: TryonConfig, pictures: Sequence[tuple[int, Image.Image]]) -> Path:
    """A contact sheet of several small pictures, by seed; where it lies."""
    sheet = contact_sheet([(image, f"seed {seed}") for seed, image in pictures], columns=4, thumb=THUMB)
    packet = xmp.packet("compositeWithTrainedAlgorithmicMedia")
    save_png(sheet, config.sheet, text={"Software": "triptych"}, xmp=packet)
    return config.sheet


def sample(inputs: Sequence[tuple[Inputs, Sequence[int]]], model: OpenedModel) -> list[list[Picture]]:
    """Sample the given seeds of one or several try-ons in one batch: the pictures of each. The try-ons must
    be alike, see `alike`.
    """
    from triptych.vton.dress import dress  # not at the top: it imports torch

    first = inputs[0][0]
    assert all(alike(own.config) == alike(first.config) for own, _ in inputs)
    requests = [
        replace(own.request, person=replace(own.request.person, seeds=list(seeds))) for own, seeds in inputs
    ]
    return dress(model, requests, first.layout, first.sampling, [own.sha256 for own, _ in inputs])


def alike(config: TryonConfig) -> dict[str, Any]:
    """The settings that try-ons must share to be sampled in one batch: all but person, prompt and seeds."""
    own = marked(TryonConfig, EACH, AMOUNT, OUTPUT)
    return config.model_dump(exclude=set(own))
