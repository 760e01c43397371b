"""import: turns the pictures and captions of an In-Context LoRA data set into triptychs for `embed` and
`train`. Sets of garments and who wears them are taken by `import_pairs`.

triptychs/<id>.png         the canvas, every panel fitted to the model's grid; its origin is in the text chunk
                           `triptych`
triptychs/<id>.txt         its caption, with the markers of the set
triptychs/metadata.jsonl   the layout of each, and the markers
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.backbones.settings import model_settings
from triptych.data.captions import Caption, in_house
from triptych.data.foreign_sets import (
    Fitted,
    Wanted,
    fitted,
    markers_in,
    name_of,
    read_grid,
    read_markers,
    read_roles,
)
from triptych.data.pairing import CHUNK, made_from
from triptych.data.triptychs import TriptychFolder
from triptych.data.tryon_sets import set_kind
from triptych.errors import InputError, TriptychError
from triptych.events import Event, Run, held
from triptych.pictures.images import load_image
from triptych.pictures.saving import save_png
from triptych.store.files import digest, sha256_file, write_text
from triptych.store.folder import StageFolder
from triptych.verbs.import_pairs import import_pairs
from triptych.verbs.import_set_config import ImportConfig

log = logging.getLogger(__name__)

STRIDE = 16
"""Grid in pixels if no model is named: it suits every family here."""
IMPORTED = "imported"
"""Key in a row and in a picture's text chunk: the source file."""


@dataclass
class _Target:
    """A picture of the set, its caption, its target paths, and the row of the existing triptych there."""

    source: Path
    caption: str
    picture: Path
    row: dict[str, Any]

    @property
    def text_file(self) -> Path:
        return self.picture.with_suffix(".txt")


def import_set(config: ImportConfig) -> Run:
    """Write a data set's canvases, fitted to the model's grid, and their captions to the folder of triptychs.

    The set itself is only read. An existing picture of the same file and settings is kept; a caption that was
    edited there stays.

    Raises:
        InputError: no folder, or no picture in it. ConfigError: no layout, or roles or markers that do not
            fit it. ModelError: no such model.
    """
    given = _checked_folder(config)
    if not config.layout and (kind := set_kind(given)):
        return import_pairs(config, kind)
    source, target = TriptychFolder(given), TriptychFolder(config.triptych_folder)
    wanted, markers = _wanted(config)
    if not source.pictures():
        raise InputError(f"There is no picture in {source.path}.", "PNG, JPEG and WebP are taken.")
    captions = {id: caption for id, (_, caption) in source.captioned().items()}
    folder = StageFolder(config.triptych_folder, "import", {})
    summary: dict[str, Any] = {"pictures": len(source.pictures()), "imported": 0, "kept": 0, "rejected": 0}
    summary |= {"reasons": {}, "panels": {}, "roles": list(wanted.roles), "made": list(wanted.made)}
    summary |= {"without_caption": 0, "captions_without_markers": 0, "folder": str(folder.path)}

    def rejected(name: str, reason: str) -> Event:
        summary["rejected"] += 1
        summary["reasons"][reason] = summary["reasons"].get(reason, 0) + 1
        return Event(name, "rejected", reason)

    def work() -> Iterator[Event]:
        before, ours, unmarked = _rows(target), dict[str, dict[str, Any]](), list[tuple[str, str]]()
        try:
            for file, reason in source.left_out():
                yield rejected(file.name, reason)
            for picture in source.pictures():
                path = folder.path / f"{name_of(picture)}.png"
                entry = _Target(picture, captions.get(picture.stem, ""), path, before.get(path.name, {}))
                try:
                    if path.name in ours:
                        raise InputError("another picture of the set becomes a file of the same name")
                    status, done = _import(entry, wanted, markers)
                except TriptychError as error:
                    yield rejected(picture.name, str(getattr(error, "reason", error.message)))
                    continue
                ours[path.name] = entry.row
                summary["imported" if status == "done" else "kept"] += 1
                summary["panels"][done] = summary["panels"].get(done, 0) + 1
                summary["without_caption"] += not entry.caption
                if entry.caption and not _is_marked(entry.caption, markers, len(wanted.roles)):
                    unmarked.append((picture.name, entry.caption))
                yield Event(path.stem, status, done, result=path)
        finally:
            theirs = [
                row for name, row in before.items() if name not in ours and (folder.path / name).is_file()
            ]
            target.write_rows([*theirs, *ours.values()])
        summary["captions_without_markers"] = len(unmarked)
        if unmarked:
            log.warning(_marker_words(unmarked, len(wanted.roles), markers))
        if summary["without_caption"]:
            summary["next"] = "triptych caption"

    return Run("import", len(source.pictures()) + len(source.left_out()), held(folder, work), summary)


