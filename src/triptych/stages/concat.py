"""concat: front, back and worn photo of an item side by side on one canvas, each whole and in its own aspect ratio.

catalogue/pairs.jsonl            which photos stand together
triptychs/<id>.png               the canvas; what it was made from is in its text chunk `triptych`
triptychs/metadata.jsonl         the same with paths, in the form of a Hugging Face `imagefolder`
triptychs/concat.rejects.jsonl   items and photos that gave no triptych, each with its reason
WORK/triptychs_sheet.jpg         the first triptychs at a glance
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from triptych.backbones.settings import model_settings
from triptych.catalogue import PHOTOS, Photo, read_photos, side_hint
from triptych.config import Seed, StageConfig
from triptych.errors import InputError, TriptychError, WorkError
from triptych.images import contact_sheet, load_image, save_png
from triptych.panels import PanelLayout, concatenate, fit
from triptych.store import Event, Run, StageFolder, digest, held, publish, read_jsonl, sha256_file, write_jsonl

CHUNK = "triptych"
SHEET_SIZE = 48


class ConcatConfig(StageConfig):
    model: str = ""
    """The diffusion model to be trained; it recommends the panel size and sets the grid that seams fall on."""
    max_concat_n: int = Field(default=3, ge=1)
    """At most so many worn photos of an item, each in a triptych of its own."""
    panel_width: int | None = Field(default=None, ge=16, le=8192)
    """Pixels; by default what the model recommends."""
    panel_height: int | None = Field(default=None, ge=16, le=8192)
    """Pixels; by default what the model recommends."""
    seed: Seed = 0
    """Chooses among the worn photos of an item that has more than max_concat_n."""


@dataclass(frozen=True)
class Triple:
    """The photos of one triptych. Front and back are the same photo when there is only one."""

    id: str
    item: str
    front: Photo
    back: Photo
    worn: Photo

    @property
    def photos(self) -> dict[str, Photo]:
        return {"front": self.front, "back": self.back, "worn": self.worn}

    def origin(self, layout: PanelLayout) -> dict[str, Any]:
        """What the canvas is made from: equal origins, equal pixels."""
        hashes = {f"{role}_sha256": photo.sha256 for role, photo in self.photos.items()}
        return {"id": self.id, "item": self.item, **hashes, "layout": layout.to_dict()}

    def row(self) -> dict[str, Any]:
        return {"id": self.id, "item": self.item} | {role: photo.path for role, photo in self.photos.items()}


def concat(config: ConcatConfig) -> Run:
    """Write one triptych for every chosen worn photo of every item that `clean` found both kinds of photos of.

    A triptych that is there and was made from the same photos is kept, and so is one that was edited by hand. A file
    whose photos have left the catalogue is reported as stale and left alone.

    Raises:
        WorkError: no catalogue, or triptychs of other settings in the folder. ModelError: no such model.
        InputError: a panel size that does not fall on the model's grid.
    """
    settings = model_settings(config.model)
    layout = PanelLayout(config.panel_width or settings.panel_width, config.panel_height or settings.panel_height).check(settings.stride)
    photos = read_photos(config.catalogue_folder / PHOTOS)
    triples, rejects, spares = plan(photos, config.max_concat_n, config.seed)
    if not triples and not rejects:
        raise WorkError(f"The catalogue in {config.catalogue_folder} has no items.", "Run `triptych clean` on folders with photos first.")
    identity = {"layout": layout.to_dict(), "max_concat_n": config.max_concat_n, "seed": config.seed}
    folder = StageFolder(config.triptych_folder, "concat", identity)
    summary: dict[str, Any] = {"items": len({photo.item for photo in photos if photo.item}), "triptychs": 0, "made": 0, "kept": 0}
    summary |= {"rejected": len(rejects), "reasons": dict(Counter(reject["reason"] for reject in rejects)), "failed_before": 0}
    summary |= {"spare_photos": len(spares), "stale": [], "panel": f"{layout.width}x{layout.height}", "folder": str(folder.path)}
    summary["sheet"] = str(config.work / "triptychs_sheet.jpg")

    def work() -> Iterator[Event]:
        write_jsonl(config.catalogue_folder / "pairs.jsonl", (triple.row() for triple in triples))
        for reject in rejects:
            yield Event(reject["item"], "rejected", reject["reason"])
        failed = _failed(folder.path)
        panel = functools.lru_cache(maxsize=8)(functools.partial(_panel, layout))
        made: set[str] = set()
        later: list[dict[str, Any]] = []
        try:
            for triple in triples:
                target = folder.path / f"{triple.id}.png"
                origin = triple.origin(layout)
                if _is_current(target, origin):
                    summary["kept"] += 1
                    yield Event(triple.id, "kept")
                elif not target.exists() and _sources(origin) in failed:
                    summary["failed_before"] += 1
                    yield Event(triple.id, "rejected", "`caption` has rejected it before")
                else:
                    try:
                        canvas = concatenate([panel(triple.photos[role]) for role in layout.roles], layout)
                    except TriptychError as error:
                        reason = str(getattr(error, "reason", error.message))
                        later.append({"item": triple.item, "id": triple.id, "reason": error.message})
                        summary["rejected"] += 1
                        summary["reasons"][reason] = summary["reasons"].get(reason, 0) + 1
                        yield Event(triple.id, "rejected", error.message)
                        continue
                    save_png(canvas, target, text={CHUNK: json.dumps(origin)})
                    made.add(triple.id)
                    summary["made"] += 1
                    yield Event(triple.id)
        finally:
            write_jsonl(folder.path / "concat.rejects.jsonl", [*rejects, *later, *spares])
            rows = _rows(folder.path, triples, made, layout)
            write_jsonl(folder.path / "metadata.jsonl", rows)
        summary["triptychs"] = len(rows)
        planned = {triple.id for triple in triples}
        summary["stale"] = [row["id"] for row in rows if "item" in row and row["id"] not in planned]
        _write_sheet(Path(summary["sheet"]), folder.path, rows, anew=bool(made))

    return Run("concat", len(triples) + len(rejects), held(folder, work), summary)


def plan(photos: Iterable[Photo], max_concat_n: int, seed: int) -> tuple[list[Triple], list[dict[str, Any]], list[dict[str, Any]]]:
    """(triptychs, items that give none with the reason, photos that are not needed with the reason), item by item.

    What becomes of an item depends on its own photos alone.
    """
    items: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.item:
            items.setdefault(photo.item, []).append(photo)
    triples: list[Triple] = []
    rejects, spares = list[dict[str, Any]](), list[dict[str, Any]]()
    for item, all_photos in items.items():
        human, garment = _distinct(all_photos, "human", spares), _distinct(all_photos, "garment", spares)
        if not human or not garment:
            lacks = "no photo of a person wearing it" if garment else "no photo of the garment alone" if human else "no usable photo"
            unsure = sum(photo.label == "unsure" for photo in all_photos)
            rejects.append({"item": item, "reason": lacks, "photos": len(all_photos), "unsure": unsure})
            spares += [_spare(photo, f"its item has {lacks}") for photo in human + garment]
            continue
        front, back = choose_sides(garment)
        chosen = choose_worn(human, item, max_concat_n, seed)
        spares += [_spare(photo, "another photo is the front or back") for photo in garment if photo not in (front, back)]
        spares += [_spare(photo, f"the item has more than {max_concat_n} worn photos") for photo in human if photo not in chosen]
        triples += [Triple(triptych_id(item, worn.sha256), item, front, back, worn) for worn in chosen]
    return triples, rejects, spares


def _distinct(photos: Iterable[Photo], label: str, spares: list[dict[str, Any]]) -> list[Photo]:
    """The photos with a label, each file content once; the second copies go to `spares`."""
    first: dict[str, Photo] = {}
    for photo in photos:
        if photo.label == label and first.setdefault(photo.sha256, photo) is not photo:
            spares.append(_spare(photo, f"the same file as {first[photo.sha256].path}"))
    return list(first.values())


def _spare(photo: Photo, reason: str) -> dict[str, Any]:
    return {"item": photo.item, "path": photo.path, "reason": reason, "spare": True}


def choose_sides(garment: Sequence[Photo]) -> tuple[Photo, Photo]:
    """(front, back) among the garment photos of one item: the user's override first, then file names, then order.

    A single photo is both.
    """
    assert garment
    said = {photo: photo.reason.removeprefix("override: ") for photo in garment if photo.reason in ("override: front", "override: back")}

    def best(side: str, among: Sequence[Photo]) -> Photo:
        def rank(photo: Photo) -> int:
            if photo in said:
                return 0 if said[photo] == side else 4
            return {side: 1, None: 2}.get(side_hint(photo.path), 3)

        return min(among, key=rank)  # the first of equals

    front = best("front", garment)
    rest = [photo for photo in garment if photo is not front]
    return front, best("back", rest) if rest else front


def choose_worn(human: Sequence[Photo], item: str, at_most: int, seed: int) -> list[Photo]:
    """At most so many of the worn photos of an item, in their order.

    The choice hangs on seed, item and photo only: adding an item, or a photo that is not chosen, changes nothing.
    """
    chosen = sorted(human, key=lambda photo: digest([seed, item, photo.sha256]))[:at_most]
    return [photo for photo in human if photo in chosen]


def triptych_id(item: str, worn_sha256: str) -> str:
    """A file name for any item name: what ASCII it has, and 12 hex digits that tell items and worn photos apart."""
    ascii_only = unicodedata.normalize("NFKD", item).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-._")[:48] or "item"
    return f"{readable}-{digest([item, worn_sha256])[:12]}"


def _panel(layout: PanelLayout, photo: Photo) -> Image.Image:
    """A photo as a panel.

    Raises:
        InputError: it cannot be opened, or is not the file any more that `clean` has judged.
    """
    path = Path(photo.path)
    image = load_image(path, longest=4 * max(layout.width, layout.height))
    if sha256_file(path) != photo.sha256:
        raise InputError(f"{path} has changed since `clean` looked at it.", "Run `triptych clean` again.")
    return fit(image, layout.width, layout.height)


def _is_current(target: Path, origin: dict[str, Any]) -> bool:
    """Whether a file was made from just this, or is a picture without our text chunk: somebody's own work."""
    try:
        with Image.open(target, formats=["PNG"]) as image:
            text = image.info.get(CHUNK)
        return text is None or json.loads(text) == origin
    except (OSError, ValueError, SyntaxError):  # SyntaxError is Pillow's word for a damaged PNG
        return False


