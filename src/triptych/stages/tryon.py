"""tryon: this person, that garment. Only what lies inside the polygon is regenerated; the photo keeps its size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from triptych import masks
from triptych.errors import InputError
from triptych.images import load_image, load_original, save_png
from triptych.inference import load_models, try_on
from triptych.sampling import SamplingConfig
from triptych.store import Event, Run


class TryonConfig(SamplingConfig):
    front: Path | None = None
    """Photo of the garment's front."""
    back: Path | None = None
    """Photo of its back; without it the front is used twice."""
    person: Path | None = None
    """Photo of the person; you may have painted a rough edit on it."""
    polygon: Path | None = None
    """JSON with {"polygons": [[[x, y], …], …]} in pixels of the person photo: what lies inside is repainted."""
    strength: float = Field(default=0.9, gt=0, le=1)
    """How much noise the polygon starts from: 1 forgets what was there, 0.5 keeps its shapes and colours."""
    feather: int = Field(default=8, ge=0)
    """Width in pixels of the soft edge around the polygon. Beyond it every pixel is the photo's own."""
    out: Path | None = None
    """Picture to write, if not WORK/tryon.png. With several pictures the seed is added to the name."""


def tryon(config: TryonConfig) -> Run:
    """Write the re-dressed photo, and beside it the mask preview and the model's triptych.

    Raises:
        InputError: a photo or polygon that is missing or cannot be used. ModelError: model or LoRA cannot be loaded.
    """
    for name in ("front", "person", "polygon"):
        if getattr(config, name) is None:
            raise InputError(
                f"The option --{name} is missing.", "tryon needs --front, --person and --polygon (and --back if there is one)."
            )
    if not config.prompt.strip():
        raise InputError("There is no prompt.", 'Describe all panels: --prompt "… <IMAGE 1> … <IMAGE 2> … <IMAGE 3> …".')
    assert config.front and config.person and config.polygon
    out = config.out or config.work / "tryon.png"
    if not out.name or out.is_dir():
        raise InputError(f"{out} is no name for a picture.", "Give --out a file name such as new.png.")
    out = out.with_suffix(".png")
    inputs = {path.resolve() for path in (config.front, config.back, config.person, config.polygon) if path}
    if inputs & {made.resolve() for seed in config.seeds for made in _files(out, seed, config.seeds)}:
        raise InputError(f"{out} would overwrite one of the photos given.", "Choose another name with --out.")
    layout = config.layout()
    person = load_original(config.person)
    polygons = masks.read_polygons(config.polygon, person.image.size)
    masks.polygon_mask(polygons, person.image.size)  # lies inside the photo, before any model is loaded
    front = load_image(config.front)
    back = load_image(config.back) if config.back else front
    models = load_models(config.model, [config.prompt], config.lora, config.lora_scale, config.device, config.dtype)
    sampling = config.sampling(models.backbone.settings, config.strength)
    summary: dict[str, Any] = {"images": [], "size": list(person.image.size), "feather": config.feather, "strength": config.strength}

    def work() -> Iterator[Event]:
        photos = {"front": config.front, "back": config.back, "person": config.person, "polygon": config.polygon}
        for seed in config.seeds:
            (result,) = try_on(
                models,
                front,
                back,
                person.image,
                polygons,
                config.prompt,
                layout,
                [seed],
                sampling,
                config.feather,
                person.icc_profile,
            )
            path, mask, triptych = _files(out, seed, config.seeds)
            about = config.provenance("tryon", seed, photos)
            save_png(result.image, path, text=about, icc_profile=person.icc_profile, exif=person.exif)
            save_png(masks.preview(person.image, result.mask), mask, text=about)
            save_png(result.canvas, triptych, text=about)
            summary["images"].append(str(path))
            yield Event(path.name)

    return Run("tryon", len(config.seeds), work(), summary)


def _files(out: Path, seed: int, seeds: list[int]) -> tuple[Path, Path, Path]:
    """Where the picture of a seed, its mask preview and its triptych go."""
    path = out if len(seeds) == 1 else out.with_stem(f"{out.stem}-{seed}")
    return path, path.with_stem(f"{path.stem}-mask"), path.with_stem(f"{path.stem}-triptych")
