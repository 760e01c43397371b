"""The catalogue of photos: which files there are, which item each belongs to, and the verdict about every one.

`photos.jsonl` has one row per file under the photo folder, rejected ones with their reason. `overrides.txt` is the
user's word, which wins over the classifier:

    # path from the photo folder, then a label: human, garment, front, back (a garment seen from there) or rejected
    item1/IMG_0012.jpg  human
    item2/my coat 3.jpg back
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from triptych.errors import InputError, WorkError
from triptych.images import SUFFIXES
from triptych.store import read_jsonl, read_text, write_jsonl

PHOTOS, OVERRIDES = "photos.jsonl", "overrides.txt"
LABELS = ("human", "garment", "unsure", "rejected")
OVERRIDE_LABELS = {"human": "human", "garment": "garment", "front": "garment", "back": "garment", "rejected": "rejected"}
"""Words of the override file, and the label of the catalogue that each gives."""


@dataclass(frozen=True)
class Photo:
    """The verdict about one file.

    Attributes:
        item: the product it belongs to; "" for files that lie in no item folder.
        path: the photo folder as the user gave it, joined with the way down; opens from the same current directory.
        sha256: hex digest of the file's bytes; "" for what was refused unread.
        label: one of `LABELS`.
        score: confidence in [0, 1] that it shows a human; None where the classifier was not asked.
        reason: why it is rejected, or who said so if not the classifier (`override: back`, `example`); else "".
    """

    item: str
    path: str
    sha256: str
    label: str
    score: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.label in LABELS, self.label


def write_photos(path: Path, photos: Iterable[Photo]) -> None:
    """Write `photos.jsonl`; names that are not UTF-8 (they are always rejected ones) are written with "?"."""
    write_jsonl(path, ({key: writable(value) if isinstance(value, str) else value for key, value in asdict(p).items()} for p in photos))


def read_photos(path: Path) -> list[Photo]:
    """The rows of `photos.jsonl`.

    Raises:
        WorkError: the file is missing, damaged, or not one of these.
    """
    try:
        return [Photo(**row) for row in read_jsonl(path)]
    except (TypeError, AssertionError) as error:
        raise WorkError(f"{path} does not hold a catalogue of photos: {error}.", "Run 'triptych clean' again.") from error


# --- Scanning -----------------------------------------------------------------------------------------------------------


def scan(photos_dir: Path, skip: Iterable[Path] = ()) -> list[tuple[str, Path]]:
    """Every file below a photo folder as (item, path), items and names in natural order (2 before 10).

    An item is the topmost folder that holds photos: all that lies deeper belongs to it. Folders above it (categories)
    become part of its name: `coats/item1` → `coats__item1`. Files directly in the photo folder have the item "".
    What `refusal` refuses is listed too; hidden folders and links to folders are listed as one entry and not entered.
    Folders in `skip` (work folder, examples) are left out.

    Raises:
        InputError: the folder is missing, is no folder or cannot be read; or two item folders have the same item name.
    """
    root = Path(photos_dir)
    if not root.is_dir():
        raise InputError(f"The photo folder {root} does not exist or is not a folder.", "Give --photos a folder with one folder per item.")
    left_out = {folder.resolve() for folder in skip}
    found: list[tuple[str, Path]] = []
    items: dict[Path, str] = {}  # folder → the item that it and all below it belong to
    owners: dict[str, Path] = {}
    closed: list[Path] = []
    for name, folders, files in os.walk(root, onerror=lambda error: closed.append(Path(error.filename))):
        folder = Path(name)
        own = items.get(folder)
        if own is None and folder != root:
            own = writable("__".join(folder.relative_to(root).parts))
            if any(Path(file).suffix.lower() in SUFFIXES and not file.startswith(".") for file in files):
                if owners.setdefault(own, folder) != folder:
                    raise InputError(f"{owners[own]} and {folder} would both be item '{own}'.", "Rename one of them.")
                items[folder] = own
        entries = [folder / file for file in files]
        for sub in list(folders):
            below = folder / sub
            if below.is_symlink() or sub.startswith("."):
                folders.remove(sub)
                entries.append(below)
            elif below.resolve() in left_out:
                folders.remove(sub)
            elif folder in items:
                items[below] = items[folder]
        found += [(own or "", entry) for entry in entries]
    if root in closed:
        raise InputError(f"The photo folder {root} may not be read.", "Check who may read it.")
    found += [(items.get(folder.parent, ""), folder) for folder in closed]
    return sorted(found, key=lambda entry: (natural(entry[0]), natural(str(entry[1]))))


def refusal(photos_dir: Path, path: Path) -> str | None:
    """Why an entry found by `scan` is no photo whatever it contains; None if it deserves to be opened.

    Links are followed only as far as they stay inside the photo folder.
    """
    inside = path.relative_to(photos_dir)
    if any(part.startswith(".") for part in inside.parts):
        return "hidden file"
    if writable(str(inside)) != str(inside):
        return "its name is not valid UTF-8"
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(Path(photos_dir).resolve()):
            return "link that leaves the photo folder"
        if not target.exists():
            return "broken link"
        if target.is_dir():
            return "link to a folder"
    if path.is_dir():
        return "folder that cannot be read"
    if not path.is_file():
        return "not a regular file"
    return "not in an item folder" if len(inside.parts) == 1 else None


def natural(text: str) -> tuple[list[tuple[str, int]], str]:
    """Sort key that counts: `item2` before `item10`."""
    pieces = [*re.split(r"(\d+)", text.casefold()), ""]
    return [(word, int(number or 0)) for word, number in zip(pieces[::2], pieces[1::2], strict=True)], text


def writable(text: str) -> str:
    """The text as UTF-8 can hold it: bytes of a file name that are not UTF-8 become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