def _checked_folder(config: ImportConfig) -> Path:
    if config.folder is None or not config.folder.is_dir():
        named = "no folder is named" if config.folder is None else f"{config.folder} is no folder"
        hint = "Say `triptych import FOLDER --layout 3x1`."
        raise InputError(f"There is nothing to import: {named}.", hint)
    if config.folder.resolve() == config.triptych_folder.resolve():
        raise InputError(
            f"{config.folder} is the folder that triptychs are written to.",
            "Give another one with --triptychs or --work.",
        )
    return config.folder


def _wanted(config: ImportConfig) -> tuple[Wanted, tuple[str, ...]]:
    """The target form of the canvases, and the markers of their captions."""
    rows, columns = read_grid(config.layout)
    roles, made = read_roles(config.roles, config.made, rows * columns)
    stride = model_settings(config.model).stride if config.model.strip() else STRIDE
    for side in (config.panel_width, config.panel_height):
        if side is not None and side % stride:
            raise InputError(
                f"A panel side of {side} px does not fall on the model's grid of {stride} px.",
                f"Use {max(1, round(side / stride)) * stride}.",
            )
    wanted = Wanted(rows, columns, roles, made, stride, config.panel_width, config.panel_height)
    return wanted, read_markers(config.marker, rows * columns)


def _rows(folder: TriptychFolder) -> dict[str, dict[str, Any]]:
    """The rows of metadata.jsonl, by file name."""
    return {str(row.get("file_name")): row for row in folder.rows()}


def _import(entry: _Target, wanted: Wanted, markers: tuple[str, ...]) -> tuple[Any, str]:
    """(done | kept, description of the change to the panels). Afterwards the picture and its caption exist,
    and the row describes them.

    Raises:
        InputError: the picture cannot be opened, its panels are too small, or another picture has its name.
    """
    origin = {
        "id": entry.picture.stem,
        IMPORTED: entry.source.name,
        "sha256": sha256_file(entry.source),
        "wanted": digest(wanted._asdict()),
    }
    there = made_from(entry.picture) if entry.picture.exists() else None
    if there is not None and IMPORTED not in there:
        raise InputError(f"{entry.picture} is there already, and is not of this set.")
    kept = there is not None and all(there.get(key) == value for key, value in origin.items())
    if kept and there is not None:
        done, layout = str(there.get("done")), there.get("layout")
    else:
        result: Fitted = fitted(load_image(entry.source), wanted)
        done, layout = result.done, result.layout.to_dict()
        about = origin | {"done": done, "layout": layout}
        save_png(result.canvas, entry.picture, text={CHUNK: json.dumps(about)})
    row = {"file_name": entry.picture.name, "id": entry.picture.stem, "layout": layout}
    row |= {"markers": list(markers)} if markers else {}
    earlier = {key: value for key, value in entry.row.items() if key not in ("layout", "markers")}
    entry.row = earlier | row | {IMPORTED: {"file": entry.source.name, "sha256": origin["sha256"]}}
    _write_caption(entry)
    return ("kept" if kept else "done"), done


def _write_caption(entry: _Target) -> None:
    """Write the set's caption beside the picture, unless somebody has edited it there."""
    text = entry.caption + "\n"
    last = entry.row.get("caption_sha256")
    if entry.caption and (not entry.text_file.exists() or sha256_file(entry.text_file) == last):
        if last != _sha256(text) or not entry.text_file.exists():
            write_text(entry.text_file, text)
        entry.row |= {"text": entry.caption, "caption_sha256": _sha256(text)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _is_marked(caption: str, markers: tuple[str, ...], panels: int) -> bool:
    try:
        return bool(Caption.parse(in_house(caption, markers), panels))
    except InputError:
        return False


def _marker_words(unmarked: list[tuple[str, str]], panels: int, markers: tuple[str, ...]) -> str:
    name, caption = unmarked[0]
    which = markers[0] if markers else "<IMAGE 1>"
    guess = markers_in(caption, panels)
    hint = f' They seem to be marked with {guess}: give --marker "{guess}".' if guess else ""
    return (
        f"{len(unmarked)} captions ({name} …) do not mark each panel once and in order, as {which} …; they "
        f"are taken as they are.{hint}"
    )
