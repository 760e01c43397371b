"""One try-on: its settings, what has to be right before any model is loaded, and the files it leaves.

`triptych tryon` runs one of them, `triptych tryon --batch` many with the same models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from triptych.backbones.settings import model_settings
from triptych.captioning.write import prompt_problems
from triptych.data import captions
from triptych.errors import InputError
from triptych.pictures import masks, xmp
from triptych.pictures.images import (
    JPEG_SUFFIXES,
    SETTINGS,
    OriginalPhoto,
    load_image,
    load_original,
    read_settings,
    save_jpeg,
    save_png,
)
from triptych.pictures.originals import with_transparency, writable_metadata
from triptych.pictures.overwrite import check_overwrites, ends_whole
from triptych.pictures.panels import PanelLayout
from triptych.pictures.polygons import check_units, read_outlines
from triptych.sampling.options import PictureConfig, text_chunks
from triptych.tasks.tryon import TRY_ON
from triptych.vton.rough_edit import Rough, rough_edit

if TYPE_CHECKING:  # they import torch, which `--help` can do without
    from triptych.sampling.opened import Models
    from triptych.sampling.options import Sampling
    from triptych.vton.dress import TryOnResult

SUFFIXES = {".png"} | JPEG_SUFFIXES
"""Endings of the pictures it can write."""
SMALL = 64  # pixels: 8 × 8, less than the model sees as one token
PREVIEW_SIDE = 1600  # pixels; enough to judge a mask by


class TryonConfig(PictureConfig):
    front: Path | None = None
    """Photo of the garment's front. Needed."""
    back: Path | None = None
    """Photo of its back; without it the front is used twice."""
    person: Path | None = None
    """Photo of the person; you may have painted a rough edit on it. Needed."""
    polygon: Path | None = None
    """JSON with {"polygons": [[[x, y], …], …]} in pixels of the person photo: what lies inside is repainted.
    What lies inside its "holes", of the same form, is kept. Needed.
    """
    caption: Path | None = None
    """Text file with the prompt, such as the `<id>.txt` that `caption` writes; used if there is no --prompt.
    """
    vlm_model: str | None = None
    """Who writes the prompt from the three photos, if there is no --prompt and no --caption: names as for
    `caption`, such as gpt-4.1-mini.
    """
    base_url: str | None = None
    """Address of an OpenAI-compatible server for --vlm-model."""
    crop: Literal["polygon", "none"] = "polygon"
    """What the model sees of the photo: the polygon and its surroundings, in full detail, or (none) all of
    it, scaled down.
    """
    crop_margin: float = Field(default=0.5, ge=0, le=100)
    """How much of the person stays in view around the polygon, as a fraction of the polygon's longer side."""
    expand: Literal["none", "hull"] = "none"
    """hull: repaint the convex hull of each polygon, so that the outline of the old garment does not show
    through.
    """
    grow: int = Field(default=0, ge=0, le=10_000)
    """Pixels by which the polygons are widened."""
    feather: int = Field(default=8, ge=0, le=10_000)
    """Width in pixels of the soft edge around the polygon. Beyond it every pixel is the photo's own."""
    rough: Rough = "none"
    """What the model starts from inside the polygon: the photo (none), the garment's colours (paint), or the
    garment cut out of its front photo (paste).
    """
    strength: float = Field(default=0.9, gt=0, le=1)
    """How much noise the polygon starts from: 1 forgets what was there, low values keep its shapes and, with
    most LoRAs, its colours.
    """
    out: Path | None = None
    """Picture to write, .png or .jpg, if not WORK/tryon.png; several have the seed in their name. In a PNG
    every pixel beyond the feather is the photo's own; a JPEG is encoded after that, at quality 95. With
    --batch: the folder to write to.
    """
    batch: Path | None = None
    """CSV file with one try-on per line, its columns named like these options; what a line leaves empty comes
    from the options.
    """
    batch_size: int = Field(default=1, ge=1, le=256)
    """With --batch: pictures of one product that are sampled at once. Faster where a single one leaves the
    device idle; a picture may then differ a little from the same one made alone.
    """

    def photos(self) -> dict[str, Path | None]:
        """The files that go in, by option."""
        return {"front": self.front, "back": self.back, "person": self.person, "polygon": self.polygon}

    def files(self, seed: int) -> tuple[Path, Path]:
        """Where the picture of a seed and its triptych go."""
        out = self.picture
        path = out if len(self.seeds) == 1 else out.with_stem(f"{out.stem}-{seed}")
        return path, path.with_name(f"{path.stem}-triptych.png")

    @property
    def picture(self) -> Path:
        out = self.out or self.work / "tryon.png"
        return out if out.suffix or not out.name else out.with_suffix(".png")

    @property
    def preview(self) -> Path:
        """Where the picture goes that shows what is repainted."""
        return self.picture.with_name(f"{self.picture.stem}-mask.png")

    @property
    def sheet(self) -> Path:
        return self.picture.with_name(f"{self.picture.stem}-sheet.png")


