"""Triptychs on disk, whoever made them: the picture, its caption, its layout and the item it belongs to.

A picture `<id>.png` (or .jpg, .jpeg, .webp, in any case) has its caption in `<id>.txt` or, without one, in
the field `text` of its row in metadata.jsonl. The row, with `file_name` as in a Hugging Face `imagefolder`,
also says its `layout` and `item`. Rows come from anywhere: they are data to be checked.

Three stages share the folder: `concat` writes pictures, rows and what it rejects; `caption` writes captions,
their rows and its journal; `embed` reads.
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
"""Who says which panel stands where: the picture's row, an option for the whole folder, or the picture's
shape alone.
"""

METADATA = "metadata.jsonl"
"""A row for every picture."""
REJECTS = "concat.rejects.jsonl"
"""Items and photos that `concat` made no triptych of, each with its reason."""
JOURNAL = "caption.jsonl"
"""What `caption` was answered, wrote and moved away."""

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
    markers: tuple[str, ...] = ()
    """The caption's markers, one for each panel; empty for those of the house."""

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

    What is there is looked at once, when it is first asked for; whoever has changed the folder looks at it
    with a new `TriptychFolder`. A folder that does not exist has no pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _found(self) -> Pictures:
        return list_pictures(self.path)

    def pictures(self) -> list[Path]:
        """The triptychs by name, one to an id."""
        return self._found.taken

    def left_out(self) -> list[tuple[Path, str]]:
        """Pictures that are no triptychs, each with the reason."""
        return self._found.left_out

    def picture(self, id: str, suffix: str = ".png") -> Path:
        """Where the picture of an id lies or, if there is none, would lie."""
        return self._by_id.get(id, self.path / f"{id}{suffix}")

    @cached_property
    def _by_id(self) -> dict[str, Path]:
        return {picture.stem: picture for picture in self.pictures()}

    def has_captions(self) -> bool:
        """Whether there is any text file."""
        return any(self.path.glob("*.txt"))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metadata.jsonl as they are, of whatever files; none if it is missing.

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
        """Write down of what no triptych was made; rows with `spare` are photos that were not needed."""
        write_jsonl(self.path / REJECTS, rows)

    def journal(self) -> Journal:
        """The journal of `caption`, for writing."""
        return Journal(self.path / JOURNAL)

    def journal_rows(self) -> list[dict[str, Any]]:
        """What stands in the journal of `caption`."""
        return journal_rows(self.path / JOURNAL)

    def nothing_here(self, hint: str) -> WorkError:
        """The error of a stage that finds no pictures, with the reasons that `concat` gave.

        hint: for a folder that `concat` has not written to.
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
        """By file name the row of a picture; and why a row cannot be used, by the name that it gives."""
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
        """What metadata.jsonl says of a picture; nothing if it has no row.

        Raises:
            InputError: its row cannot be used.
        """
        name = self.picture(id).name
        rows, wrong = self._checked
        if name in wrong:
            raise InputError(wrong[name])
        return rows.get(name, {})

    def caption(self, id: str) -> str:
        """The caption beside a picture or, without one, in its row.

        Raises:
            InputError: there is none, or none that can be read.
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
        """The layout of a picture, and who says so.

        grid: the layout of pictures whose row has none. usual: three panels in a row, guessed without a
        `grid` where the picture's shape allows it.

        Raises:
            BadImage: the picture cannot be opened. InputError, ValueError: no layout that fits it.
        """
        return _layout(self.row(id), check_header(self.picture(id)), grid, usual)

    def item(self, id: str) -> str:
        """What the garment of a picture is called; empty if nobody says.

        Raises:
            InputError: it is no text.
        """
        item = self.row(id).get("item", "")
        if not isinstance(item, str):
            raise InputError(f"the item in {METADATA} is no text")
        return item

    def captioned(self) -> dict[str, tuple[Path, str]]:
        """By id each picture that has a caption, and the caption."""
        found = dict[str, tuple[Path, str]]()
        for picture in self.pictures():
            with contextlib.suppress(TriptychError):
                found[picture.stem] = picture, self.caption(picture.stem)
        return found

    def sources(
        self, stride: int, grid: Grid | None = None, usual: Grid | None = None
    ) -> tuple[list[Source], list[dict[str, Any]]]:
        """The captioned triptychs, and the others with the reason why they are left out.

        Args:
            stride: pixels of the model's token grid. grid, usual: see `layout`.

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


def _layout(
    row: dict[str, Any], size: tuple[int, int], grid: Grid | None, usual: Grid | None
) -> tuple[PanelLayout, LayoutBy]:
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
    """The layout given for a whole folder: the roles of `usual`, or all roles in a row, where only one of the
    two is given.

    Raises:
        ValueError: roles that are no plain, different words, or that do not fill the rows.
    """
    if columns is None and roles is None:
        return None
    names = tuple(roles or usual.roles)
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
