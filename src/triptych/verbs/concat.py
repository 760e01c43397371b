"""concat: puts product photos and one photo of a person of an item side by side on one canvas, each whole and
in its own aspect ratio.

catalogue/pairs.jsonl            the photos of each triptych
triptychs/<id>.png               the canvas, with its origin in the text chunk `triptych`
triptychs/metadata.jsonl         the same with paths, in the form of a Hugging Face `imagefolder`
triptychs/concat.rejects.jsonl   items and photos without a triptych, each with its reason
triptychs_sheet.jpg              the first triptychs at a glance, beside their folder and named after it
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from triptych.backbones.settings import model_settings
from triptych.captioning.failed import COME_BACK, still_failed
from triptych.data.catalogue import (
    OVERRIDES,
    PHOTOS,
    Photo,
    override_example,
    read_photos,
    why_nothing_usable,
)
from triptych.data.pairing import CHUNK, EARLIER, PAIRS, UNSAID, Triple, earlier_pictures, made_from, plan
from triptych.data.photo_folders import COPY_LINKS
from triptych.data.told_roles import told_roles
from triptych.data.triptychs import REJECTS, TriptychFolder
from triptych.errors import InputError, TriptychError, WorkError
from triptych.events import Event, Run, held
from triptych.execution import PerWorker, execute
from triptych.pictures.images import load_image
from triptych.pictures.panels import PanelLayout, concatenate, fit
from triptych.pictures.saving import save_png
from triptych.pictures.sheets import contact_sheet, drawable, plain
from triptych.sampling.products import shown
from triptych.store.files import publish, sha256_file, write_jsonl
from triptych.store.folder import StageFolder
from triptych.tasks import DEFAULT, task_named
from triptych.tasks.base import words
from triptych.verbs.concat_config import ConcatConfig

SHEET_SIZE = 48
MOST_EARLIER = 20  # earlier versions, in other panel sizes, that a picture remembers


def concat(config: ConcatConfig) -> Run:
    """Write one triptych for every chosen photo of a person of every item with both kinds of photos.

    An existing triptych of the same photos is kept, and so is one that was edited by hand. With other panel
    sizes, the pictures are remade and keep their captions. A file whose photos have left the catalogue is
    reported as stale and left alone.

    Raises:
        WorkError: no catalogue, no usable photo in it, or triptychs of other settings in the folder.
            ModelError: no such model.
        InputError: a panel size that does not fall on the model's grid. ConfigError: no such task.
    """
    settings = model_settings(config.model)
    task = task_named(config.task)
    layout = task.layout(
        config.panel_width or settings.panel_width, config.panel_height or settings.panel_height
    ).check(settings.stride)
    layout = replace(layout, trim=config.trim)
    photos = read_photos(config.catalogue_folder / PHOTOS)
    told = told_roles(config.catalogue_folder)
    triples, rejects, spares = plan(
        photos,
        task.photo_roles,
        config.max_concat_n,
        config.seed,
        told,
        repeat=config.single_garment == "repeat",
    )
    _check(config, photos, anything=bool(triples or rejects))
    folder = _folder(config)
    summary = _summary(photos, triples, rejects) | {
        "spare_photos": len(spares),
        "panel": f"{layout.width}x{layout.height}",
        "folder": str(folder.path),
        "sheet": f"{folder.path}_sheet.jpg",
    }
    book = Book(TriptychFolder(folder.path), layout, summary)
    tools = PerWorker(Panels, layout)

    def work() -> Iterator[Event]:
        write_jsonl(config.catalogue_folder / PAIRS, (triple.row() for triple in triples))
        for reject in rejects:
            yield Event(reject["item"], "rejected", reject["reason"])
        try:
            found = todo(triples, layout, book.folder)
            yield from _standing(found, summary)
            for drawn in execute(make, found.draw, tools, on=config.on):
                yield record(book, drawn)
        finally:
            book.folder.write_rejects([*rejects, *book.rejects, *spares])
            rows = _rows(TriptychFolder(folder.path), triples, book.fresh, layout)
            book.folder.write_rows(rows)
        summary["triptychs"] = len(rows)
        planned = {triple.id for triple in triples}
        summary["stale"] = [row["id"] for row in rows if "item" in row and row["id"] not in planned]
        note = f"{words(task.photo_roles.names)}: a guess"
        guessed = {triple.id: note for triple in triples if triple.guessed}
        _write_sheet(Path(summary["sheet"]), folder.path, rows, guessed, anew=bool(summary["made"]))
        summary["next"] = _advice(config, summary)
        run.failed = 0 if rows or summary["failed_before"] else summary["rejected"]

    run = Run("concat", len(triples) + len(rejects), held(folder, work), summary)
    return run


def _summary(photos: list[Photo], triples: list[Triple], rejects: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary before any work; the other values are filled in at its places."""
    return {
        "items": len({photo.item for photo in photos if photo.item}),
        "triptychs": 0,
        "made": 0,
        "kept": 0,
        "rejected": len(rejects),
        "reasons": dict(Counter(reject["reason"] for reject in rejects)),
        "failed_before": 0,
        "spare_photos": 0,
        "stale": [],
        "panel": "",
        "folder": "",
        "sheet": "",
        "made_anew_for_other_panels": 0,
        "guessed_sides": len({triple.item for triple in triples if triple.guessed}),
    }


