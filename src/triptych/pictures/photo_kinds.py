"""Tells file types by their first bytes: pictures that Pillow reads, and the many others that are no usable
photos.

Camera raw files are the dangerous case. They are TIFFs inside, with a thumbnail as first picture. Some
ordinary TIFFs have one too. So this module reads the pages of a TIFF before Pillow opens the file.

All numbers come from untrusted files: reads are bounded, and a damaged directory ends the search.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

HEAD = 4096
"""Bytes that are read to tell a file's type."""
_RAW_WORDS = """
.3fr .ari .arw .bay .cap .cr2 .cr3 .crw .cs1 .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq .k25 .kdc .mdc
.mef .mos .mrw .nef .nrw .orf .pef .ptx .pxn .r3d .raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f
"""
RAW_SUFFIXES = frozenset(_RAW_WORDS.split())
"""File endings of camera raw files."""
EXPORT = "Export it as JPEG, or save it as JPEG in an image editor."


@dataclass(frozen=True)
class Foreign:
    """A file that is no usable photo: its type and the remedy in a few words, and a hint as a sentence."""

    reason: str
    hint: str = EXPORT


CAMERA_RAW = Foreign(
    "camera RAW: export as JPEG", "Develop it in your camera's software and export it as JPEG."
)
HEIC = Foreign(
    "HEIC: export as JPEG (or install pillow-heif)", "Export it as JPEG, or run `pip install pillow-heif`."
)
PREVIEW = Foreign("TIFF that begins with a small preview: export as JPEG")
VIDEO = Foreign("video: not a photo", "Take a still picture from it and save that as JPEG.")
POINTER = Foreign(
    "placeholder of Git LFS, DVC or git-annex: fetch the photo itself",
    "Run `git lfs pull`, `dvc pull` or `git annex get`.",
)

