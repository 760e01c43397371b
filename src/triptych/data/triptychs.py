"""Triptychs on disk, whoever made them: the picture, its caption, its layout and the item it belongs to.

A picture `<id>.png` (or .jpg, .jpeg, .webp, in any case) has its caption in `<id>.txt` or, without one, in
the field `text` of its row in metadata.jsonl. The row, with `file_name` as in a Hugging Face `imagefolder`,
also says its `layout` and `item`. Rows come from anywhere: they are data to be checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from triptych.data.captions import read_caption
from triptych.data.rejects import no_triptychs
from triptych.errors import InputError, TriptychError
from triptych.pictures.images import BadImage, check_header
from triptych.pictures.panels import PanelLayout
from triptych.store.files import read_jsonl, sha256_file
from triptych.store.text import CAPTION_BYTES

LayoutBy = Literal["metadata", "option", "guess"]
"""Who says which panel stands where: the picture's row, an option for the whole folder, or the picture's
shape alone.
"""

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_OTHER_PICTURES = frozenset({".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jfif", ".jpe"})
# Width by height of a panel for which three of them in a row are a fair guess. A portrait photo in three
# columns gives 0.25, a square one 0.33, one of 3:2 or a pair of panels of 3:4 gives 0.5, a film still 0.59.
_NARROWEST, _WIDEST = 0.6, 1.4


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder that may be triptychs: `taken`, one to an id; `left_out`, the file and why it
    is not.
    """

    taken: list[Path]
    left_out: list[tuple[Path, str]]


def list_pictures(folder: Path) -> Pictures:
    """The triptychs of a folder by name, for every stage that looks for them; nothing if there is no such
    folder.
    """
    taken, left_out = dict[str, Path](), []
    for file in sorted(folder.glob("*")):
        ending = file.suffix.lower()
        if file.name.startswith(".") or ending not in PICTURES | _OTHER_PICTURES or not file.is_file():
            continue
        if ending in _OTHER_PICTURES:
            left_out.append((file, "no PNG, JPEG or WebP"))
        elif taken.setdefault(file.stem, file) != file:
            left_out.append((file, f"{taken[file.stem].name} has the same name"))
    return Pictures(list(taken.values()), left_out)


def caption_file(picture: Path) -> Path:
    """Where the caption of a picture lies or will lie: `<id>.txt`, or `<id>.TXT` if that is there."""
    return next(
        (file for file in (picture.with_suffix(".txt"), picture.with_suffix(".TXT")) if file.is_file()),
        picture.with_suffix(".txt"),
    )


@dataclass(frozen=True)
class Source:
    """One triptych on disk and the hashes that say whether its record is still true."""

    id: str
    image: Path
    caption: str
    layout: PanelLayout
    layout_by: LayoutBy
    item: str
    """What its garment is called; empty if nobody says."""
    image_sha256: str

    @property
    def caption_sha256(self) -> str:
        return hashlib.sha256(self.caption.encode()).hexdigest()


