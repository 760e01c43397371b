"""Triptychs on disk from any source: picture, caption, layout and item.

A picture `<id>.png` (or .jpg, .jpeg, .webp, in any case) has its caption in `<id>.txt` or, without that file,
in the field `text` of its row in metadata.jsonl. The row, with `file_name` as in a Hugging Face
`imagefolder`, also gives its `layout` and `item`. Rows may come from anybody, so they are checked.

Three stages share the folder: `concat` writes pictures, rows and the list of rejects; `caption` writes
captions, their rows and its journal; `embed` reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from triptych.data.captions import markers_of, read_caption
from triptych.errors import InputError, TriptychError, WorkError
from triptych.pictures.images import BadImage, check_header
from triptych.pictures.panels import PanelLayout
from triptych.store.files import read_jsonl, sha256_file, write_jsonl
from triptych.store.journal import Journal, journal_rows
from triptych.store.text import CAPTION_BYTES

LayoutBy = Literal["metadata", "option", "guess"]
"""The source of a layout: the picture's row, an option for the whole folder, or a guess from the picture's
shape.
"""

METADATA = "metadata.jsonl"
"""File with a row for every picture."""
REJECTS = "concat.rejects.jsonl"
"""File with the items and photos without a triptych, each with its reason."""
JOURNAL = "caption.jsonl"
"""The journal of `caption`: answers, captions written, pictures moved away."""

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_OTHER_PICTURES = frozenset({".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jfif", ".jpe"})
# Range of a panel's width / height for which three panels in a row are a plausible guess. A portrait photo in
# three columns gives 0.25, a square one 0.33, a photo of 3:2 or a pair of 3:4 panels 0.5, a film still 0.59.
_NARROWEST, _WIDEST = 0.6, 1.4


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder: `taken`, one per id, and `left_out`, other files with the reason."""

    taken: list[Path]
    left_out: list[tuple[Path, str]]


def list_pictures(folder: Path) -> Pictures:
    """The triptychs of a folder by name, the same for every stage; none if there is no folder."""
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
    """The path of a picture's caption: `<id>.txt`, or `<id>.TXT` if that exists. The file may be missing."""
    return next(
        (file for file in (picture.with_suffix(".txt"), picture.with_suffix(".TXT")) if file.is_file()),
        picture.with_suffix(".txt"),
    )


@dataclass(frozen=True)
class Source:
    """One triptych on disk, with hashes that show whether its record is still valid."""

    id: str
    image: Path
    caption: str
    layout: PanelLayout
    layout_by: LayoutBy
    item: str
    """The garment's name; empty if unknown."""
    image_sha256: str
    markers: tuple[str, ...] = ()
    """The caption's markers, one for each panel; empty for the house format."""

    @property
    def caption_sha256(self) -> str:
        return hashlib.sha256(self.caption.encode()).hexdigest()