def _check(config: ConcatConfig, photos: list[Photo], *, anything: bool) -> None:
    if not anything:
        raise WorkError(
            f"The catalogue in {config.catalogue_folder} has no items.",
            "Run `triptych clean` on folders with photos first.",
        )
    if not any(photo.label in ("human", "garment", "unsure") for photo in photos):
        message, hint = why_nothing_usable(photos)
        raise WorkError(message, f"{hint} Then run `triptych clean` again." if hint == COPY_LINKS else hint)


def _folder(config: ConcatConfig) -> StageFolder:
    hint = (
        "Put the old settings back, or choose another --triptychs folder; `caption --captions "
        f"{config.triptych_folder}` brings the captions there."
    )
    identity: dict[str, Any] = {"max_concat_n": config.max_concat_n, "seed": config.seed}
    if task_named(config.task).roles != DEFAULT.roles:
        identity["task"] = config.task
    if config.single_garment != "repeat":
        identity["single_garment"] = config.single_garment
    return StageFolder(config.triptych_folder, "concat", identity, retired=("layout",), hint=hint)


# --- todo · make · record


class Todo(NamedTuple):
    """The triptychs to draw, those that exist, and those that `caption` has moved away."""

    draw: list[Triple]
    kept: list[Triple]
    failed: list[Triple]


def todo(triples: Iterable[Triple], layout: PanelLayout, folder: TriptychFolder) -> Todo:
    """Find the triptychs to draw: missing ones, and those drawn from other photos or for other panels."""
    found = Todo([], [], [])
    failed = {_sources(row, layout) for row in still_failed(folder.journal_rows())}
    for triple in triples:
        origin, target = triple.origin(layout.among(triple.photos)), folder.path / f"{triple.id}.png"
        before = made_from(target)
        if before == {} or (before and _origin(before) == origin):  # {}: somebody drew or edited it
            found.kept.append(triple)
        elif not target.exists() and _sources(origin, layout) in failed:
            found.failed.append(triple)
        else:
            found.draw.append(triple)
    return found


def _standing(found: Todo, summary: dict[str, Any]) -> Iterator[Event]:
    """The events of triptychs that are not drawn."""
    for triple in found.kept:
        summary["kept"] += 1
        yield Event(triple.id, "kept", result=Path(summary["folder"]) / f"{triple.id}.png")
    for triple in found.failed:
        summary["failed_before"] += 1
        note = f"`caption` has rejected it before; `{COME_BACK}` brings it back"
        yield Event(triple.id, "rejected", note)


class Panels:
    """The tools of a worker: photos as panels. layout: of all roles. It caches the last few, which triptychs
    of one item share.
    """

    def __init__(self, layout: PanelLayout) -> None:
        self.layout = layout
        self.panel = functools.lru_cache(maxsize=8)(functools.partial(_panel, layout))


@dataclass(frozen=True)
class Drawn:
    """A canvas; or None and the reason: as a sentence, and in the few words that are counted."""

    triple: Triple
    canvas: Image.Image | None
    message: str = ""
    reason: str = ""


def make(triple: Triple, panels: Panels) -> Drawn:
    """Draw one triptych: its photos side by side."""
    layout = panels.layout.among(triple.photos)
    try:
        return Drawn(
            triple, concatenate([panels.panel(role, triple.photos[role]) for role in layout.roles], layout)
        )
    except TriptychError as error:
        return Drawn(triple, None, error.message, str(getattr(error, "reason", error.message)))


@dataclass
class Book:
    """The targets of `record`: the folder, the counts, the rejects, and the ids of pictures whose photos have
    changed.
    """

    folder: TriptychFolder
    layout: PanelLayout
    summary: dict[str, Any]
    rejects: list[dict[str, Any]] = field(default_factory=list)
    fresh: set[str] = field(default_factory=set)


def record(book: Book, drawn: Drawn) -> Event:
    """Save a canvas, or record why there is none."""
    triple, summary = drawn.triple, book.summary
    if drawn.canvas is None:
        book.rejects.append({"item": triple.item, "id": triple.id, "reason": drawn.message})
        summary["rejected"] += 1
        summary["reasons"][drawn.reason] = summary["reasons"].get(drawn.reason, 0) + 1
        return Event(triple.id, "rejected", drawn.message)
    target, origin = book.folder.path / f"{triple.id}.png", triple.origin(book.layout.among(triple.photos))
    before = made_from(target)
    if before and _sources(before, book.layout) == _sources(origin, book.layout):
        # other panels of the same photos: the caption stays right
        origin |= {EARLIER: [*earlier_pictures(target), sha256_file(target)][-MOST_EARLIER:]}
        summary["made_anew_for_other_panels"] += 1
    else:
        book.fresh.add(triple.id)
    save_png(drawn.canvas, target, text={CHUNK: json.dumps(origin)})
    summary["made"] += 1
    return Event(triple.id, result=target)


