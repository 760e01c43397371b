"""init: looks at a folder of photos and writes a config for `triptych run`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.backbones.model_folder import KLEIN
from triptych.backbones.settings import resolve_model
from triptych.captioning.replies import check_url
from triptych.data.catalogue import nothing_usable, short_reason
from triptych.data.photo_folders import check_examples, find_photos, is_photo_name, real, refusal
from triptych.errors import InputError
from triptych.events import Event, Run
from triptych.pictures.images import BadImage, check_header
from triptych.store.files import write_text
from triptych.tasks import DEFAULT
from triptych.verbs.init_config import InitConfig

HUMAN_NAMES, GARMENT_NAMES = (
    ("human", "person", "model", DEFAULT.photo_roles.person.name),
    ("garment", "object", "product", "cloth"),
)

MODEL_COMMENT = (
    f"a hub id such as {KLEIN} (Apache-2.0) or black-forest-labs/FLUX.1-dev (gated, non-commercial), or a "
    "diffusers folder"
)
CAPTIONER_COMMENT = "a model on a server such as gpt-4.1-mini, or the folder of a transformers model"


def init(config: InitConfig) -> Run:
    """Write a commented config for the photos found.

    Raises:
        InputError: no photos there, or the config file already exists. ModelError: a model path that is no
            diffusers folder.
        ConfigError: a base_url that is no address.
    """
    photos = config.photos
    if photos is None or not str(photos).strip():
        raise InputError(
            "No folder of photos is given.", "Give --photos FOLDER with one folder of photos per item."
        )
    if config.out.exists():
        raise InputError(f"{config.out} exists already.", "Give another name with --out, or delete it.")
    check_url(config.base_url)
    human = config.human or _beside(photos, HUMAN_NAMES)
    garment = config.garment or _beside(photos, GARMENT_NAMES, apart_from=human)
    check_examples(human, garment, photos)
    found = find_photos(photos, DEFAULT.photo_roles, [config.work, config.catalogue_folder, human, garment])
    if all(_reason(photos, *entry) for entry in found):
        raise InputError(*nothing_usable(Counter(_reason(photos, *entry) or "" for entry in found)))
    if config.model:
        resolve_model(config.model)
    missing = {
        "model": config.model,
        "clean.human": human,
        "clean.garment": garment,
        "caption.vlm_model": config.vlm_model,
    }
    summary: dict[str, Any] = {
        "config": str(config.out),
        "items": 0,
        "photos": 0,
        "human": human,
        "garment": garment,
    }
    summary |= {"fill_in": [key for key, value in missing.items() if not value], "rejected": 0, "reasons": {}}
    if summary["fill_in"]:
        summary["next"] = (
            f"fill in {', '.join(summary['fill_in'])} in {config.out}, then: triptych run --config "
            f"{config.out}"
        )

    def work() -> Iterator[Event]:
        items: set[str] = set()
        reasons: Counter[str] = Counter()
        for item, path in found:
            reason = _reason(photos, item, path)
            if reason is None:
                items.add(item)
                summary["photos"] += 1
                yield Event(path.relative_to(photos).as_posix(), result=path)
            else:
                reasons[short_reason(reason)] += 1
                yield Event(path.relative_to(photos).as_posix(), "rejected", reason)
        summary.update(items=len(items), rejected=reasons.total(), reasons=dict(reasons.most_common()))
        write_text(config.out, _yaml(config, human, garment, len(items), summary["photos"]))

    return Run("init", len(found), work(), summary)


def _reason(photos: Path, item: str, path: Path) -> str | None:
    """Why a file is no photo, as `clean` would say; `clean` finds more problems when it decodes
    the picture.
    """
    try:
        refused = refusal(photos, item, path)
        if refused is None:
            check_header(path)
        return refused
    except BadImage as error:
        return error.reason


def _beside(photos: Path, names: tuple[str, ...], apart_from: Path | None = None) -> Path | None:
    """A folder beside the photos, or one level below such a folder, whose name begins with one of `names`."""
    own = real(photos)
    taken = [own] if apart_from is None else [own, real(apart_from)]
    for pattern in ("*", "*/*"):
        for folder in sorted(own.parent.glob(pattern)):
            named = folder.name.lower().startswith(names) and os.path.isdir(folder)
            if (
                named
                and not any(one.is_relative_to(folder) or folder.is_relative_to(one) for one in taken)
                and _holds_photos(folder)
            ):
                return folder
    return None


def _holds_photos(folder: Path) -> bool:
    return any(is_photo_name(file) for _, _, files in os.walk(folder) for file in files)


def _base_url(config: InitConfig) -> str:
    """The config line with the server's address; commented out if none is given."""
    if config.base_url:
        import json

        return f"base_url: {json.dumps(config.base_url)}"
    return "# base_url: http://127.0.0.1:8000/v1  # for a server of your own"


def _yaml(config: InitConfig, human: Path | None, garment: Path | None, items: int, photos: int) -> str:
    import json

    def value(path: Path | None, what: str) -> str:
        return (
            json.dumps(str(path), ensure_ascii=False)
            if path
            else f"  # folder with 10 or more example photos of {what}"
        )

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
  {_base_url(config)}
  allow_upload: false  # true: photos of people may be sent to a server that is not this machine
  brands: []  # names that become <Brand> in captions

train:
  max_train_steps: 1000
  batch_size: 4
"""
