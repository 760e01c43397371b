"""The catalogue of photos: each photo's item and verdict.

`photos.jsonl` has one row per file under the photo folder, also for rejected files, with the reason.
`overrides.txt` holds the user's corrections, which win over the classifier:

    # path from the photo folder, then a label: human, garment, rejected, or the role of a product photo
    item1/IMG_0012.jpg  human
    item2/my coat 3.jpg back
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from triptych.data.photo_folders import COPY_LINKS, LEAVES, writable
from triptych.errors import InputError, WorkError
from triptych.store.files import read_jsonl, read_text, write_jsonl

PHOTOS, OVERRIDES = "photos.jsonl", "overrides.txt"
LABELS = ("human", "garment", "unsure", "rejected")
OVERRIDDEN = "override: "
"""Beginning of the reason for a label that the user gave; the word of the override file follows."""
MIXED = "its item seems to hold several garments"
"""The reason for garment photos of such an item, which are labelled unsure."""


def override_labels(roles: Iterable[str]) -> dict[str, str]:
    """Words of the override file, and the catalogue label of each. roles: those of product photos."""
    return {"human": "human", "garment": "garment", **dict.fromkeys(roles, "garment"), "rejected": "rejected"}


@dataclass(frozen=True)
class Photo:
    """The verdict about one file.

    Attributes:
        item: the product it belongs to; "" for files outside item folders.
        path: the photo folder as the user gave it, joined with the relative path; it opens from the same
        current directory. sha256: hex digest of the file's bytes; "" for files refused unread. label: one of
        `LABELS`. score: the classifier's probability in [0, 1] that the photo shows a human; None if it was
        not asked. reason: why the photo is rejected or (`MIXED`) unsure, or who labelled it if not the
        classifier (`override: human`, `example`); else "".
        flags: what to look at although the photo is used: "" or several, with "; " between them.
    """

    item: str
    path: str
    sha256: str
    label: str
    score: float | None = None
    reason: str = ""
    flags: str = ""

    def __post_init__(self) -> None:
        assert self.label in LABELS, self.label


def write_photos(path: Path, photos: Iterable[Photo]) -> None:
    """Write `photos.jsonl`. Names that are not UTF-8 (always rejected files) are written with "?"."""
    write_jsonl(
        path,
        (
            {key: writable(value) if isinstance(value, str) else value for key, value in asdict(p).items()}
            for p in photos
        ),
    )


def read_photos(path: Path) -> list[Photo]:
    """The rows of `photos.jsonl`.

    Raises:
        WorkError: the file is missing, damaged, or not one of these.
    """
    if not path.exists():
        raise WorkError(
            f"There is no catalogue in {path.parent}.", "Run `triptych clean` first, with the same --work."
        )
    try:
        return [Photo(**row) for row in read_jsonl(path)]
    except (TypeError, AssertionError) as error:
        raise WorkError(
            f"{path} does not hold a catalogue of photos: {error}.", "Run 'triptych clean' again."
        ) from error


def reject_reasons(photos: Iterable[Photo]) -> list[tuple[str, int]]:
    """(reason, count) of the rejected photos, most frequent first."""
    return Counter(short_reason(photo.reason) for photo in photos if photo.label == "rejected").most_common()


def flag_counts(photos: Iterable[Photo]) -> dict[str, int]:
    """{flag without the part that differs between photos: its count}, most frequent first."""
    flags = (flag for photo in photos for flag in photo.flags.split("; ") if flag)
    return dict(Counter(short_reason(flag) for flag in flags).most_common())


def short_reason(reason: str) -> str:
    """A reason without the part that differs between photos."""
    return re.split(r": | of ", reason)[0]


def why_nothing_usable(photos: Iterable[Photo]) -> tuple[str, str]:
    """A sentence that says why a catalogue has no usable photo, and a hint."""
    return nothing_usable(Counter(photo.reason for photo in photos if photo.label == "rejected"))


def nothing_usable(reasons: Counter[str]) -> tuple[str, str]:
    """The same, from the reasons of all files."""
    if not reasons:
        return "There is no photo in the catalogue.", "Give `clean` folders with photos."
    if reasons[LEAVES] == reasons.total():
        return (
            f"All {reasons.total()} photos are links that leave the photo folder, and such links are not "
            "followed.",
            COPY_LINKS,
        )
    listed = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
    hint = COPY_LINKS if reasons[LEAVES] else "Mend that, then run the same command again."
    return f"No photo is usable: {listed}.", hint


# --- Overrides by the user
# -------------------------------------------------------------------------------------------------

MAX_OVERRIDE_BYTES = 16 << 20


def override_example(roles: Iterable[str]) -> str:
    """Lines of the override file, as in a sentence: 'item1/a.jpg ROLE' and so on, one for each role."""
    return " and ".join(f"'item1/{name}.jpg {role}'" for name, role in zip("abcdefgh", roles, strict=False))


def read_overrides(path: Path, roles: Iterable[str]) -> dict[str, str]:
    """{relative path as written: word of `override_labels`}; the later of two lines about one photo wins.

    A name may hold any character but a line break. A name with a line break, or with spaces at its ends, is
    written as a JSON string.

    Raises:
        InputError: the file cannot be read, or a line does not end in a known label.
    """
    text = read_text(path, MAX_OVERRIDE_BYTES, "The override file")
    labels = override_labels(roles)
    overrides: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would cut names at U+2028
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, word = override_of(line)
        if word not in labels or not name:
            known = ", ".join(labels)
            raise InputError(
                f"{path} line {number} does not end in a label.",
                f"Write 'item1/photo.jpg human'; labels: {known}.",
            )
        overrides[name] = word
    return overrides


def override_of(line: str) -> tuple[str, str]:
    """(name, label) of a line: the label is its last word."""
    *names, word = line.rsplit(maxsplit=1)
    name = names[0] if names else ""
    if name.startswith('"') and name.endswith('"'):
        try:
            quoted = json.loads(name)
            name = quoted if isinstance(quoted, str) else name
        except (ValueError, RecursionError):
            pass  # a name that happens to be in quotes
    return name, word.lower()


def match_overrides(
    overrides: Mapping[str, str], names: Iterable[str], photos: Path = Path(".")
) -> tuple[dict[str, str], list[str]]:
    """({name of a photo: word}, lines that match no photo). Names are relative to the photo folder, with "/".

    An exact match wins. Otherwise Windows backslashes are accepted, accented letters in composed or
    decomposed form, and the path of `photos` or its folder name in front.
    """
    meant = photos_meant(overrides, names, photos)
    matched = {name: overrides[written] for written, name in meant.items() if name is not None}
    return matched, sorted(written for written, name in meant.items() if name is None)


def photos_meant(
    written: Iterable[str], names: Iterable[str], photos: Path = Path(".")
) -> dict[str, str | None]:
    """The photo that each name in the override file means, or None; see `match_overrides`."""
    fronts = _fronts(photos)
    known = list(names)
    exact = set(known)
    near = {unicodedata.normalize("NFC", name): name for name in known}
    meant: dict[str, str | None] = {}
    for one in written:
        slashed = one.replace("\\", "/").removeprefix("./")
        below = [
            way.removeprefix(front) for way in (one, slashed) for front in fronts if way.startswith(front)
        ]
        ways = [one, slashed, *below]
        name = next((way for way in ways if way in exact), None)
        meant[one] = name or next(
            (near[nfc] for way in ways if (nfc := unicodedata.normalize("NFC", way)) in near), None
        )
    return meant


def _fronts(photos: Path) -> list[str]:
    """Prefixes that a path may have: the photo folder's path as given, its full path, or its name."""
    whole = Path(os.path.abspath(photos))
    folders = (photos.as_posix(), whole.as_posix(), Path(os.path.realpath(photos)).as_posix(), whole.name)
    return [f"{folder.rstrip('/')}/" for folder in dict.fromkeys(folders) if folder]


def override_name(path: Path, photos: Path) -> str:
    """A photo's name as `overrides.txt` expects it."""
    return as_written(path.relative_to(photos).as_posix())


def as_written(name: str) -> str:
    """A name as a line of `overrides.txt` has it: quoted if it would be misread."""
    name = writable(name)
    odd = name != name.strip() or not name.isprintable() or name[0] in '"#'
    if not odd:
        return name
    readable = json.dumps(name, ensure_ascii=False)
    return readable if readable.isprintable() else json.dumps(name)