# --- Panels, rows and the sheet


def _panel(layout: PanelLayout, role: str, photo: Photo) -> Image.Image:
    """A photo as the panel of a role.

    Raises:
        InputError: it cannot be opened, or has changed since `clean` judged it.
    """
    path = Path(photo.path)
    image = load_image(path, longest=4 * max(layout.width, layout.height))
    if sha256_file(path) != photo.sha256:
        raise InputError(f"{path} has changed since `clean` looked at it.", "Run `triptych clean` again.")
    image = shown({role: image}, layout)[role]
    return fit(image, layout.width, layout.height)


def _origin(before: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in before.items() if key != EARLIER}


def _sources(row: Mapping[str, Any], layout: PanelLayout) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("id", *(f"{role}_sha256" for role in layout.roles)))


def _rows(
    folder: TriptychFolder, triples: Iterable[Triple], fresh: set[str], layout: PanelLayout
) -> list[dict[str, Any]]:
    """A row for every picture in the folder, ours or not: an imagefolder must name all its files."""
    before = {Path(str(row.get("file_name"))).stem: row for row in folder.rows()}
    planned = {triple.id: triple for triple in triples}
    rows = []
    for picture in folder.pictures():
        row = dict(before.get(picture.stem, {}))
        if picture.stem in fresh:
            row = {
                key: value for key, value in row.items() if key not in ("text", "caption_by")
            }  # from an earlier picture
        if triple := planned.get(picture.stem):
            own = layout.among(triple.photos)
            row |= triple.row() | triple.origin(own)
            row["layout"] = _drawn_layout(picture, own, before.get(picture.stem, {}))
        rows.append({"file_name": picture.name, "id": picture.stem} | row)
    return rows


def _drawn_layout(picture: Path, layout: PanelLayout, before: dict[str, Any]) -> dict[str, Any]:
    """The layout of an existing picture. An edited picture, or one that a stopped run has not reached, keeps
    its earlier layout.
    """
    told = ((made_from(picture) or {}).get("layout"), before.get("layout"))
    try:
        with Image.open(picture, formats=["PNG"]) as image:
            size = image.size
        for data in (layout.to_dict(), *told):
            if isinstance(data, dict) and PanelLayout.from_dict(data).size == size:
                return PanelLayout.from_dict(data).to_dict()
    except Exception:  # a damaged picture, or a damaged row
        pass
    return layout.to_dict()


def _write_sheet(
    path: Path, folder: Path, rows: Sequence[dict[str, Any]], notes: Mapping[str, str], *, anew: bool
) -> None:
    """Thumbnails of the first triptychs, saved outside their folder, where the sheet would count as a
    triptych. notes: more to say about some of them, by id.
    """
    if not rows or (path.exists() and not anew):
        return
    shown = [row for row in rows if "item" in row][:SHEET_SIZE] or list(rows[:SHEET_SIZE])
    cells: list[tuple[Image.Image | None, str]] = []
    for row in shown:
        name = str(row.get("item") or row["id"])
        note = f"\n{notes[row['id']]}" if row["id"] in notes else ""
        label = plain(name if drawable(name, 240) else row["id"]) + note
        try:
            cells.append((load_image(folder / row["file_name"], longest=480), label))
        except InputError:
            cells.append((None, label))
    with publish(path) as temporary:
        contact_sheet(cells, columns=4, thumb=240).save(temporary, quality=88)


def _advice(config: ConcatConfig, summary: dict[str, Any]) -> str:
    """Advice on the next step."""
    roles = task_named(config.task).photo_roles.names
    overrides = config.catalogue_folder / OVERRIDES
    unsaid = summary["reasons"].get(UNSAID, 0)
    say = (
        f"Of {unsaid} item{'s' * (unsaid > 1)} no product photo has a role: name the files or their "
        f"folders so, write {override_example(roles[:2])} into {overrides}, or ask with "
        "`triptych roles`; the roles are "
        f"{words(roles)}. "
        if unsaid
        else ""
    )
    if not summary["triptychs"]:
        rejects = config.triptych_folder / REJECTS
        return (
            f"{say}No triptych could be made; {rejects} says why for every item. `clean` has drawn what it "
            "sees in each photo."
        )
    advice = f"{say}Look at the sheet"
    if summary["guessed_sides"]:
        items = "1 item" if summary["guessed_sides"] == 1 else f"{summary['guessed_sides']} items"
        advice += (
            f": in {items} {words(roles)} are a guess. To swap two, write "
            f"{override_example(roles)} into {overrides}, then run "
            "`triptych clean` and `triptych concat` again; `triptych roles` asks a captioner"
        )
    return advice + "; then run `triptych caption`."
