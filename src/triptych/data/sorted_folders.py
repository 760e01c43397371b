"""The photos of a catalogue in folders, `ITEM/human/` and `ITEM/garment/`, as the original project left
them.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable
from pathlib import Path

from triptych.data.catalogue import Photo
from triptych.store.links import link_or_copy

KINDS = ("human", "garment")


def write_sorted(folder: Path, photos: Iterable[Photo]) -> int:
    """Put every used photo into its folder, as a hard link, or a copy where the disk has none; returns
    their number.

    A link or copy of a photo that has another verdict now is taken away; other files in these folders stay.
    Two photos of one name in an item are told apart by the name of the folder that they lie in.

    Raises:
        WorkError: the folder cannot be written to.
    """
    count, taken = 0, set[Path]()
    for photo in photos:
        if not photo.item or not photo.sha256:
            continue
        source = Path(photo.path)
        names = (source.name, f"{source.parent.name}__{source.name}")
        for kind in KINDS:
            places = [folder / photo.item / kind / name for name in names]
            if kind != photo.label:
                for place in places:
                    if place not in taken and place.is_file() and filecmp.cmp(source, place, shallow=False):
                        place.unlink()
                continue
            place = next((place for place in places if place not in taken), places[-1])
            link_or_copy(source, place)
            taken.add(place)
            count += 1
    return count
