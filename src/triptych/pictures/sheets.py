"""Contact sheets: labelled thumbnails on one picture, for people to review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from triptych.pictures.fonts import Font, font_for


class Cell(NamedTuple):
    """One picture of a contact sheet (None: unreadable), the lines below it, and the colours of its frame and
    ground.
    """

    image: Image.Image | None
    label: str
    colour: str = "#9a9a9a"
    ground: str = "#ffffff"


def contact_sheet(
    cells: Sequence[tuple[Image.Image | None, str] | Cell], columns: int = 8, thumb: int = 128
) -> Image.Image:
    """A grid of labelled thumbnails in reading order.

    `thumb` is the side in pixels of the square that a thumbnail is fitted into. Labels may have several
    lines; the middle of a line that is too long is cut out. A line in a script that no font here has is left
    out (see `drawable`).
    """
    styled = [Cell(*cell) for cell in cells]
    size = _size(thumb)
    lines = max((cell.label.count("\n") + 1 for cell in styled), default=1)
    pad, line = 8, round(size * 1.3)
    width, height = thumb + 2 * pad, thumb + 3 * pad + lines * line
    columns = max(1, min(columns, len(styled)))
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(styled) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, cell in enumerate(styled):
        left, top = index % columns * width, index // columns * height
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=cell.ground)
        if cell.image is None:
            small = Image.new("RGB", (thumb, thumb), "#d8d8d8")
            ImageDraw.Draw(small).text(
                (thumb / 2, thumb / 2), "unreadable", "#606060", ImageFont.load_default(size), anchor="mm"
            )
        else:
            small = cell.image.convert("RGB")
            small.thumbnail((thumb, thumb), Image.Resampling.LANCZOS)
        x, y = left + pad + (thumb - small.width) // 2, top + pad + (thumb - small.height) // 2
        draw.rectangle((x - 3, y - 3, x + small.width + 2, y + small.height + 2), fill=cell.colour)
        sheet.paste(small, (x, y))
        for number, text in enumerate(cell.label.split("\n")):
            text = plain(text)
            if font := font_for(text, size):
                text = _shorten(text, font, thumb + pad)
                draw.text(
                    (left + width / 2, top + thumb + 2 * pad + number * line),
                    text,
                    "#202020",
                    font,
                    anchor="ma",
                )
    return sheet


def drawable(text: str, thumb: int = 128) -> bool:
    """Whether a font here can draw a line of a label."""
    return font_for(plain(text), _size(thumb)) is not None


def plain(text: str) -> str:
    """The text on one line, with spaces in place of unprintable characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _size(thumb: int) -> int:
    return max(9, thumb // 11)


def _shorten(text: str, font: Font, width: int) -> str:
    """The text with its middle cut out so that it is at most `width` pixels wide. File names mostly differ at
    their ends.
    """
    keep = len(text)
    short = text
    while keep > 1 and font.getlength(short) > width:
        keep -= 1
        short = text[: keep - keep // 2] + "…" + text[len(text) - keep // 2 :]
    return short
