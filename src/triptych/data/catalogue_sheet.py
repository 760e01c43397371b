"""The contact sheet of a catalogue: every photo with its verdict, so that a person can spot the classifier's
mistakes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from triptych.data.catalogue import Photo, override_name, short_reason
from triptych.data.roles import PhotoRoles
from triptych.data.views import EMPTY, choose_views
from triptych.pictures.images import BadImage, load_image
from triptych.pictures.saving import save_png
from triptych.pictures.sheets import Cell, contact_sheet, drawable, plain
from triptych.store.files import digest, write_text

SHEET = 240  # photos on the contact sheet
COLOURS = {"human": "#2f7fd6", "garment": "#3aa35b", "unsure": "#f0a020", "rejected": "#d43c3c"}
_FORMAT = 4  # version of the sheet's layout: a sheet of an older version is drawn again


def draw_sheet(
    rows: list[Photo],
    path: Path,
    photos_dir: Path,
    roles: PhotoRoles,
    told: Mapping[str, str] = EMPTY,
) -> int:
    """Draw the contact sheet unless it is up to date; return the number of photos on it.

    Every photo has a number. A text file with the sheet's name lists number, path relative to the photo
    folder (as in `overrides.txt`) and verdict, since a name may be too long or in a script that no font here
    has. The sheet of a large catalogue shows the items that need attention: first those with unsure,
    rejected or flagged photos, then the rest.
    """
    items: dict[str, list[Photo]] = {}
    for row in rows:
        items.setdefault(row.item, []).append(row)
    sides = {
        photo: side for photos in items.values() for photo, side in sides_of(photos, roles, told).items()
    }
    chosen: set[str] = set()
    room = SHEET
    for item in sorted(items, key=lambda item: all(_is_plain(row) for row in items[item])):
        if room > 0:
            items[item] = items[item][:room]
            room -= len(items[item])
            chosen.add(item)
    groups = [photos for item, photos in items.items() if item in chosen]
    shown = digest(
        [_FORMAT, [[{**row.__dict__, "side": sides.get(row)} for row in photos] for photos in groups]]
    )
    listing = path.with_suffix(".txt")
    if not (listing.exists() and _shows(path, shown)):
        _draw(groups, sides, path, listing, shown, photos_dir)
    return sum(map(len, groups))


def _is_plain(row: Photo) -> bool:
    return row.label in ("human", "garment") and not row.flags


def sides_of(photos: Iterable[Photo], roles: PhotoRoles, told: Mapping[str, str] = EMPTY) -> dict[Photo, str]:
    """The photos of an item that have a role, each with the role and who says so, as `front: a guess`."""
    garment = [photo for photo in photos if photo.label == "garment"]
    if not garment or not garment[0].item:
        return {}
    taken: dict[Photo, list[str]] = {}
    chosen = choose_views(garment, roles, told)
    for role, (photo, _) in chosen.items():
        taken.setdefault(photo, []).append(role)
    return {
        photo: f"{' and '.join(names)}: "
        + ("the only one" if len(taken) < len(names) else _said(chosen[names[0]].by))
        for photo, names in taken.items()
    }


def _said(by: str) -> str:
    return {"override": "you said so", "name": "by its name", "captioner": "the captioner"}.get(by, "a guess")


def _shows(path: Path, shown: str) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as before:
            return before.info.get("catalogue") == shown
    except (OSError, SyntaxError, ValueError):
        return False


def _draw(
    groups: list[list[Photo]],
    sides: dict[Photo, str],
    path: Path,
    listing: Path,
    shown: str,
    photos_dir: Path,
) -> None:
    cells: list[Cell] = []
    lines = ["number\tpath\tverdict"]
    for index, photos in enumerate(groups):
        for row in photos:
            image = None
            if row.sha256:
                with contextlib.suppress(BadImage):
                    image = load_image(Path(row.path), longest=256)
            verdict = row.reason or row.label
            flags = list(map(short_reason, row.flags.split("; "))) if row.flags else []
            if row.score is not None and not row.reason and not row.flags and row.label != "unsure":
                verdict += f" {100 * (1 - row.score if row.label == 'garment' else row.score):.0f} %"
            number = str(len(cells) + 1)
            item, name = row.item or "(no item)", Path(row.path).name
            label = [
                f"{number} {item}" if drawable(item) else f"{number} (see {listing.name})",
                name if drawable(name) else "",
                verdict,
            ]
            cells.append(
                Cell(
                    image,
                    "\n".join(map(plain, [*label, *flags, sides.get(row, "")])),
                    COLOURS[row.label],
                    _ground(index),
                )
            )
            verdict += f" ({row.flags})" if row.flags else ""
            told = "; ".join(filter(None, (plain(verdict), sides.get(row, ""))))
            lines.append("\t".join((number, plain(override_name(Path(row.path), photos_dir)), told)))
    write_text(listing, "\n".join(lines) + "\n")
    save_png(contact_sheet(cells), path, text={"catalogue": shown})


def _ground(index: int) -> str:
    return "#ffffff" if index % 2 else "#eef0f3"
