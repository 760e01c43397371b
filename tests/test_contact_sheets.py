"""Contact sheets in any script: every character is drawn as itself, or the line is left to the text file
beside the sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from triptych.pictures import fonts
from triptych.pictures.fonts import font_for
from triptych.pictures.sheets import contact_sheet, drawable, plain

SCRIPTS = [
    "Übergröße",
    "ş ł ğ é",
    "Жакет",
    "Ωμέγα",
    "服",
    "ワンピース",
    "한복",
    "עברית",
    "عباية",
    "ชุด",
    "कुर्ता",
    "\N{DRESS}",
]


@pytest.fixture(params=["the system's fonts", "no fonts"])
def _fonts_there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        fonts._files.cache_clear()
        fonts._find.cache_clear()

    if request.param == "no fonts":
        monkeypatch.setattr(fonts, "FOLDERS", ())
    forget()
    yield
    forget()


@pytest.mark.usefixtures("_fonts_there")
@pytest.mark.parametrize("text", SCRIPTS)
def test_no_character_is_drawn_as_a_box(text: str) -> None:
    font = font_for(text, 24)
    assert (font is not None) == drawable(text, 24 * 11)
    if font is not None:
        boxes = {bytes(font.getmask(missing, mode="L")) for missing in ("\U0010ffff", "\ufffe")}
        assert not [
            character
            for character in text
            if not character.isspace() and bytes(font.getmask(character, mode="L")) in boxes
        ]
    sheet = contact_sheet([(Image.new("RGB", (64, 64), "red"), text)], columns=1, thumb=264)
    below = np.asarray(sheet.convert("L"))[264 + 12 :, :]
    assert (below.min() < 100) == (font is not None), "either all of it is drawn or nothing"


def test_plain_names_need_no_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_files", lambda: pytest.fail("no search"))
    fonts._find.cache_clear()
    assert font_for("item1 IMG_2081.jpg (92 %) …", 12) is not None


@pytest.mark.skipif(
    not any(Path(folder).expanduser().is_dir() for folder in fonts.FOLDERS), reason="no fonts here"
)
def test_joined_letters_wait_for_raqm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "raqm")
    assert font_for("عباية", 24) is None


def test_long_names_keep_both_ends() -> None:
    narrow = contact_sheet([(None, "photo-of-a-very-long-name-0001.jpg")], thumb=64)
    other = contact_sheet([(None, "photo-of-a-very-long-name-0002.jpg")], thumb=64)
    assert narrow.tobytes() != other.tobytes()


def test_control_characters_become_spaces() -> None:
    assert plain("a\x1b[31m\n\u202eb") == "a [31m  b"