@dataclass(frozen=True)
class Grid:
    """The layout of a whole folder's pictures, without its size: roles in reading order, `columns` of them to
    a row.
    """

    roles: tuple[str, ...]
    columns: int

    def on(self, width: int, height: int) -> PanelLayout:
        """The layout of a canvas of this size.

        Raises:
            ValueError: the panels would not be of one size.
        """
        rows = len(self.roles) // self.columns
        if width % self.columns or height % rows:
            raise ValueError(f"{width}×{height} px is no grid of {self.columns} by {rows} equal panels")
        return PanelLayout(width // self.columns, height // rows, self.roles, self.columns)


class TriptychFolder:
    """The pictures of a folder of triptychs, and what their rows say.

    Raises:
        WorkError: the folder holds no picture, or a metadata.jsonl that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found_here = list_pictures(path)
        self.pictures, self._left_out = found_here.taken, found_here.left_out
        if not self.pictures:
            found = f" {self._left_out[0][0].name} is no PNG, JPEG or WebP." if self._left_out else ""
            hint = f"Run `triptych concat` first, or put <id>.png and <id>.txt there.{found}"
            raise no_triptychs(path, hint)

    @cached_property
    def _rows(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """By file name the row of a picture; and why a row cannot be used, by the name that it gives."""
        rows: dict[str, dict[str, Any]] = {}
        wrong: dict[str, str] = {}
        metadata = self.path / "metadata.jsonl"
        for number, row in enumerate(read_jsonl(metadata) if metadata.exists() else [], 1):
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str) or not name:
                wrong[f"metadata.jsonl:{number}"] = "a row of metadata.jsonl without a file_name"
            elif Path(name).name != name or "\\" in name:
                wrong[name] = "metadata.jsonl names a file outside the folder"
            elif name in rows and rows[name] != row:
                wrong[name] = "metadata.jsonl has two different rows for it"
            else:
                rows[name] = row
        return rows, wrong

    def captioned(self) -> dict[str, tuple[Path, str]]:
        """By id each picture that has a caption, and the caption."""
        found = dict[str, tuple[Path, str]]()
        for picture in self.pictures:
            try:
                if picture.name not in self._rows[1]:
                    found[picture.stem] = picture, self._caption(picture)
            except TriptychError:
                continue
        return found

    def _caption(self, picture: Path) -> str:
        text = caption_file(picture)
        if text.is_file():
            caption = read_caption(text)
            if not caption:
                raise InputError(f"{text.name} is empty")
            return caption
        stored = self._rows[0].get(picture.name, {}).get("text", "")
        if not isinstance(stored, str) or len(stored) > CAPTION_BYTES:
            raise InputError("the text in metadata.jsonl is no caption")
        if not stored.strip():
            raise InputError(f"no caption: {picture.stem}.txt is missing")
        return stored.strip()

    def sources(self, stride: int, grid: Grid | None = None) -> tuple[list[Source], list[dict[str, Any]]]:
        """The captioned triptychs, and the others with the reason why they are left out.

        Args:
            stride: pixels of the model's token grid. grid: the layout of pictures whose row has none; without
                it three panels in a row are guessed where the shape allows it.
        """
        rows, wrong = self._rows
        sources: list[Source] = []
        rejects: list[dict[str, Any]] = [{"id": name, "reason": reason} for name, reason in wrong.items()]
        rejects += [{"id": file.name, "reason": reason} for file, reason in self._left_out]
        for picture in self.pictures:
            caption: str | None = None
            try:
                if picture.name in wrong:
                    continue
                caption = self._caption(picture)
                row = rows.get(picture.name, {})
                layout, by = _layout(row, check_header(picture), grid)
                item = row.get("item", "")
                if not isinstance(item, str):
                    raise InputError("the item in metadata.jsonl is no text")
                sources.append(
                    Source(
                        picture.stem, picture, caption, layout.check(stride), by, item, sha256_file(picture)
                    )
                )
            except BadImage as error:
                rejects.append(reject(picture, caption, error.reason))
            except (TriptychError, OSError, ValueError) as error:
                rejects.append(reject(picture, caption, str(error)))
        return sources, rejects


def reject(picture: Path, caption: str | None, reason: str) -> dict[str, Any]:
    """The row of a picture that is left out: with the hashes of what was looked at, so that a later stage can
    tell whether it was looked at as it is now.
    """
    row = {"id": picture.stem, "reason": reason}
    if caption is not None and picture.is_file():
        row |= {
            "image_sha256": sha256_file(picture),
            "caption_sha256": hashlib.sha256(caption.encode()).hexdigest(),
        }
    return row


def _layout(row: dict[str, Any], size: tuple[int, int], grid: Grid | None) -> tuple[PanelLayout, LayoutBy]:
    """The layout of a canvas of `size` (width, height), and who says so.

    Raises:
        InputError, ValueError: a layout that does not fit, or none where three panels in a row are no fair
            guess.
    """
    width, height = size
    if row.get("layout") is not None:
        layout = PanelLayout.from_dict(row["layout"])
        if layout.size != size:
            raise InputError(
                f"it is {width}×{height} px, its layout in metadata.jsonl {layout.size[0]}×{layout.size[1]} "
                "px"
            )
        return layout, "metadata"
    if grid is not None:
        return grid.on(width, height), "option"
    if width % 3 or not _NARROWEST <= width / 3 / height <= _WIDEST:
        raise InputError(
            f"{width}×{height} px does not look like three panels in a row, and metadata.jsonl has no layout "
            "for it; "
            "give --columns and --roles if all pictures have one layout"
        )
    return Grid(("front", "back", "worn"), 3).on(width, height), "guess"


def grid_of(columns: int | None, roles: Sequence[str] | None) -> Grid | None:
    """The layout given for a whole folder: three roles in as many columns where only one of the two is given.

    Raises:
        ValueError: roles that are no plain, different words, or that do not fill the rows.
    """
    if columns is None and roles is None:
        return None
    names = tuple(roles or ("front", "back", "worn"))
    layout = PanelLayout.from_dict(
        {"width": 1, "height": 1, "roles": list(names), "columns": columns or len(names)}
    )
    return Grid(layout.roles, layout.columns)


def item_of(id: str, item: str | None) -> str:
    """What tells the garments of triptychs apart: the item that the record names. Older records name none,
    and ids as `concat` gives them then tell it: the item's name and 12 hex digits. Where that name held no
    ASCII, each is its own.
    """
    if item:
        return item
    readable = re.sub(r"-[0-9a-f]{12}$", "", id)
    return id if readable == "item" or len(readable) >= 48 else readable