@dataclass
class Job:
    """A try-on whose inputs have been read and found usable."""

    config: TryonConfig
    front: Image.Image
    back: Image.Image
    person: OriginalPhoto
    start: Image.Image | None
    """The person photo with the rough edit, if one was asked for."""
    mask: np.ndarray
    layout: PanelLayout
    sampling: Sampling
    warnings: list[str]


def check(config: TryonConfig) -> TryonConfig:
    """The config with its prompt filled in (unless a captioner is to write it), if everything needed is
    named; no photo is read.

    Raises:
        InputError: a photo, the polygon, the prompt or the caption is missing, or `out` is no name for a new
            picture; or a file that triptych did not write lies in the place of one it would write.
    """
    for name in ("front", "person", "polygon"):
        if getattr(config, name) is None:
            raise InputError(
                f"The option --{name} is missing.",
                "tryon needs --front, --person and --polygon (and --back if there is one).",
            )
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
    out = config.picture
    if not out.name or out.is_dir() or (config.out and config.out.is_dir()):
        raise InputError(f"{out} is no name for a picture.", "Give --out a file name such as new.png.")
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{out} is neither a PNG nor a JPEG.", "Let the name given to --out end in .png or .jpg."
        )
    inputs = {path.resolve() for path in (*config.photos().values(), config.caption) if path}
    made = [config.preview, config.sheet, *(path for seed in config.seeds for path in config.files(seed))]
    if inputs & {path.resolve() for path in made}:
        raise InputError(f"{out} would overwrite one of the photos given.", "Choose another name with --out.")
    check_overwrites(made if len(config.seeds) > 1 else [path for path in made if path != config.sheet])
    return config


def prepare(config: TryonConfig) -> Job:
    """Read what a checked config names, and write the mask preview. No model is needed.

    Raises:
        InputError: a photo or polygon that cannot be used.
    """
    assert config.front and config.person and config.polygon
    layout = TRY_ON.trained(config.layout())
    person, left_out = writable_metadata(load_original(config.person), config.picture)
    size = person.image.size
    polygons, holes, sized = read_outlines(config.polygon, size)
    warnings = check_units([*polygons, *holes], size, str(config.polygon), sized=sized)
    mask = masks.repaint_mask(polygons, size, holes=holes, grow_by=config.grow, expand=config.expand)
    front = load_image(config.front)
    back = load_image(config.back) if config.back else front
    config.check_known({config.front: front, config.back or config.front: back, config.person: person.image})
    start = (
        None
        if config.rough == "none"
        else rough_edit(person.image, front, mask, config.rough, person.icc_profile)
    )
    sampling = config.sampling(model_settings(config.model), config.strength)
    warnings += left_out
    if (covered := int((mask > 0).sum())) < SMALL:
        warnings.append(f"The polygon covers only {covered} pixel{'s' * (covered != 1)} of the photo.")
    if masks.edge_ratio(person.image, mask) > masks.HUGGING:
        warnings.append(
            "The polygon follows an outline in the photo, whose shape may show in the result: use --expand "
            "hull or --grow."
        )
    _save_preview(start or person.image, masks.feather(mask, config.feather), config.preview)
    job = Job(config, front, back, person, start, mask, layout, sampling, warnings)
    return with_prompt(job, config.prompt) if config.prompt.strip() else job