_HEIF_BRANDS = frozenset(
    {
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"hevm",
        b"hevs",
        b"mif1",
        b"mif2",
        b"msf1",
        b"heif",
    }
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_STARTS: tuple[tuple[bytes, Foreign], ...] = (
    (b"%PDF", Foreign("PDF: not a photo")),
    (b"%!PS", Foreign("PostScript: not a photo")),
    (b"\xc5\xd0\xd3\xc6", Foreign("PostScript: not a photo")),
    (b"8BPS", Foreign("Photoshop file: export as JPEG")),
    (b"8BPB", Foreign("Photoshop file: export as JPEG")),
    (b"gimp xcf", Foreign("GIMP file: export as JPEG")),
    (b"\xff\x0a", Foreign("JPEG XL: export as JPEG")),
    (b"\0\0\0\x0cJXL ", Foreign("JPEG XL: export as JPEG")),
    (b"\0\0\0\x0cjP  ", Foreign("JPEG 2000: export as JPEG")),
    (b"\xff\x4f\xff\x51", Foreign("JPEG 2000: export as JPEG")),
    (b"v/1\x01", Foreign("OpenEXR: export as JPEG")),
    (b"\0\0\1\0", Foreign("icon: not a photo")),
    (b"PK\3\4", Foreign("zip archive: unpack it", "Unpack it into the item's folder.")),
    (b"PK\5\6", Foreign("zip archive: unpack it", "Unpack it into the item's folder.")),
    (b"Rar!\x1a\7", Foreign("archive: unpack it", "Unpack it into the item's folder.")),
    (b"7z\xbc\xaf\x27\x1c", Foreign("archive: unpack it", "Unpack it into the item's folder.")),
    (b"\x1f\x8b", Foreign("archive: unpack it", "Unpack it into the item's folder.")),
    (b"BZh", Foreign("archive: unpack it", "Unpack it into the item's folder.")),
    (b"\xfd7zXZ\0", Foreign("archive: unpack it", "Unpack it into the item's folder.")),
    (b"\x1a\x45\xdf\xa3", VIDEO),  # Matroska, WebM
    (b"FLV\1", VIDEO),
    (b"\0\0\1\xba", VIDEO),  # MPEG
    (b"\0\0\1\xb3", VIDEO),
    (b"OggS", VIDEO),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", VIDEO),  # WMV
    (b"IIRO", CAMERA_RAW),  # Olympus
    (b"IIRS", CAMERA_RAW),
    (b"MMOR", CAMERA_RAW),
    (b"IIU\0", CAMERA_RAW),  # Panasonic, Leica
    (b"IIII", CAMERA_RAW),  # Phase One
    (b"MMMM", CAMERA_RAW),
    (b"FUJIFILMCCD-RAW", CAMERA_RAW),
    (b"\0MRM", CAMERA_RAW),  # Minolta
    (b"FOVb", CAMERA_RAW),  # Sigma
    (b"ARRI", CAMERA_RAW),
    (b"version https://git-lfs", POINTER),
    (b"/annex/objects/", POINTER),
    (b"../.git/annex/", POINTER),
)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Look(NamedTuple):
    """The type of a file: `foreign` if it is no usable photo, and the page to read (0 except for TIFFs that
    begin with a preview).
    """

    foreign: Foreign | None
    page: int = 0


def look(file: BinaryIO, suffix: str, *, heif: bool = False) -> Look:
    """Tell the type of an open file. `suffix` is the ending of its name; `heif` says whether Pillow reads
    HEIC here.

    Only files of a known other type are foreign; Pillow decides about all others.
    """
    head = file.read(HEAD)
    for start, foreign in _STARTS:
        if head.startswith(start):
            return Look(foreign)
    if head[4:8] == b"ftyp":
        return Look(_iso_media(head, heif))
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return Look(VIDEO)
    if head[4:8] in (b"moov", b"mdat", b"wide"):  # QuickTime from before it had brands
        return Look(VIDEO)
    if head[6:14] == b"HEAPCCDR":  # Canon's first raw files
        return Look(CAMERA_RAW)
    if head[:4] in _TIFF_STARTS:
        if suffix.lower() in RAW_SUFFIXES or head[8:10] == b"CR":
            return Look(CAMERA_RAW)
        return _tiff(file)
    return Look(_text(head))


def _iso_media(head: bytes, heif: bool) -> Foreign | None:
    """MP4, QuickTime, HEIC, AVIF and CR3 share one container, whose first box lists its brands."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    brands = {major} | {head[at : at + 4] for at in range(16, length - 3, 4)}
    if major == b"crx ":
        return CAMERA_RAW
    if brands & _AVIF_BRANDS:
        return None  # Pillow reads AVIF
    if brands & _HEIF_BRANDS:
        return None if heif else HEIC
    if major in (b"jp2 ", b"jpx "):
        return Foreign("JPEG 2000: export as JPEG")
    return VIDEO


def _text(head: bytes) -> Foreign | None:
    """Recognise text instead of a picture: a saved web page, an SVG drawing, a note."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1024].lower()
    if start.startswith(b"<svg") or (
        start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in head.lower()
    ):
        return Foreign("SVG drawing: export as JPEG")
    if start.startswith((b"<!doctype html", b"<html")):
        return Foreign("web page: not a photo", "Download the photo itself.")
    if head and b"\0" not in head:
        try:
            words = head.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start < len(head) - 3:  # not just a character that the end of `head` cuts in two
                return None
            words = head[: error.start].decode("utf-8")
        if all(character.isprintable() or character in "\r\n\t\f" for character in words):
            return Foreign("text: not a photo", "Keep only photos in the item folders; notes do no harm.")
    return None


# --- TIFF
# ------------------------------------------------------------------------------------------------------------

MAX_DIRECTORIES = 64
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = (
    254,
    255,
    256,
    257,
    262,
    330,
    50706,
)
_SENSOR = (32803, 34892)  # photometric interpretation: colour filter array, linear raw
_SIZES = {
    1: 1,
    3: 2,
    4: 4,
    13: 4,
    16: 8,
    18: 8,
}  # {type of a value: its bytes}; the tags read here have no other types
_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class _Page(NamedTuple):
    size: tuple[int, int]
    small: bool
    """Whether it says that it is a smaller version of another page, or a mask."""
    sensor: bool

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]


