"""Decides which photo of an item shows the front and which the back: by the user's override, then file names,
then order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triptych.data.catalogue import Photo

_FRONT_WORDS = """
front frontside frontview vorne vorderseite devant avant frente main hauptbild recto davanti 正面 前面 正面图
"""
_FRONT = frozenset(_FRONT_WORDS.split())
_BACK_WORDS = """
back backside backview rear rearview hinten rückseite rueckseite dos arriere arrière espalda trasera
retro dietro verso 背面 后面 後面 背面图
"""
_BACK = frozenset(_BACK_WORDS.split())
_SIDE_WORDS = """
side sideview left right profile seite seitlich côté cote lado lateral angle threequarter 侧面 側面
"""
_SIDE = frozenset(_SIDE_WORDS.split())
_PART_WORDS = """
detail details closeup closeups macro zoom swatch swatches fabric texture label labels hangtag tag
carelabel care sizechart sizeguide sizetable measurement measurements packaging lining inside inner
detailansicht nahaufnahme etikett größentabelle groessentabelle masstabelle stoff détail détails
étiquette etiquette tissu detalle detalles etiqueta tela dettaglio etichetta 细节 細節 细节图
吊牌 面料 尺码 尺码表
水洗标
詳細
"""
_PART = frozenset(_PART_WORDS.split())
_NUMBERS = {"f": "front", "b": "back", "1": "front", "2": "back"}


class Sides(NamedTuple):
    """The front and the back of a garment (the same photo if there is only one), and the source of each:
    override, name or guess.
    """

    front: Photo
    back: Photo
    front_by: str
    back_by: str


@cache
def _words(name: str) -> tuple[str, ...]:
    """The words and numbers of a file name in lower case; accented letters in composed form, which Macs do
    not write.
    """
    stem = re.sub(r"([a-z])([A-Z])", r"\1 \2", unicodedata.normalize("NFKC", Path(name).stem))
    words = re.findall(r"[^\W\d_]+|\d+", stem.lower())
    joined = [
        one + two
        for one, two in zip(words, words[1:], strict=False)
        if one + two in _PART | _SIDE | _FRONT | _BACK
    ]
    return (*joined, *words)


def view_hint(name: str, common: frozenset[str] = frozenset()) -> str | None:
    """The view that a file name suggests: front, back, side, part (a detail, a swatch, a label, a size chart)
    or None.

    Whole words count first (`coat_front.jpg`, `BackView-2.png`), then a last word `f` or `b`, then a last
    number 1 or 2 (`coat 1.jpg`). `backpack.jpg` and `IMG_2081.jpg` suggest nothing, nor does a name with both
    sides. Words in `common` occur in the names of all photos of the item; they belong to the product's name
    and suggest nothing.
    """
    words = [word for word in _words(name) if word not in common or word.isdigit()]
    if not _PART.isdisjoint(words):
        return "part"
    front, back = not _FRONT.isdisjoint(words), not _BACK.isdisjoint(words)
    if front or back:
        return None if front and back else "front" if front else "back"
    letters = [word for word in words if not word.isdigit()]
    if letters and (letters[-1] in _SIDE or "sideview" in letters):
        return "side"
    last = words[-1].lstrip("0") if words else ""
    return _NUMBERS.get(last)


def common_words(names: Sequence[str]) -> frozenset[str]:
    """The words that occur in all of several names."""
    return (
        frozenset.intersection(*(frozenset(_words(name)) for name in names))
        if len(names) > 1
        else frozenset()
    )


def choose_sides(garment: Sequence[Photo]) -> Sides:
    """Front and back among the garment photos of one item: by override first, then file names, then order.

    A single photo is both. So is a photo whose companions are named as neither side: a swatch or a size chart
    is no back.
    """
    assert garment
    common = common_words([photo.path for photo in garment])
    hints = {photo: view_hint(photo.path, common) for photo in garment}
    said = {
        photo: photo.reason.removeprefix("override: ")
        for photo in garment
        if photo.reason in ("override: front", "override: back")
    }
    for level in ((None, "front", "back"), ("side",), ("part",)):
        whole = [photo for photo in garment if photo in said or hints[photo] in level]
        if whole:
            break

    def best(side: str, among: Sequence[Photo]) -> tuple[Photo, str]:
        def rank(photo: Photo) -> int:
            if photo in said:
                return 0 if said[photo] == side else 4
            return {side: 1, None: 2}.get(hints[photo], 3)

        photo = min(among, key=rank)  # the first of equals
        return photo, ("override", "name", "guess", "guess", "guess")[rank(photo)]

    front, front_by = best("front", whole)
    rest = [photo for photo in whole if photo is not front]
    if not rest:
        return Sides(front, front, front_by, "the only photo")
    back, back_by = best("back", rest)
    if front_by == "guess" and back_by in ("override", "name") and len(whole) == 2:
        front_by = back_by  # one of two photos is named as the back
    if back_by == "guess" and front_by in ("override", "name") and len(whole) == 2:
        back_by = front_by
    return Sides(front, back, front_by, back_by)


def count_guessed(photos: Iterable[Photo]) -> int:
    """Count the items for which neither an override nor a name says which photo is the front and which the
    back.
    """
    items: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.label == "garment" and photo.item:
            items.setdefault(photo.item, []).append(photo)
    chosen = [choose_sides(garment) for garment in items.values()]
    return sum(
        "guess" in (sides.front_by, sides.back_by) and sides.front is not sides.back for sides in chosen
    )


# --- Items that hold several garments
# ------------------------------------------------------------------------------------------

ALIKE = 0.8
"""Least mean cosine of the default features among photos of one garment. Front and back of a real garment
have 0.75 to 0.98 (mean 0.9), different garments 0.36 to 0.86 (mean 0.55).
"""


def mixed_items(photos: Iterable[Photo], features: Callable[[list[str]], np.ndarray] | None) -> set[str]:
    """Items that seem to hold several garments and their wearers: their triptychs would be wrong.

    A garment has a front and a back. An item with three or more garment photos and about as many people may
    still be one product, if overrides or names say which photo is the front and which the back, or if its
    garment photos look alike.

    Args:
        features: returns (N, D) features of length 1, given sha256; only for features for which `ALIKE`
            holds.
    """
    items: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.item and photo.label in ("human", "garment"):
            items.setdefault(photo.item, []).append(photo)
    found: set[str] = set()
    for item, members in items.items():
        garment = [photo for photo in members if photo.label == "garment"]
        common = common_words([photo.path for photo in garment])
        hints = {photo: view_hint(photo.path, common) for photo in garment}
        whole = [photo for photo in garment if hints[photo] not in ("part", "side")]
        people = len(members) - len(garment)
        if min(len(whole), people) < 3 or not (
            0.75 <= len(whole) / people <= 4 / 3 or min(len(whole), people) >= 8
        ):
            continue
        if any(photo.reason in ("override: front", "override: back") for photo in garment):
            continue
        if all(sum(hint == side for hint in hints.values()) == 1 for side in ("front", "back")):
            continue
        if features is not None:
            vectors_ND = features([photo.sha256 for photo in whole[:100]])
            cosines = (vectors_ND @ vectors_ND.T)[np.triu_indices(len(vectors_ND), 1)]
            if cosines.mean() >= ALIKE:
                continue
        found.add(item)
    return found
