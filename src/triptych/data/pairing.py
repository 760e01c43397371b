"""Chooses the photos of each triptych: product photos of an item, and one photo of a person."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.data.catalogue import MIXED, Photo
from triptych.data.roles import PhotoRoles
from triptych.data.views import EMPTY, LONE, Chosen, choose_views, is_guess
from triptych.pictures.panels import PanelLayout
from triptych.store.files import digest, parse_json

PAIRS = "pairs.jsonl"
"""Catalogue file that lists the photos of each triptych."""
CHUNK = "triptych"
"""Text chunk of a triptych's PNG with its origin, as JSON."""
EARLIER = "earlier_sha256"
"""Key in the origin: sha256 of earlier files with the same photos, in panels of another size."""


def made_from(picture: Path) -> dict[str, Any] | None:
    """The origin that a triptych states: {} if it states none, None if it is missing or damaged.

    The picture may come from anybody. Its statement is only compared with known facts and never triggers an
    action.
    """
    try:
        with Image.open(picture, formats=["PNG"]) as image:
            text = image.info.get(CHUNK)
        origin = {} if text is None else parse_json(text)
    except Exception:  # damaged PNGs make the parsers raise almost any exception
        return None
    return origin if isinstance(origin, dict) else None


def earlier_pictures(picture: Path) -> list[str]:
    """sha256 of earlier files that this triptych replaced, with the same photos: their captions hold for it
    too.
    """
    earlier = (made_from(picture) or {}).get(EARLIER)
    return [one for one in earlier if isinstance(one, str)] if isinstance(earlier, list) else []


UNSAID = "no product photo whose role an override, the name of file or folder, or `triptych roles` says"
"""The reason for an item without a triptych, where roles are never guessed."""
NO_ROLE = "nothing says its role, or another photo has it"
"""The reason for a spare product photo there."""


@dataclass(frozen=True)
class Triple:
    """The photos of one triptych.

    products: by role, the photo and the source of the decision; all the same photo when there is only one.
    person: role and photo of the person.
    """

    id: str
    item: str
    products: Mapping[str, Chosen]
    person: tuple[str, Photo]

    @property
    def photos(self) -> dict[str, Photo]:
        """By role."""
        return {role: chosen.photo for role, chosen in self.products.items()} | dict([self.person])

    @property
    def guessed(self) -> bool:
        """Whether neither the user nor a file name says which product photo has which role."""
        return is_guess(self.products)

    def origin(self, layout: PanelLayout) -> dict[str, Any]:
        """The origin of the canvas: equal origins give equal pixels."""
        hashes = {f"{role}_sha256": photo.sha256 for role, photo in self.photos.items()}
        return {"id": self.id, "item": self.item, **hashes, "layout": layout.to_dict()}

    def row(self) -> dict[str, Any]:
        return {"id": self.id, "item": self.item} | {role: photo.path for role, photo in self.photos.items()}


def plan(
    photos: Iterable[Photo],
    roles: PhotoRoles,
    max_concat_n: int,
    seed: int,
    told: Mapping[str, str] = EMPTY,
    *,
    repeat: bool = True,
) -> tuple[list[Triple], list[dict[str, Any]], list[dict[str, Any]]]:
    """(triptychs, items without a triptych and the reason, spare photos and the reason), item by item.

    The result for an item depends on its own photos alone. told: see `choose_views`.
    repeat: whether a product photo that is the only one stands in the panels of all roles; otherwise only
    in the first one's.
    """
    items: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.item:
            items.setdefault(photo.item, []).append(photo)
    person = roles.person.name
    triples: list[Triple] = []
    rejects, spares = list[dict[str, Any]](), list[dict[str, Any]]()
    for item, all_photos in items.items():
        human, garment = _distinct(all_photos, "human", spares), _distinct(all_photos, "garment", spares)
        if not human or not garment:
            lacks = (
                "no photo of a person wearing it"
                if garment
                else "no photo of the garment alone"
                if human
                else "no usable photo"
            )
            lacks = MIXED if any(photo.reason == MIXED for photo in all_photos) else lacks
            unsure = sum(photo.label == "unsure" for photo in all_photos)
            rejects.append({"item": item, "reason": lacks, "photos": len(all_photos), "unsure": unsure})
            spares += [
                _spare(photo, lacks if lacks == MIXED else f"its item has {lacks}")
                for photo in human + garment
            ]
            continue
        products = choose_views(garment, roles, told)
        if not products:
            rejects.append({"item": item, "reason": UNSAID, "photos": len(all_photos), "unsure": 0})
            spares += [_spare(photo, f"its item has {UNSAID}") for photo in human + garment]
            continue
        if not repeat:
            products = {role: one for role, one in products.items() if one.by != LONE}
        taken = [one.photo for one in products.values()]
        chosen = choose_people(human, item, max_concat_n, seed)
        spares += [
            _spare(photo, NO_ROLE if roles.some else f"another photo is the {' or '.join(products)}")
            for photo in garment
            if photo not in taken
        ]
        spares += [
            _spare(photo, f"the item has more than {max_concat_n} {person} photos")
            for photo in human
            if photo not in chosen
        ]
        triples += [
            Triple(triptych_id(item, photo.sha256), item, products, (person, photo)) for photo in chosen
        ]
    return triples, rejects, spares


def _distinct(photos: Iterable[Photo], label: str, spares: list[dict[str, Any]]) -> list[Photo]:
    """The photos with a label, each file content once; duplicates go to `spares`."""
    first: dict[str, Photo] = {}
    for photo in photos:
        if photo.label == label and first.setdefault(photo.sha256, photo) is not photo:
            spares.append(_spare(photo, f"the same file as {first[photo.sha256].path}"))
    return list(first.values())


def _spare(photo: Photo, reason: str) -> dict[str, Any]:
    return {"item": photo.item, "path": photo.path, "reason": reason, "spare": True}


def choose_people(human: Sequence[Photo], item: str, at_most: int, seed: int) -> list[Photo]:
    """At most `at_most` photos of people of an item, in their order.

    The choice depends only on seed, item and photos: adding an item, or a photo that is not chosen, changes
    nothing.
    """
    chosen = sorted(human, key=lambda photo: digest([seed, item, photo.sha256]))[:at_most]
    return [photo for photo in human if photo in chosen]


def triptych_id(item: str, person_sha256: str) -> str:
    """A valid file name for any item name: its ASCII characters, and 12 hex digits that distinguish items and
    photos of people.
    """
    ascii_only = unicodedata.normalize("NFKD", item).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-._")[:48] or "item"
    return f"{readable}-{digest([item, person_sha256])[:12]}"
