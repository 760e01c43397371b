"""init: look at a folder of photos and write a config that `triptych run` can start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.backbones.settings import resolve_model
from triptych.config import StageConfig
from triptych.errors import InputError
from triptych.store import Event, Run, write_text

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp"}
HUMAN_NAMES, GARMENT_NAMES = ("human", "person", "model", "worn"), ("garment", "object", "product", "cloth")

MODEL_COMMENT = "a hub id such as black-forest-labs/FLUX.1-dev (gated, non-commercial), or a diffusers folder"
CAPTIONER_COMMENT = "a model on a server such as gpt-4.1-mini, or the folder of a transformers model"


class InitConfig(StageConfig):
    photos: Path | None = None
    """Folder with one folder of photos per item: item1/ item2/ …"""
    human: Path | None = None
    """Folder with example photos of people; looked for beside the photos if not given."""
    garment: Path | None = None
    """Folder with example photos of garments without people; looked for beside the photos if not given."""
    model: str = ""
    """The model to train a LoRA for: a hub id such as black-forest-labs/FLUX.1-dev, a diffusers folder, or `pocket`, which only knows
    rendered clothes."""
    vlm_model: str = ""
    """Who describes the triptychs: a model on a server such as gpt-4.1-mini, the folder of a transformers model, or `pocket`, which only
    knows rendered clothes."""
    out: Path = Path("triptych.yaml")
    """Config file to write; an existing one is never overwritten."""


def init(config: InitConfig) -> Run:
    """Write a commented config for the photos found.

    Raises:
        InputError: no photos there, or the config file exists already. ModelError: a model that is a path and no diffusers folder.
    """
    if config.photos is None or not config.photos.is_dir():
        raise InputError(f"The photo folder {config.photos or ''} is missing.", "Give --photos FOLDER with one folder of photos per item.")
    if config.out.exists():
        raise InputError(f"{config.out} exists already.", "Give another name with --out, or delete it.")
    items = {folder: _count(folder) for folder in sorted(config.photos.iterdir()) if folder.is_dir()}
    photos = sum(items.values())
    if not photos:
        raise InputError(f"{config.photos} has no item folders with photos in them.", "Put each item's photos in a folder of its own.")
    human = config.human or _beside(config.photos, HUMAN_NAMES)
    garment = config.garment or _beside(config.photos, GARMENT_NAMES)
    if config.model:
        resolve_model(config.model)
    summary: dict[str, Any] = {"config": str(config.out), "items": len(items), "photos": photos, "human": human, "garment": garment}
    missing = {"model": config.model, "clean.human": human, "clean.garment": garment, "caption.vlm_model": config.vlm_model}
    summary["fill_in"] = [key for key, value in missing.items() if not value]

    def work() -> Iterator[Event]:
        write_text(config.out, _yaml(config, human, garment, len(items), photos))
        yield Event(str(config.out))

    return Run("init", 1, work(), summary)


def _count(folder: Path) -> int:
    return sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir() if file.is_file())


def _beside(photos: Path, names: tuple[str, ...]) -> Path | None:
    """A folder beside the photos, or one level below a folder beside them, whose name begins with one of `names`."""
    parent = photos.resolve().parent
    near = [
        folder
        for folder in sorted([*parent.iterdir(), *parent.glob("*/*")])
        if folder.is_dir() and photos.resolve() not in [folder, *folder.parents]
    ]
    return next((folder for folder in near if folder.name.lower().startswith(names) and _count(folder)), None)


def _yaml(config: InitConfig, human: Path | None, garment: Path | None, items: int, photos: int) -> str:
    import json

    def value(path: Path | None, what: str) -> str:
        return json.dumps(str(path), ensure_ascii=False) if path else f"  # folder with 10 or more example photos of {what}"

    def name(given: str, comment: str) -> str:
        return json.dumps(given, ensure_ascii=False) if given else f" # fill in: {comment}"

    return f"""\
# triptych: {items} items, {photos} photos. Next: triptych run --config {config.out}
work: {json.dumps(str(config.work), ensure_ascii=False)}
model: {name(config.model, MODEL_COMMENT)}
seed: 0

clean:
  photos: {value(config.photos, "items")}
  human: {value(human, "people")}
  garment: {value(garment, "garments alone")}

concat:
  max_concat_n: 3

caption:
  do_check: true
  vlm_model: {name(config.vlm_model, CAPTIONER_COMMENT)}
  brands: []  # names that become <Brand> in captions

train:
  max_train_steps: 1000
  batch_size: 4
  learning_rate: 1.0e-4
  rank: 16
  alpha: 16
"""
