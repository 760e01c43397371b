"""concat: front, back and worn photo of an item side by side on one canvas, each whole and in its own aspect
ratio.

catalogue/pairs.jsonl            which photos stand together
triptychs/<id>.png               the canvas; what it was made from is in its text chunk `triptych`
triptychs/metadata.jsonl         the same with paths, in the form of a Hugging Face `imagefolder`
triptychs/concat.rejects.jsonl   items and photos that gave no triptych, each with its reason
WORK/triptychs_sheet.jpg         the first triptychs at a glance
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from triptych.backbones.settings import model_settings
from triptych.captioning.answers import journal_rows
from triptych.captioning.failed import COME_BACK, still_failed
from triptych.config.stage import Seed, StageConfig
from triptych.data.catalogue import OVERRIDES, PHOTOS, Photo, read_photos, why_nothing_usable
from triptych.data.pairing import CHUNK, EARLIER, Triple, earlier_pictures, made_from, plan
from triptych.data.photo_folders import COPY_LINKS
from triptych.data.rejects import REJECTS
from triptych.data.triptychs import list_pictures
from triptych.errors import InputError, TriptychError, WorkError
from triptych.events import Event, Run, held
from triptych.pictures.images import load_image, save_png
from triptych.pictures.panels import PanelLayout, concatenate, fit
from triptych.pictures.sheets import contact_sheet, drawable, plain
from triptych.store.files import publish, read_jsonl, sha256_file, write_jsonl
from triptych.store.folder import StageFolder

SHEET_SIZE = 48
MOST_EARLIER = 20  # sizes of panels that a picture remembers


class ConcatConfig(StageConfig):
    model: str = ""
    """The diffusion model to be trained; it recommends the panel size and sets the grid that seams fall on.
    """
    max_concat_n: int = Field(default=3, ge=1)
    """Maximum worn photos per item; each gives a triptych of its own."""
    panel_width: int | None = Field(default=None, ge=16, le=8192)
    """Pixels; by default what the model recommends."""
    panel_height: int | None = Field(default=None, ge=16, le=8192)
    """Pixels; by default what the model recommends."""
    seed: Seed = 0
    """Chooses among the worn photos of an item that has more than max_concat_n."""


def concat(config: ConcatConfig) -> Run:
    """Write one triptych for every chosen worn photo of every item that `clean` found both kinds of photos
    of.

    A triptych that is there and was made from the same photos is kept, and so is one that was edited by hand.
    Other panel sizes make the pictures anew and keep their captions. A file whose photos have left the
    catalogue is reported as stale and left alone.

    Raises:
        WorkError: no catalogue, no usable photo in it, or triptychs of other settings in the folder.
            ModelError: no such model.
        InputError: a panel size that does not fall on the model's grid.
    """
    settings = model_settings(config.model)
    layout = PanelLayout(
        config.panel_width or settings.panel_width, config.panel_height or settings.panel_height
    ).check(settings.stride)
    photos = read_photos(config.catalogue_folder / PHOTOS)
    triples, rejects, spares = plan(photos, config.max_concat_n, config.seed)
    if not triples and not rejects:
        raise WorkError(
            f"The catalogue in {config.catalogue_folder} has no items.",
            "Run `triptych clean` on folders with photos first.",
        )
    if not any(photo.label in ("human", "garment", "unsure") for photo in photos):
        message, hint = why_nothing_usable(photos)
        raise WorkError(message, f"{hint} Then run `triptych clean` again." if hint == COPY_LINKS else hint)
    identity = {"max_concat_n": config.max_concat_n, "seed": config.seed}
    keep = (
        "Put the old settings back, or choose another --triptychs folder; `caption --captions "
        f"{config.triptych_folder}` brings"
        " the captions there."
    )
    folder = StageFolder(config.triptych_folder, "concat", identity, retired=("layout",), hint=keep)
    summary: dict[str, Any] = {
        "items": len({photo.item for photo in photos if photo.item}),
        "triptychs": 0,
        "made": 0,
        "kept": 0,
    }
    summary |= {
        "rejected": len(rejects),
        "reasons": dict(Counter(reject["reason"] for reject in rejects)),
        "failed_before": 0,
    }
    summary |= {
        "spare_photos": len(spares),
        "stale": [],
        "panel": f"{layout.width}x{layout.height}",
        "folder": str(folder.path),
    }
    summary["sheet"] = str(config.work / "triptychs_sheet.jpg")
    summary |= {
        "made_anew_for_other_panels": 0,
        "guessed_sides": len({triple.item for triple in triples if triple.guessed}),
    }

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
                before = made_from(target)
                if before == {} or (before and _origin(before) == origin):  # {}: somebody drew or edited it
                    summary["kept"] += 1
                    yield Event(triple.id, "kept")
                elif not target.exists() and _sources(origin) in failed:
                    summary["failed_before"] += 1
                    yield Event(
                        triple.id,
                        "rejected",
                        f"`caption` has rejected it before; `{COME_BACK}` brings it back",
                    )
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
                    if before and _sources(before) == _sources(
                        origin
                    ):  # other panels of the same photos: captions stay right
                        origin |= {EARLIER: [*earlier_pictures(target), sha256_file(target)][-MOST_EARLIER:]}
                        summary["made_anew_for_other_panels"] += 1
                    else:
                        made.add(triple.id)
                    save_png(canvas, target, text={CHUNK: json.dumps(origin)})
                    summary["made"] += 1
                    yield Event(triple.id)
        finally:
            write_jsonl(folder.path / REJECTS, [*rejects, *later, *spares])
            rows = _rows(folder.path, triples, made, layout)
            write_jsonl(folder.path / "metadata.jsonl", rows)
        summary["triptychs"] = len(rows)
        planned = {triple.id for triple in triples}
        summary["stale"] = [row["id"] for row in rows if "item" in row and row["id"] not in planned]
        guessed = {triple.id for triple in triples if triple.guessed}
        _write_sheet(Path(summary["sheet"]), folder.path, rows, guessed, anew=bool(summary["made"]))
        summary["next"] = _advice(config, summary)
        run.failed = 0 if rows or summary["failed_before"] else summary["rejected"]

    run = Run("concat", len(triples) + len(rejects), held(folder, work), summary)
    return run


def _advice(config: ConcatConfig, summary: dict[str, Any]) -> str:
    """What the user should do next."""
    if not summary["triptychs"]:
        rejects = config.triptych_folder / REJECTS
        return (
            f"No triptych could be made; {rejects} says why for every item. `clean` has drawn what it "
            "sees in each photo."
        )
    advice = "Look at the sheet"
    if summary["guessed_sides"]:
        advice += (
            f": in {summary['guessed_sides']} items front and back are a guess. To swap two, write "
            "'item1/a.jpg front' and"
            f" 'item1/b.jpg back' into {config.catalogue_folder / OVERRIDES}, then run `triptych clean` and "
            "`triptych concat` again"
        )
    return advice + "; then run `triptych caption`."


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


def _origin(before: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in before.items() if key != EARLIER}


def _sources(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("id", "front_sha256", "back_sha256", "worn_sha256"))


def _failed(folder: Path) -> set[tuple[Any, ...]]:
    """The sources of triptychs that `caption` has moved away; they are made again when their photos are
    others.
    """
    return {_sources(row) for row in still_failed(journal_rows(folder / "caption.jsonl"))}


def _rows(
    folder: Path, triples: Iterable[Triple], made: set[str], layout: PanelLayout
) -> list[dict[str, Any]]:
    """A row for every picture in the folder, ours or not: an imagefolder must name them all."""
    metadata = folder / "metadata.jsonl"
    before = {
        Path(str(row.get("file_name"))).stem: row
        for row in (read_jsonl(metadata) if metadata.exists() else [])
    }
    planned = {triple.id: triple for triple in triples}
    rows = []
    for picture in list_pictures(folder).taken:
        row = dict(before.get(picture.stem, {}))
        if picture.stem in made:
            row = {
                key: value for key, value in row.items() if key not in ("text", "caption_by")
            }  # of an earlier picture
        if triple := planned.get(picture.stem):
            row |= triple.row() | triple.origin(layout)
            row["layout"] = _drawn_layout(picture, layout, before.get(picture.stem, {}))
        rows.append({"file_name": picture.name, "id": picture.stem} | row)
    return rows


def _drawn_layout(picture: Path, layout: PanelLayout, before: dict[str, Any]) -> dict[str, Any]:
    """The layout that a picture has: an edited one, or one that a stopped run has not come to, keeps the
    earlier one.
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
    path: Path, folder: Path, rows: Sequence[dict[str, Any]], guessed: set[str], *, anew: bool
) -> None:
    """Thumbnails of the first triptychs; outside their folder, where it would count as one of them."""
    if not rows or (path.exists() and not anew):
        return
    shown = [row for row in rows if "item" in row][:SHEET_SIZE] or list(rows[:SHEET_SIZE])
    cells: list[tuple[Image.Image | None, str]] = []
    for row in shown:
        name = str(row.get("item") or row["id"])
        label = plain(name if drawable(name, 240) else row["id"]) + (
            "\nfront and back: a guess" if row["id"] in guessed else ""
        )
        try:
            cells.append((load_image(folder / row["file_name"], longest=480), label))
        except InputError:
            cells.append((None, label))
    with publish(path) as temporary:
        contact_sheet(cells, columns=4, thumb=240).save(temporary, quality=88)
