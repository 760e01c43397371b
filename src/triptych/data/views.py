"""Decides which product photo of an item takes which role: by the user's override, then the names of file
and folder, then what a captioner has told, then order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from triptych.data.catalogue import OVERRIDDEN, Photo
from triptych.data.photo_folders import writable
from triptych.data.roles import PhotoRoles, Role

SIDE, PART = "side", "part"
"""Hints of a name for a garment from the side, and for a part of it, that are no role of the task."""
EMPTY: Mapping[str, str] = MappingProxyType({})
LONE = "the only photo"
"""The decision about a role that shares its photo with another, for want of photos."""


class Chosen(NamedTuple):
    """The photo of a role, and the decision's source: override, name, captioner, guess, or `LONE`."""

    photo: Photo
    by: str


@cache
def _words(name: str, known: frozenset[str]) -> tuple[str, ...]:
    """The words and numbers of a file name in lower case, and pairs of them that together are a known word.
    Accented letters are in composed form, which Macs do not write.
    """
    stem = re.sub(r"([a-z])([A-Z])", r"\1 \2", unicodedata.normalize("NFKC", name))
    words = re.findall(r"[^\W\d_]+|\d+", stem.lower())
    joined = [one + two for one, two in zip(words, words[1:], strict=False) if one + two in known]
    return (*joined, *words)


def view_hint(
    name: str, roles: PhotoRoles, common: frozenset[str] = frozenset(), folders: Sequence[str] = ()
) -> str | None:
    """The view that a file name suggests: a product role, `SIDE`, `PART` (a detail, a swatch, a label, a size
    chart) or None.

    Whole words count first, of a part before those of a role (front and back: `coat_front.jpg`,
    `BackView-2.png`), then a last word for the side, then a role's last word or number (`coat 1.jpg`).
    `backpack.jpg` and `IMG_2081.jpg` suggest nothing, nor does a name with several roles of one rank. Words
    in `common` occur in the names of all photos of the item; they belong to the product's name and suggest
    nothing. folders: those that the file lies in, inside its item; each counts like the name if it has no
    other words.
    """
    words = [word for word in _words(Path(name).stem, roles.words) if word not in common or word.isdigit()]
    inside = _sorted_by(folders, roles)
    if not roles.part.isdisjoint([*words, *inside]):
        return PART
    if said := _roles_in([*words, *inside], roles):
        highest = max(role.over for role in said)
        first, *others = [role for role in said if role.over == highest]
        return None if others else first.name
    letters = [word for word in words if not word.isdigit()]
    if not roles.side.isdisjoint([*letters[-1:], *inside]) or "sideview" in letters:
        return SIDE
    last = words[-1].lstrip("0") if words else ""
    return next((role.name for role in roles.products if last in role.endings), None)


def _sorted_by(folders: Sequence[str], roles: PhotoRoles) -> list[str]:
    """The words of folders that sort photos by what they show."""
    named = [_words(folder, roles.words) for folder in folders]
    return [word for words in named if roles.words.issuperset(words) for word in words]


def _roles_in(words: Sequence[str], roles: PhotoRoles) -> list[Role]:
    """The roles that words say, in reading order."""
    return [role for role in roles.products if not role.words.isdisjoint(words)]


def _folders_of(photo: Photo) -> list[str]:
    """The folders that a photo lies in, inside its item."""
    inside: list[str] = []
    for folder in Path(photo.path).parents:
        name = writable(folder.name)
        if photo.item == name or photo.item.endswith(f"__{name}"):
            return inside
        inside.append(name)
    return []


def common_words(names: Sequence[str], roles: PhotoRoles) -> frozenset[str]:
    """The words that occur in all of several file names."""
    return (
        frozenset.intersection(*(frozenset(_words(Path(name).stem, roles.words)) for name in names))
        if len(names) > 1
        else frozenset()
    )


def _hints(photos: Sequence[Photo], roles: PhotoRoles) -> dict[Photo, str | None]:
    """The view that each photo's name suggests."""
    common = common_words([photo.path for photo in photos], roles)
    hints = {photo: view_hint(photo.path, roles, common, _folders_of(photo)) for photo in photos}
    if roles.some:  # a word in all names may be the product's name, but no photo has a role by its place
        hints |= {
            photo: view_hint(photo.path, roles, folders=_folders_of(photo))
            for photo, hint in hints.items()
            if hint is None
        }
    return hints


def _said(photo: Photo, roles: PhotoRoles) -> str | None:
    """The role that the user gave a product photo."""
    word = photo.reason.removeprefix(OVERRIDDEN)
    return word if word != photo.reason and word in roles.names else None


