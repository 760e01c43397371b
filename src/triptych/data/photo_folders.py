"""Scans folders of photos: lists the files, the item of each, and the entries that cannot be photos."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from triptych.data.roles import PhotoRoles
from triptych.errors import InputError
from triptych.pictures.images import SUFFIXES

STRAY = "not in an item folder: it lies beside folders of items"
LEAVES = "link that leaves the photo folder"
COPY_LINKS = (
    "Copy the folder with `cp -rL FOLDER COPY`, which puts the photos in the place of the links, "
    "and give the copy."
)

_MANAGED_WORDS = """
@eadir @recycle @recently-snapshot @sharebin @tmp #recycle #snapshot .@__thumb thumbs thumbnails thumb
_thumbs _thumbnails _vti_cnf
captureone picasaoriginals
__macosx $recycle.bin recycler recycled recycle.bin lost+found desktop.ini thumbs.db ehthumbs.db
ehthumbs_vista.db
__pycache__ node_modules
"""
MANAGED = frozenset(
    {
        *_MANAGED_WORDS.split(),
        "icon\r",
        "system volume information",
        "lightroom previews",
        "temporary items",
        "network trash folder",
    }
)
"""Names that photo managers, network drives and systems reserve, in lower case."""
_MANAGED_ENDINGS = (
    ".lrdata",
    ".photoslibrary",
    ".aplibrary",
    ".photolibrary",
    ".lrcat",
    ".cocatalogdb",
    ".cosessiondb",
)

_VIEW_WORDS = """
side model models look looks lifestyle onmodel onbody people person human flat
flatlay packshot packshots garment product cloth detail details closeup closeups close-up close-ups zoom
swatch swatches label labels alt alternate extra extras more others other misc additional images image
img imgs photos photo pics pictures bilder fotos raw original originals web print small medium large
thumbs hires highres lowres resized edited seite
"""
VIEW_FOLDERS = frozenset(_VIEW_WORDS.split())
"""Names of folders inside an item that are no items, besides those of roles: they sort one item's photos by
view, size or origin.
"""
MOST_PER_VIEW = 6
"""Most photos in one view of one item; a folder of views with more holds the views of many items."""


@dataclass
class _Folder:
    path: Path
    photos: int = 0
    """Files directly in the folder with the ending of a photo."""
    entries: list[Path] = field(default_factory=list)
    below: list[_Folder] = field(default_factory=list)
    is_view: bool = False
    """Whether its name says that it holds photos of one view, and is no item."""

    @property
    def total(self) -> int:
        return self.photos + sum(folder.total for folder in self.below)


def real(path: Path) -> Path:
    """The path with links resolved, as far as it exists. `Path.resolve` raises for circular links."""
    return Path(os.path.realpath(path))


def scan(photos_dir: Path, roles: PhotoRoles, skip: Iterable[Path] = ()) -> list[tuple[str, Path]]:
    """Every file below a photo folder as (item, path), in natural order of items and names (2 before 10).

    An item is the topmost folder that holds photos; all deeper files belong to it. Folders above it
    (categories) become part of its name: `coats/item1` → `coats__item1`. Files directly in the photo folder
    have the item "", and so have photos beside folders of items (`coats/sizechart.jpg`). Files that `refusal`
    refuses are listed too. Hidden folders, those of photo managers and links to folders are listed as one
    entry and not entered. Folders in `skip` (work folder, examples) are left out.

    roles: their words are names of folders that sort the photos of one item.

    Raises:
        InputError: the folder is missing, is no folder or cannot be read; two item folders have the same item
            name; or the folder has the structure of a known data set instead of one folder per item.
    """
    root = Path(photos_dir)
    if not root.is_dir():
        raise InputError(
            f"The photo folder {root} does not exist or is not a folder.",
            "Give --photos a folder with one folder per item.",
        )
    closed: list[Path] = []
    tree = _tree(root, {real(folder) for folder in skip}, closed, VIEW_FOLDERS | roles.folders)
    if root in closed:
        raise InputError(f"The photo folder {root} may not be read.", "Check who may read it.")
    _refuse_data_sets(tree, _PEOPLE | roles.person.words)
    owners: dict[str, Path] = {}
    found: list[tuple[str, Path]] = []
    for item, folder in _items(tree, root):
        if item and owners.setdefault(item, folder.path) != folder.path:
            raise InputError(
                f"{owners[item]} and {folder.path} would both be item '{item}'.", "Rename one of them."
            )
        found += [(item, path) for path in (_all(folder) if _is_item(folder) and item else folder.entries)]
    return sorted(found, key=lambda entry: (natural(entry[0]), natural(str(entry[1]))))


def find_photos(photos_dir: Path, roles: PhotoRoles, asides: Iterable[Path | None]) -> list[tuple[str, Path]]:
    """`scan`, without those folders among `asides` that lie in the photo folder (work folder, examples).

    Raises:
        InputError: as `scan`; or there are no files.
    """
    given = [folder for folder in asides if folder is not None]
    found = scan(photos_dir, roles, skip=[folder for folder in given if real(folder) != real(photos_dir)])
    if not found:
        inside = [
            folder
            for folder in given
            if real(folder) != real(photos_dir) and real(folder).is_relative_to(real(photos_dir))
        ]
        if there := [str(folder) for folder in inside if any(folder.rglob("*"))]:
            left_out = (
                f"There are no photos in {photos_dir} besides {', '.join(there)}, which are left out: "
                "examples, or triptych's own files."
            )
            raise InputError(left_out, "Give --photos a folder that holds one folder of photos per item.")
        raise InputError(
            f"There are no files in {photos_dir}.",
            "Give --photos a folder that holds one folder of photos per item.",
        )
    return found


def _tree(root: Path, left_out: set[Path], closed: list[Path], views: frozenset[str]) -> _Folder:
    """The tree of all folders below `root` that are entered. Unreadable folders go to `closed` and become one
    entry each.
    """
    folders = {root: _Folder(root)}

    def deny(error: OSError) -> None:
        path = Path(error.filename)
        closed.append(path)
        if path != root:
            folders[path.parent].entries.append(path)
            folders[path.parent].below.remove(folders[path])

    for name, subs, files in os.walk(root, onerror=deny):
        here = folders[Path(name)]
        here.photos = sum(is_photo_name(file) for file in files)
        here.entries += [here.path / file for file in files]
        for sub in list(subs):
            below = here.path / sub
            if below.is_symlink() or sub.startswith(".") or is_managed(sub):
                subs.remove(sub)
                here.entries.append(below)
            elif real(below) in left_out:
                subs.remove(sub)
            else:
                folders[below] = _Folder(below, is_view=_is_view(sub, views))
                here.below.append(folders[below])
    return folders[root]


def _items(folder: _Folder, root: Path) -> Iterator[tuple[str, _Folder]]:
    """(item, folder) for every item below, and ("" or the folder's own name, folder) for the files outside
    items.
    """
    if folder.path != root and _is_item(folder):
        yield item_name(folder.path, root), folder
        return
    # A folder without photos keeps its name: an item with only unusable files is reported under its own name.
    yield ("" if folder.total or folder.path == root else item_name(folder.path, root)), folder
    for below in folder.below:
        yield from _items(below, root)


def _is_item(folder: _Folder) -> bool:
    """Whether all photos in and below a folder belong to one item."""
    subs = [below for below in folder.below if below.total]
    odd = [below for below in subs if not below.is_view]
    if folder.photos:
        # If photos lie beside several folders with photos, those folders are the items. A single such folder
        # may be a part of this item.
        return not odd or (len(odd) == 1 and folder.photos >= 2 and folder.photos >= odd[0].total)
    return (
        len(subs) > 1 and not odd and all(below.total <= MOST_PER_VIEW and not below.below for below in subs)
    )


def _refuse_data_sets(folder: _Folder, people_names: frozenset[str], depth: int = 0) -> None:
    """Refuse training data sets that are sorted by kind of picture: as item folders they would mix garments.

    Raises:
        InputError: VITON-HD's `image/` and `cloth/` with equal file names, or DressCode's `images/` with
            files 0123_0 and 0123_1, or a list of pairs beside such folders.
    """
    listed = any(_PAIRS.fullmatch(path.name.lower()) for path in folder.entries)
    people = [
        below for below in folder.below if below.path.name.casefold() in people_names and below.photos >= 2
    ]
    things = [
        below for below in folder.below if below.path.name.casefold() in _GARMENTS and below.photos >= 2
    ]
    whole = depth == 0 or listed or folder.path.name.casefold() in _PARTS
    for one in people:
        for other in things:
            common = _stems(one) & _stems(other)
            if 2 * len(common) >= min(one.photos, other.photos) and (whole or one.photos > MOST_PER_VIEW):
                raise _data_set(
                    f"{folder.path} is sorted like VITON-HD: people in {one.path.name}/, garments in "
                    f"{other.path.name}/."
                )
        if listed or _numbered_pairs(one):
            raise _data_set(
                f"{one.path} is sorted like DressCode: the people and garments of many items in one folder."
            )
    for below in folder.below:
        _refuse_data_sets(below, people_names, depth + 1)


def _data_set(message: str) -> InputError:
    return InputError(
        message,
        "`triptych import FOLDER` takes VITON-HD, DressCode and Garments2Look. Of another set, copy each "
        "pair into a folder of its own: photos/ITEM/*.jpg.",
    )


_PAIRS = re.compile(r"(\w+_)?pairs?(_\w+)?\.(txt|csv|tsv|json)")
_PEOPLE = frozenset(
    {"image", "images", "img", "person", "persons", "people", "model", "models", "human", "humans"}
)
_GARMENTS = frozenset(
    {
        "cloth",
        "cloths",
        "clothes",
        "clothing",
        "garment",
        "garments",
        "product",
        "products",
        "object",
        "objects",
    }
)
_PARTS = frozenset(
    {"train", "test", "val", "valid", "validation", "training", "testing", "paired", "unpaired"}
)


def _stems(folder: _Folder) -> set[str]:
    return {path.stem for path in folder.entries if is_photo_name(path.name)}


def _numbered_pairs(folder: _Folder) -> bool:
    """Whether the folder holds pictures N_0 and N_1 for several numbers N."""
    stems = _stems(folder)
    return (
        sum(re.fullmatch(r"\d{3,}_0", stem) is not None and stem[:-1] + "1" in stems for stem in stems) >= 2
    )


def _is_view(name: str, views: frozenset[str]) -> bool:
    words = [word for word in re.split(r"[\s_\-.]+", name.casefold()) if word]  # `model 2` is an item
    return "".join(words) in views or (bool(words) and views.issuperset(words))


def _all(folder: _Folder) -> Iterator[Path]:
    yield from folder.entries
    for below in folder.below:
        yield from _all(below)


def item_name(folder: Path, root: Path) -> str:
    return writable("__".join(folder.relative_to(root).parts))


def is_photo_name(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".") and not is_managed(name)


def is_managed(name: str) -> bool:
    """Whether this is a name that photo managers or the system reserve."""
    name = name.casefold()
    return name in MANAGED or name.endswith(_MANAGED_ENDINGS) or name.startswith((".trash", "._"))


def refusal(photos_dir: Path, item: str, path: Path) -> str | None:
    """Why an entry (item, path) found by `scan` cannot be a photo, told without opening it; None if it may be
    one.

    Links are followed only as far as they stay inside the photo folder.
    """
    inside = path.relative_to(photos_dir)
    if any(is_managed(part) for part in inside.parts):
        return "kept by a photo manager or the system"
    if any(part.startswith(".") for part in inside.parts):
        return "hidden file"
    if writable(str(inside)) != str(inside):
        return "its name is not valid UTF-8"
    if path.is_symlink():
        target = real(path)
        try:
            path.stat()
        except OSError:
            return "broken link" if target.is_relative_to(real(photos_dir)) else LEAVES
        if not target.is_relative_to(real(photos_dir)):
            return LEAVES
        if target.is_dir():
            return "link to a folder"
    if path.is_dir():
        return "folder that cannot be read"
    if not path.is_file():
        return "not a regular file"
    if item:
        return None
    return "not in an item folder" if len(inside.parts) == 1 else STRAY


def check_examples(human: Path | None, garment: Path | None, photos: Path | None = None) -> None:
    """Check that the two folders of examples do not overlap, and that the photos lie in neither.

    Raises:
        InputError: one folder lies in another, or two are the same.
    """
    apart = "Give two folders that lie side by side: examples/human and examples/garment."
    if human is not None and garment is not None:
        one, other = real(human), real(garment)
        if one == other:
            raise InputError(f"--human and --garment are the same folder, {human}.", apart)
        for inner, outer, words in (
            (one, other, "--human lies in --garment"),
            (other, one, "--garment lies in --human"),
        ):
            if inner.is_relative_to(outer):
                raise InputError(f"{words}: {human} and {garment}.", apart)
    for option, folder in (("human", human), ("garment", garment)):
        if folder is not None and photos is not None and real(photos).is_relative_to(real(folder)):
            raise InputError(
                f"The photos in {photos} lie in the folder of examples given for --{option}, {folder}.", apart
            )


def natural(text: str) -> tuple[list[tuple[str, int]], str]:
    """Sort key in natural order: `item2` before `item10`."""
    pieces = [*re.split(r"(\d+)", text.casefold()), ""]
    return [(word, int(number or 0)) for word, number in zip(pieces[::2], pieces[1::2], strict=True)], text


def writable(text: str) -> str:
    """The text as valid UTF-8: bytes of a file name that are not UTF-8 become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
