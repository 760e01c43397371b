"""Finds a font that can draw a text: Pillow's own for most European names, a system font for other scripts.

A font draws a box for a character it lacks. So every character is looked up first, and a text that no font
here can draw is left out.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FOLDERS = (
    "~/.fonts",
    "~/.local/share/fonts",
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/run/host/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)
MAX_FILES = 2000  # limits the search: a designer's machine may have far more fonts
_FIRST = (
    "notosans",
    "notosanscjk",
    "dejavusans",
    "arialuni",
    "segoeui",
    "pingfang",
    "hiragino",
    "msyh",
    "malgun",
    "simsun",
    "arial",
)
_SHAPED = frozenset({"R", "AL", "AN"})  # written from right to left, letters joined: only with Pillow's raqm
_INDIC = range(0x0900, 0x0E00)  # letters that change places and shapes: these need raqm too


def font_for(text: str, size: int) -> Font | None:
    """A font with every character of a line of text, at `size` pixels; None if there is none here."""
    needed = {character for character in text if not character.isspace()}
    if not needed:
        return _own(size)
    if not features.check("raqm") and any(
        unicodedata.bidirectional(c) in _SHAPED or ord(c) in _INDIC for c in needed
    ):
        return None
    return _find(frozenset(needed), size)


@functools.lru_cache(maxsize=1024)
def _find(needed: frozenset[str], size: int) -> Font | None:
    if _has(_own(size), needed):
        return _own(size)
    for path in _files():
        font = _load(path, size)
        if font is not None and _has(font, needed):
            return font
    return None


@functools.lru_cache(maxsize=8)
def _own(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=256)
def _load(path: Path, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(path), size)
    except (OSError, ValueError, MemoryError):  # damaged, or made for one size only
        return None


def _has(font: Font, needed: frozenset[str]) -> bool:
    """Whether the font draws each of the characters differently from a character that does not exist."""
    try:
        box = {_drawn(font, missing) for missing in ("\U0010ffff", "\ufdd0", "\ufffe")}
        return not any(_drawn(font, character) in box for character in needed)
    except (OSError, ValueError):
        return False


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character, mode="L")
    return mask.size, bytes(mask)


@functools.cache
def _files() -> tuple[Path, ...]:
    """Font files of the system, the most likely ones first."""

    def walk() -> Iterator[Path]:
        for folder in FOLDERS:
            for name, _, files in os.walk(os.path.expanduser(folder)):
                for file in files:
                    if file.lower().endswith((".ttf", ".otf", ".ttc")):
                        yield Path(name, file)

    found: list[Path] = []
    for path in walk():
        found.append(path)
        if len(found) == MAX_FILES:
            break

    def rank(path: Path) -> tuple[bool, int, int, str]:
        name = path.stem.lower().replace("-", "").replace("_", "")
        fancy = any(
            word in name
            for word in ("bold", "italic", "oblique", "light", "thin", "mono", "serif", "condensed")
        )
        return (
            fancy,
            next((n for n, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST)),
            len(name),
            str(path),
        )

    return tuple(sorted(found, key=rank))