def _tiff(file: BinaryIO) -> Look:
    """Find the page of a TIFF that is the photo. A raw file of any name, and a photo that only a
    sub-directory holds, are foreign.
    """
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    big = struct.unpack(order + "H", file.read(2))[0] == 43
    pages, children = list[_Page](), list[_Page]()
    try:
        if big:
            file.seek(8)
        following = _number(file, order, big)
        seen: set[int] = set()
        while following and following not in seen and len(seen) < MAX_DIRECTORIES:
            seen.add(following)
            tags, after = _directory(file, following, order, big)
            pages.append(_page(tags))
            if _DNG_VERSION in tags:
                return Look(CAMERA_RAW)
            for offset in tags.get(_SUB_IFDS, ())[:MAX_DIRECTORIES]:
                if offset not in seen and len(seen) < MAX_DIRECTORIES:
                    seen.add(offset)
                    children.append(_page(_directory(file, offset, order, big)[0]))
            following = after
    except (struct.error, OSError, ValueError):
        pass  # keep the directories before the damage
    if any(page.sensor for page in (*pages, *children)):
        return Look(CAMERA_RAW)
    if not pages:
        return Look(None)
    first, largest = pages[0], max(pages, key=lambda page: (not page.small, page.area))
    hidden = max((page.area for page in children if not page.small), default=0)
    if hidden > max(page.area for page in pages) and first.small:
        return Look(PREVIEW)
    if first.small or (largest.area > first.area and _same_shape(first.size, largest.size)):
        return Look(PREVIEW) if largest.small and len(pages) == 1 else Look(None, pages.index(largest))
    return Look(None)


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size may be the other one scaled: equal aspect within 4 %."""
    return min(*one, *other) > 0 and 0.96 < (one[0] * other[1]) / (one[1] * other[0]) < 1.04


def _number(file: BinaryIO, order: str, big: bool) -> int:
    """An offset."""
    return int(struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))[0])


def _directory(file: BinaryIO, at: int, order: str, big: bool) -> tuple[dict[int, tuple[int, ...]], int]:
    """({tag: its numbers}, offset of the next directory or 0), for the tags that this module needs."""
    file.seek(at)
    count = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))[0]
    if count > 4096:
        raise ValueError("no directory has so many entries")
    entry, room = (20, 8) if big else (12, 4)
    data = file.read(count * entry)
    after = _number(file, order, big) if len(data) == count * entry else 0
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(data) - entry + 1, entry):
        tag, kind = struct.unpack_from(order + "HH", data, start)
        number = struct.unpack_from(order + ("Q" if big else "I"), data, start + 4)[0]
        if (
            tag not in (_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION)
            or kind not in _SIZES
        ):
            continue
        number = min(number, MAX_DIRECTORIES)
        length = number * _SIZES[kind]
        value = data[start + entry - room : start + entry]
        if length > room:
            file.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = file.read(length)
        if len(value) >= length:
            tags[tag] = struct.unpack_from(f"{order}{number}{_LETTERS[kind]}", value)
    return tags, after


def _page(tags: dict[int, tuple[int, ...]]) -> _Page:
    def value(tag: int) -> int:
        return (tags.get(tag) or (0,))[0]

    small = bool(value(_SUBFILE) & 0b101) or value(_OLD_SUBFILE) == 2  # bit 0: reduced, bit 2: mask
    return _Page((value(_WIDTH), value(_HEIGHT)), small, value(_PHOTOMETRIC) in _SENSOR)