def _sources(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("id", "front_sha256", "back_sha256", "worn_sha256"))


def _failed(folder: Path) -> set[tuple[Any, ...]]:
    """The sources of triptychs that `caption` has moved away; they come back when their photos are others."""
    journal = folder / "caption.jsonl"
    rows = read_jsonl(journal) if journal.exists() else []
    return {_sources(row) for row in rows if row.get("kind") == "rejected"}


def _rows(folder: Path, triples: Iterable[Triple], made: set[str], layout: PanelLayout) -> list[dict[str, Any]]:
    """A row for every picture in the folder, ours or not: an imagefolder must name them all."""
    metadata = folder / "metadata.jsonl"
    before = {row.get("id"): row for row in (read_jsonl(metadata) if metadata.exists() else [])}
    planned = {triple.id: triple for triple in triples}
    rows = []
    for picture in sorted(path for path in folder.glob("*.png") if not path.name.startswith(".")):
        row = dict(before.get(picture.stem, {}))
        if picture.stem in made:
            row = {key: value for key, value in row.items() if key not in ("text", "caption_by")}  # of an earlier picture
        if triple := planned.get(picture.stem):
            row |= triple.row() | triple.origin(layout)
        rows.append({"file_name": picture.name, "id": picture.stem} | row)
    return rows


def _write_sheet(path: Path, folder: Path, rows: Sequence[dict[str, Any]], *, anew: bool) -> None:
    """Thumbnails of the first triptychs; outside their folder, where it would count as one of them."""
    if not rows or (path.exists() and not anew):
        return
    shown = [row for row in rows if "item" in row][:SHEET_SIZE] or list(rows[:SHEET_SIZE])
    cells: list[tuple[Image.Image | None, str]] = []
    for row in shown:
        try:
            cells.append((load_image(folder / row["file_name"], longest=480), row.get("item") or row["id"]))
        except InputError:
            cells.append((None, row["id"]))
    with publish(path) as temporary:
        contact_sheet(cells, columns=4, thumb=240).save(temporary, quality=88)