def choose_views(
    garment: Sequence[Photo], roles: PhotoRoles, told: Mapping[str, str] = EMPTY
) -> dict[str, Chosen]:
    """A photo for each product role among the garment photos of one item: by override first, then file names,
    then what was told, then order. told: role by sha256; one that is no role of the task means a part.

    A single photo takes all roles. So does a photo whose companions are named as none of them: a swatch or a
    size chart is no back. If an item may have any of the roles, only those are in the result that an
    override, a name or `told` says.
    """
    assert garment
    hints = _hints(garment, roles)
    said = {photo: role for photo in garment if (role := _said(photo, roles))}
    heard = {
        photo: told[photo.sha256]
        for photo in garment
        if photo.sha256 in told and photo not in said and hints[photo] is None
    }
    if roles.some:
        return _named(garment, roles, hints, said, heard)
    hints |= {photo: PART for photo, role in heard.items() if role not in roles.names}
    for level in ((None, *roles.names), (SIDE,), (PART,)):
        whole = [photo for photo in garment if photo in said or hints[photo] in level]
        if whole:
            break

    def best(role: str, among: Sequence[Photo]) -> Chosen:
        def rank(photo: Photo) -> int:
            if photo in said:
                return 0 if said[photo] == role else 5
            if hints[photo] is None and photo in heard:
                return 2 if heard[photo] == role else 4
            return {role: 1, None: 3}.get(hints[photo], 4)

        photo = min(among, key=rank)  # the first of equals
        return Chosen(photo, ("override", "name", "captioner", "guess", "guess", "guess")[rank(photo)])

    chosen, rest = dict[str, Chosen](), whole
    for role in roles.names:
        chosen[role] = best(role, rest) if rest else Chosen(chosen[roles.names[0]].photo, LONE)
        rest = [photo for photo in rest if photo is not chosen[role].photo]
    guesses = [role for role, one in chosen.items() if one.by == "guess"]
    settled = [one.by for one in chosen.values() if one.by in ("override", "name", "captioner")]
    sure = not any(chosen[role].photo in heard for role in guesses)  # it was told to be something else
    if len(guesses) == 1 and settled and sure and len(whole) == len(chosen):
        chosen[guesses[0]] = chosen[guesses[0]]._replace(by=settled[0])  # only one photo was left for it
    return chosen


def _named(
    garment: Sequence[Photo],
    roles: PhotoRoles,
    hints: Mapping[Photo, str | None],
    said: Mapping[Photo, str],
    heard: Mapping[Photo, str],
) -> dict[str, Chosen]:
    """A photo for each role that an override, a name or a captioner says. Of several names that say one role,
    the one wins that says no other role besides, or an earlier one: `top.jpg` before `top_front.jpg` and
    `top_back.jpg`.
    """

    def besides(photo: Photo, name: str) -> list[int]:
        words = (*_words(Path(photo.path).stem, roles.words), *_sorted_by(_folders_of(photo), roles))
        others = [role.name for role in _roles_in(words, roles) if role.name != name]
        return [roles.names.index(other) for other in others]

    chosen: dict[str, Chosen] = {}
    for role in roles.names:
        for photo in garment:
            if said.get(photo) == role:
                chosen.setdefault(role, Chosen(photo, "override"))
        named = [photo for photo in garment if photo not in said and hints[photo] == role]
        if role not in chosen and named:
            chosen[role] = Chosen(min(named, key=lambda photo: besides(photo, role)), "name")
        for photo in garment:
            if heard.get(photo) == role:
                chosen.setdefault(role, Chosen(photo, "captioner"))
    return chosen


def is_guess(chosen: Mapping[str, Chosen]) -> bool:
    """Whether neither the user nor a file name says which of several photos has which role."""
    photos = {one.photo for one in chosen.values()}
    return len(photos) > 1 and any(one.by == "guess" for one in chosen.values())


def unsaid(photos: Iterable[Photo], roles: PhotoRoles) -> list[Photo]:
    """The product photos whose role matters and which neither an override nor a name gives one; each file
    content once. If an item has all roles, they are those of items in which one would be a guess.
    """
    items: dict[str, dict[str, Photo]] = {}
    for photo in photos:
        if photo.label == "garment" and photo.item:
            items.setdefault(photo.item, {}).setdefault(photo.sha256, photo)
    found: dict[str, Photo] = {}
    for members in items.values():
        garment = list(members.values())
        if not roles.some and not is_guess(choose_views(garment, roles)):
            continue
        hints = _hints(garment, roles)
        found |= {
            photo.sha256: photo for photo in garment if hints[photo] is None and not _said(photo, roles)
        }
    return list(found.values())


def count_guessed(photos: Iterable[Photo], roles: PhotoRoles, told: Mapping[str, str] = EMPTY) -> int:
    """Count the items for which nothing but order says which photo has which role."""
    items: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.label == "garment" and photo.item:
            items.setdefault(photo.item, []).append(photo)
    return sum(is_guess(choose_views(garment, roles, told)) for garment in items.values())


# --- Items that hold several garments
# ------------------------------------------------------------------------------------------

ALIKE = 0.8
"""Least mean cosine of the default features among photos of one garment. Front and back of a real garment
have 0.75 to 0.98 (mean 0.9), different garments 0.36 to 0.86 (mean 0.55).
"""


def mixed_items(
    photos: Iterable[Photo], roles: PhotoRoles, features: Callable[[list[str]], np.ndarray] | None
) -> set[str]:
    """Items that seem to hold several garments and their wearers: their triptychs would be wrong.

    A garment has a few views; for roles of several garments, no item is mixed. An item with three or more
    garment photos and about as many people may still be one product, if overrides or names say which photo
    has which role, or if its garment photos look alike.

    Args:
        features: returns (N, D) features of length 1, given sha256; only for features for which `ALIKE`
            holds.
    """
    if roles.some:
        return set()
    items: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.item and photo.label in ("human", "garment"):
            items.setdefault(photo.item, []).append(photo)
    found: set[str] = set()
    for item, members in items.items():
        garment = [photo for photo in members if photo.label == "garment"]
        hints = _hints(garment, roles)
        whole = [photo for photo in garment if hints[photo] not in (PART, SIDE)]
        people = len(members) - len(garment)
        if min(len(whole), people) < 3 or not (
            0.75 <= len(whole) / people <= 4 / 3 or min(len(whole), people) >= 8
        ):
            continue
        if any(_said(photo, roles) for photo in garment):
            continue
        if all(sum(hint == role for hint in hints.values()) == 1 for role in roles.names):
            continue
        if features is not None:
            vectors_ND = features([photo.sha256 for photo in whole[:100]])
            cosines = (vectors_ND @ vectors_ND.T)[np.triu_indices(len(vectors_ND), 1)]
            if cosines.mean() >= ALIKE:
                continue
        found.add(item)
    return found