@dataclass(frozen=True)
class Grid:
    """The layout of all pictures of a folder, without a size: roles in reading order, `columns` of them in a
    row.
    """

    roles: tuple[str, ...]
    columns: int

    def on(self, width: int, height: int) -> PanelLayout:
        """The layout of a canvas of this size.

        Raises:
            ValueError: the panels would not have equal sizes.
        """
        rows = len(self.roles) // self.columns
        if width % self.columns or height % rows:
            raise ValueError(f"{width}×{height} px is no grid of {self.columns} by {rows} equal panels")
        return PanelLayout(width // self.columns, height // rows, self.roles, self.columns)


class TriptychFolder:
    """The pictures of a folder of triptychs, and their rows.

    The folder is read once, at first use; after changing it, create a new `TriptychFolder`. A missing folder
    counts as an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _found(self) -> Pictures:
        return list_pictures(self.path)

    def pictures(self) -> list[Path]:
        """The triptychs, sorted by name, one per id."""
        return self._found.taken

    def left_out(self) -> list[tuple[Path, str]]:
        """Files that are no triptychs, each with the reason."""
        return self._found.left_out

    def picture(self, id: str, suffix: str = ".png") -> Path:
        """The path of the picture with an id, whether or not it exists."""
        return self._by_id.get(id, self.path / f"{id}{suffix}")

    @cached_property
    def _by_id(self) -> dict[str, Path]:
        return {picture.stem: picture for picture in self.pictures()}

    def has_captions(self) -> bool:
        """Whether there is any text file."""
        return any(self.path.glob("*.txt"))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metadata.jsonl, unchecked, also those of other files; none if it is missing.

        Raises:
            WorkError: it is damaged.
        """
        return self._rows

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        metadata = self.path / METADATA
        return read_jsonl(metadata) if metadata.exists() else []

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write metadata.jsonl anew."""
        write_jsonl(self.path / METADATA, rows)

    def write_rejects(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rejects: items without a triptych, and rows with `spare` for photos that were
        not needed.
        """
        write_jsonl(self.path / REJECTS, rows)

    def journal(self) -> Journal:
        """The journal of `caption`, for writing."""
        return Journal(self.path / JOURNAL)

    def journal_rows(self) -> list[dict[str, Any]]:
        """The rows of `caption`'s journal."""
        return journal_rows(self.path / JOURNAL)

    def nothing_here(self, hint: str) -> WorkError:
        """The error of a stage that finds no pictures, with the reasons from `concat`.

        hint: the hint for a folder that `concat` has not written to.
        """
        rejects = self.path / REJECTS
        try:
            rows = [row for row in read_jsonl(rejects) if not row.get("spare")] if rejects.exists() else []
        except WorkError:
            rows = []
        if not rows:
            return WorkError(f"There are no triptychs in {self.path}.", hint)
        reasons = Counter(str(row.get("reason")) for row in rows).most_common(3)
        listed = "; ".join(f"{count} × {reason}" for reason, count in reasons)
        mend = (
            "Mend the photos, or say what they show in overrides.txt; then run `triptych clean` and "
            "`triptych concat` again."
        )
        return WorkError(f"There are no triptychs in {self.path}: `concat` could make none ({listed}).", mend)

    @cached_property
    def _checked(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """({file name: row of the picture}, {name in an unusable row: the reason})."""
        rows: dict[str, dict[str, Any]] = {}
        wrong: dict[str, str] = {}
        for number, row in enumerate(self.rows(), 1):
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                wrong[f"{METADATA}:{number}"] = f"a row of {METADATA} without a file_name"
            elif Path(name).name != name or "\\" in name:
                wrong[name] = f"{METADATA} names a file outside the folder"
            elif name in rows and rows[name] != row:
                wrong[name] = f"{METADATA} has two different rows for it"
            else:
                rows[name] = row
        return rows, wrong

    def row(self, id: str) -> dict[str, Any]:
        """The row of a picture in metadata.jsonl; empty if there is none.

        Raises:
            InputError: the row is unusable.
        """
        name = self.picture(id).name
        rows, wrong = self._checked
        if name in wrong:
            raise InputError(wrong[name])
        return rows.get(name, {})

    def caption(self, id: str) -> str:
        """The caption file of a picture or, without it, the caption in its row.

        Raises:
            InputError: there is no caption, or it cannot be read.
        """
        row, text = self.row(id), caption_file(self.picture(id))
        if text.is_file():
            caption = read_caption(text)
            if not caption:
                raise InputError(f"{text.name} is empty")
            return caption
        stored = row.get("text", "")
        if not isinstance(stored, str) or len(stored) > CAPTION_BYTES:
            raise InputError(f"the text in {METADATA} is no caption")
        if not stored.strip():
            raise InputError(f"no caption: {id}.txt is missing")
        return stored.strip()

    def layout(
        self, id: str, grid: Grid | None = None, usual: Grid | None = None
    ) -> tuple[PanelLayout, LayoutBy]:
        """The layout of a picture, and its source.

        grid: the layout of pictures without one in their row. usual: three panels in a row, the guess if
        there is no `grid` and the picture's shape allows it.

        Raises:
            BadImage: the picture cannot be opened. InputError, ValueError: no layout fits it.
        """
        return _layout(self.row(id), check_header(self.picture(id)), grid, usual)

    def item(self, id: str) -> str:
        """The garment's name; empty if unknown.

        Raises:
            InputError: the item in the row is no text.
        """
        item = self.row(id).get("item", "")
        if not isinstance(item, str):
            raise InputError(f"the item in {METADATA} is no text")
        return item

    def captioned(self) -> dict[str, tuple[Path, str]]:
        """By id, each picture with a caption, and the caption."""
        found = dict[str, tuple[Path, str]]()
        for picture in self.pictures():
            with contextlib.suppress(TriptychError):
                found[picture.stem] = picture, self.caption(picture.stem)
        return found

    def sources(
        self, stride: int, grid: Grid | None = None, usual: Grid | None = None
    ) -> tuple[list[Source], list[dict[str, Any]]]:
        """The triptychs with captions, and rows for the others with the reason why they are left out.

        Args:
            stride: side of a cell of the model's token grid, in pixels. grid, usual: see `layout`.

        Raises:
            WorkError: the folder holds no picture, or a metadata.jsonl that cannot be read.
        """
        if not self.pictures():
            found = f" {self.left_out()[0][0].name} is no PNG, JPEG or WebP." if self.left_out() else ""
            raise self.nothing_here(
                f"Run `triptych concat` first, or put <id>.png and <id>.txt there.{found}"
            )
        wrong = self._checked[1]
        sources: list[Source] = []
        rejects: list[dict[str, Any]] = [{"id": name, "reason": reason} for name, reason in wrong.items()]
        rejects += [{"id": file.name, "reason": reason} for file, reason in self.left_out()]
        for picture in self.pictures():
            id, caption = picture.stem, None
            if picture.name in wrong:
                continue
            try:
                caption = self.caption(id)
                layout, by = self.layout(id, grid, usual)
                layout.check(stride)
                markers = markers_of(self.row(id).get("markers"), len(layout.roles))
                sha256 = sha256_file(picture)
                sources.append(Source(id, picture, caption, layout, by, self.item(id), sha256, markers))
            except BadImage as error:
                rejects.append(reject(picture, caption, error.reason))
            except (TriptychError, OSError, ValueError) as error:
                rejects.append(reject(picture, caption, str(error)))
        return sources, rejects


def reject(picture: Path, caption: str | None, reason: str) -> dict[str, Any]:
    """The row of an omitted picture, with hashes of the files, so that a later stage can tell whether they
    have changed since.
    """
    row = {"id": picture.stem, "reason": reason}
    if caption is not None and picture.is_file():
        row |= {
            "image_sha256": sha256_file(picture),
            "caption_sha256": hashlib.sha256(caption.encode()).hexdigest(),
        }
    return row


def _layout(
    row: dict[str, Any], size: tuple[int, int], grid: Grid | None, usual: Grid | None
) -> tuple[PanelLayout, LayoutBy]:
    """The layout of a canvas of `size` (width, height), and its source.

    Raises:
        InputError, ValueError: a layout that does not fit, or no layout and a shape that three panels in a
            row would hardly have.
    """
    width, height = size
    if row.get("layout") is not None:
        layout = PanelLayout.from_dict(row["layout"])
        if layout.size != size:
            raise InputError(
                f"it is {width}×{height} px, its layout in {METADATA} {layout.size[0]}×{layout.size[1]} px"
            )
        return layout, "metadata"
    if grid is not None:
        return grid.on(width, height), "option"
    if usual is None or width % 3 or not _NARROWEST <= width / 3 / height <= _WIDEST:
        raise InputError(
            f"{width}×{height} px does not look like three panels in a row, and {METADATA} has no layout "
            "for it; `triptych import` takes other panels, or give --columns and --roles if all pictures "
            "have one layout"
        )
    return usual.on(width, height), "guess"


def grid_of(columns: int | None, roles: Sequence[str] | None, usual: Grid) -> Grid | None:
    """The layout given for a whole folder. If only one of the two is given: the roles of `usual`, or all
    roles in one row.

    Raises:
        ValueError: roles that are not distinct plain words, or that do not fill the rows.
    """
    if columns is None and roles is None:
        return None
    names = tuple(roles or usual.roles)
    layout = PanelLayout.from_dict(
        {"width": 1, "height": 1, "roles": list(names), "columns": columns or len(names)}
    )
    return Grid(layout.roles, layout.columns)


def item_of(id: str, item: str | None) -> str:
    """The name that distinguishes the garments of triptychs: the item in the record. Older records have no
    item; there the name comes from an id of `concat`, which ends in 12 hex digits. If the name had no ASCII
    characters, each triptych counts as an item of its own.
    """
    if item:
        return item
    readable = re.sub(r"-[0-9a-f]{12}$", "", id)
    return id if readable == "item" or len(readable) >= 48 else readable