def with_prompt(job: Job, prompt: str) -> Job:
    """The job with that prompt, and a warning for whatever the linter finds in it."""
    found = [
        f"The prompt: {problem}."
        for problem in prompt_problems(job.config.model, prompt, len(job.layout.roles))
    ]
    if job.config.picture.suffix.lower() in JPEG_SUFFIXES and len(json.dumps(prompt)) > 60_000:
        found.append(
            "The prompt is so long that a JPEG cannot hold the settings, and cannot be reproduced: use a "
            ".png."
        )
    return replace(
        job, config=job.config.model_copy(update={"prompt": prompt}), warnings=[*found, *job.warnings]
    )


def _save_preview(image: Image.Image, mask: np.ndarray, path: Path) -> None:
    small, shown = image.copy(), masks.mask_image(mask)
    for picture in (small, shown):
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BOX)
    save_png(
        masks.preview(small, np.asarray(shown).astype(np.float32) / np.float32(255)),
        path,
        text={"Software": "triptych"},
    )


def settings_of(config: TryonConfig, seed: int) -> dict[str, Any]:
    """Everything that decides the pixels of one picture, see `PictureConfig.settings`.

    Raises:
        InputError, ModelError: a LoRA or layout that does not fit; OSError: a file that cannot be read.
    """
    sampling = config.sampling(model_settings(config.model), config.strength)
    return config.settings("tryon", seed, config.photos(), sampling, config.layout())


def is_finished(config: TryonConfig, seed: int) -> bool:
    """Whether the picture of that seed is there and was made with these settings (wherever it was made)."""
    path = config.files(seed)[0]
    try:
        before = read_settings(path) or {}
        same = {key: value for key, value in before.items() if key != "made_on"} == settings_of(config, seed)
        return same and ends_whole(path)
    except (InputError, OSError):  # no picture there, or an input that is missing: `prepare` says which
        return False


def make(jobs: Sequence[tuple[Job, Sequence[int]]], models: Models) -> list[TryOnResult]:
    """Sample the given seeds of one or several jobs in one batch, and write the pictures; jobs of a batch are
    alike (see `alike`).
    """
    from triptych.vton.dress import Person, try_on

    first = jobs[0][0]
    assert all(alike(job.config) == alike(first.config) for job, _ in jobs)
    persons = [
        Person(job.person.image, job.mask, job.config.prompt, list(seeds), job.person.icc_profile, job.start)
        for job, seeds in jobs
    ]
    margin = first.config.crop_margin if first.config.crop == "polygon" else None
    about = first.layout, first.sampling, first.config.feather
    made = try_on(models, first.front, first.back, persons, *about, crop_margin=margin)
    for (job, seeds), results in zip(jobs, made, strict=True):
        for seed, result in zip(seeds, results, strict=True):
            _write(job, models, seed, result)
    return [result for results in made for result in results]


def alike(config: TryonConfig) -> dict[str, Any]:
    """What jobs have to share to be sampled in one batch: all but the person, the words and the seeds."""
    own = {
        "person",
        "polygon",
        "prompt",
        "caption",
        "seed",
        "num_images_per_prompt",
        "out",
        "rough",
        "grow",
        "expand",
    }
    return config.model_dump(exclude=own)


def _write(job: Job, models: Models, seed: int, result: TryOnResult) -> None:
    """The picture, after the model's own triptych; so a picture that is there is finished."""
    config, person = job.config, job.person
    path, triptych = config.files(seed)
    settings, made = settings_of(config, seed), xmp.packet("compositeWithTrainedAlgorithmicMedia")
    save_png(result.canvas, triptych, text=text_chunks(settings, models, "triptych"), xmp=made)
    text = text_chunks(settings, models)
    if path.suffix.lower() in JPEG_SUFFIXES:
        save_jpeg(
            result.image,
            path,
            comment=text[SETTINGS],
            icc_profile=person.icc_profile,
            exif=person.exif,
            xmp=made,
        )
    else:
        image = with_transparency(person, result.image, result.mask) if person.alpha else result.image
        save_png(image, path, text=text, icc_profile=person.icc_profile, exif=person.exif, xmp=made)
