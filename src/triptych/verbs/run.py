"""run: one config, all stages from clean to train."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.backbones.settings import model_class, resolve_model
from triptych.captioning.captioners import captioner_folder
from triptych.config.stage import section, validated
from triptych.data.photo_folders import find_photos
from triptych.data.triptychs import TriptychFolder, caption_file
from triptych.errors import ConfigError, InputError
from triptych.events import Event, Run
from triptych.pictures.images import load_image
from triptych.pictures.overwrite import check_writable
from triptych.pocket.known_worlds import check_pictures, known_by, strangers
from triptych.store.files import write_bytes
from triptych.tasks import task_named
from triptych.verbs import STAGES
from triptych.verbs.caption import check_captioner
from triptych.verbs.outcome import check_made
from triptych.verbs.run_config import RunConfig

if TYPE_CHECKING:
    from PIL import Image

PHOTOS_LOOKED_AT, LOOKED_AT_SIDE = 8, 576  # number of photos, and their longer side in pixels

PIPELINE = tuple(stage for stage in STAGES if stage.in_run)


def run(config: RunConfig, data: Mapping[str, Any] | None = None) -> Run:
    """Run clean, concat, caption, embed and train in order.

    Args:
        config: the settings that all stages share.
        data: a loaded config file (`config.load_config`): shared keys and a section per verb.

    Raises:
        ConfigError: no config, an unknown key, or a value that a stage refuses. All sections are checked
            before any work. ModelError: a stage without a model, a path without one, or no captioner.
            InputError: photos of a kind that model or captioner have never seen.
    """
    if not data:
        raise ConfigError(
            "`triptych run` needs a config.",
            "Make one with `triptych init --photos FOLDER`, then give it with --config.",
        )
    shared = {
        name: getattr(config, name) for name in config.model_fields_set if getattr(config, name) is not None
    }
    configs = {}
    for stage in PIPELINE:
        model = stage.config_class()
        given = {name: value for name, value in shared.items() if name in model.model_fields}
        configs[stage.name] = validated(model, section(data, stage.name, model).changed(given), stage.name)
    _check_models(configs)
    _check_photos(configs)
    _check_folders(configs)
    summary: dict[str, Any] = {"seconds": {}}

    def work() -> Iterator[Event]:
        for stage in PIPELINE:
            function, _ = stage.load()
            start = time.monotonic()
            inner = function(configs[stage.name])
            yield from inner.nested()
            summary[stage.name] = inner.summary
            check_made(stage.name, inner.summary)
            summary["seconds"][stage.name] = round(time.monotonic() - start, 2)
            if (
                stage.name == "caption"
                and (target := configs["embed"].triptych_folder) != configs["caption"].triptych_folder
            ):
                summary["copied"] = hand_over(configs["caption"].triptych_folder, target)
                yield Event(f"{summary['copied']} captioned triptychs copied to {target}", stage="copy", of=1)

    # The number of events of a later stage is unknown until the earlier ones have run.
    return Run("run", 0, work(), summary)


def _check_models(configs: Mapping[str, Any]) -> None:
    """Check that every stage has a model, and that there is a captioner: otherwise the next stage would fail
    after hours of `clean`.
    """
    for config in configs.values():
        if hasattr(config, "model"):
            resolve_model(config.model)
    for model in {config.model for config in configs.values() if hasattr(config, "model")}:
        model_class(model)  # also asks the hub whether it grants access to the model
    check_captioner(configs["caption"])


def _check_photos(configs: Mapping[str, Any]) -> None:
    """Refuse if most of a few sample photos are strange to model or captioner: otherwise they would be
    refused after hours of `clean`.
    """
    cleaning, captioning, embedding = (configs[name] for name in ("clean", "caption", "embed"))
    model, captioner = (
        Path(resolve_model(embedding.model)),
        captioner_folder(captioning.vlm_model, captioning.base_url),
    )
    knows = known_by(model) if model.is_dir() else ""
    captioner_knows = known_by(captioner) if captioner and captioning.captions is None else ""
    if not (knows or captioner_knows) or cleaning.photos is None or not cleaning.photos.is_dir():
        return
    found = [
        path
        for _, path in find_photos(
            cleaning.photos,
            task_named(cleaning.task).photo_roles,
            [cleaning.human, cleaning.garment, cleaning.work],
        )
    ]
    shown: list[tuple[str, Image.Image]] = []
    for path in found[:: max(1, len(found) // PHOTOS_LOOKED_AT)]:
        with contextlib.suppress(InputError):  # `clean` will report the problem
            shown.append((f"{path.parent.name}/{path.name}", load_image(path, longest=LOOKED_AT_SIDE)))
    if 2 * len(strangers(knows, shown)) > len(shown):
        check_pictures(knows, shown, "model", embedding.model, embedding.anyway)
    if 2 * len(strangers(captioner_knows, shown)) > len(shown):
        check_pictures(captioner_knows, shown, "captioner", captioning.vlm_model, captioning.anyway)


def _check_folders(configs: Mapping[str, Any]) -> None:
    """Check that every folder of a stage can be created or written to.

    Raises:
        WorkError: a folder that cannot.
    """
    first, caption = configs["clean"], configs["caption"]
    folders = {
        first.catalogue_folder,
        configs["train"].train_folder,
        caption.fail_folder,
        configs["embed"].embedding_folder,
    }
    folders |= {config.work for config in configs.values()} | {
        config.triptych_folder for config in configs.values()
    }
    for folder in sorted(folders):
        check_writable(folder, "--work")


def hand_over(source: Path, target: Path) -> int:
    """Copy captioned triptychs to the folder that `embed` reads, if it is another one. Returns the number of
    new ones.

    A newer file there is somebody's edit and stays.
    """
    target.mkdir(parents=True, exist_ok=True)
    copied, there = set(), set()
    for picture in TriptychFolder(source).pictures():
        if not (text := caption_file(picture)).is_file():
            continue
        there.add(picture.name)
        for file in (picture, text):
            other = target / file.name
            if not other.exists() or other.stat().st_mtime < file.stat().st_mtime:
                write_bytes(other, file.read_bytes())
                copied.add(picture.stem)
    rows: dict[str, Any] = {}
    for folder in (target, source):
        for row in TriptychFolder(folder).rows():
            name = str(row.get("file_name") or f"{row.get('id')}.png")
            if folder is target or name in there:
                rows[name] = row
    if copied:
        TriptychFolder(target).write_rows(rows.values())
    return len(copied)