# --- What file names and the user say -----------------------------------------------------------------------------------

_FRONT = frozenset({"front", "frontside", "frontview", "vorne", "vorderseite", "devant", "avant", "frente", "main", "正面"})
_BACK = frozenset({"back", "backside", "backview", "rear", "hinten", "rückseite", "rueckseite", "dos", "arriere", "espalda", "背面"})


def side_hint(name: str) -> str | None:
    """Which side of a garment a file name says it shows: "front", "back" or None.

    Whole words count first (`coat_front.jpg`, `BackView-2.png`), then a last word `f` or `b`, then a last number 1 or 2
    (`coat 1.jpg`); `backpack.jpg` and `IMG_2081.jpg` say nothing, nor does a name that says both.
    """
    stem = re.sub(r"([a-z])([A-Z])", r"\1 \2", Path(name).stem)
    words = re.findall(r"[^\W\d_]+|\d+", stem.lower())
    front, back = not _FRONT.isdisjoint(words), not _BACK.isdisjoint(words)
    if front or back:
        return None if front and back else "front" if front else "back"
    last = words[-1].lstrip("0") if words else ""
    return {"f": "front", "b": "back", "1": "front", "2": "back"}.get(last)


MAX_OVERRIDE_BYTES = 16 << 20


def read_overrides(path: Path) -> dict[str, str]:
    """{path from the photo folder, with "/": word of `OVERRIDE_LABELS`}; of two lines about one photo the later wins.

    Raises:
        InputError: unreadable file, or a line without a known label at its end.
    """
    lines = read_text(path, MAX_OVERRIDE_BYTES, "The override file").splitlines()
    overrides: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, word = line.strip().replace("\t", " ").rpartition(" ")
        if word.lower() not in OVERRIDE_LABELS or not name.strip():
            known = ", ".join(OVERRIDE_LABELS)
            raise InputError(f"{path} line {number} does not end in a label.", f"Write 'item1/photo.jpg human'; labels: {known}.")
        overrides[name.strip().replace("\\", "/")] = word.lower()
    return overrides
