"""The region that a garment of some kind will need on a person, from the label map of the photo.

The kind of the *new* garment decides: what it replaces goes whole, sleeves and all, and room is made where it
will reach, whatever the old one covered. Hands, face, hair and whatever else stays are holes.

Lengths are in *sides*: the side of a square of the person's area, about half of the height of somebody who
stands. The proportions are an adult's; where they are too large, background is repainted, not the person.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from triptych.errors import InputError
from triptych.pictures.masks import grow
from triptych.vision.parsing_labels import PART, PARTS

LONG = 9.0
"""A sleeve or a hem that reaches as far as there is a person."""
ALL, UPPER, LOWER = ("top", "skirt", "trousers", "dress"), ("top", "dress"), ("skirt", "trousers", "dress")


@dataclass(frozen=True)
class Kind:
    """What a garment replaces and how far it reaches, in sides.

    goes: the clothes in whose place it comes. sleeves: their length from the shoulder, 0 without. waist, hem:
    how far below the shoulders it begins and ends. flare: half of its width at the hem.
    """

    goes: tuple[str, ...]
    sleeves: float
    waist: float
    hem: float
    flare: float = 0.31


KINDS = {
    "upper": Kind(UPPER, LONG, 0, 0.9),
    "sleeveless": Kind(UPPER, 0.1, 0, 0.79),
    "t-shirt": Kind(UPPER, 0.32, 0, 0.79),
    "sweater": Kind(UPPER, LONG, 0, 0.79),
    "jacket": Kind(UPPER, LONG, 0, 0.9),
    "lower": Kind(LOWER, 0, 0.5, LONG, 0.42),
    "skirt": Kind(LOWER, 0, 0.5, 1.24, 0.42),
    "trousers": Kind(LOWER, 0, 0.5, LONG),
    "dress": Kind(ALL, 0.1, 0, 1.27, 0.42),
    "whole": Kind(ALL, LONG, 0, LONG, 0.42),
}
"""By the word in `auto:KIND`. A skirt and a dress end below the knees, `lower` and `whole` at the feet."""
WORDS = {
    "t-shirt": r"t-?shirts?|tees?|polos?",
    "sleeveless": r"tank tops?|camisoles?|vests?",
    "sweater": r"sweaters?|pullovers?|jumpers?|hoodies?|sweatshirts?|cardigans?|blouses?|shirts?",
    "jacket": r"jackets?|coats?|blazers?|parkas?",
    "skirt": r"skirts?|shorts",
    "trousers": r"trousers|pants|jeans|leggings|chinos",
    "dress": r"dress|dresses",
    "whole": r"gowns?|jumpsuits?|dungarees|overalls",
}
"""The kind that a word of a caption means."""
WIDTH = 0.31
"""Half of the width of a garment on the trunk, with room around it."""
FLARES = 0.5, 1.2
"""Rows below the shoulders between which a flared garment widens."""
MARGIN = 0.05
"""How far the new garment may stand beyond the old one, and beyond arms and legs."""
HAND = 0.16
"""Length of a hand, for parsers that see only arms."""
SEAM = 0.012
"""Pixels this near to what goes are in no hole: a parser is wrong by a pixel, and the old edge would stay."""
LEAST = 0.005
"""Least share of the photo that a person must fill."""


class Region(NamedTuple):
    """What is repainted: `area` without `holes`, which lie inside it; both bool (H, W)."""

    area: np.ndarray
    holes: np.ndarray


def kind_in(prompt: str) -> str | None:
    """The kind of garment that a caption of panels names: the only one in its summary, else in its first
    panel that names just one; None if there is no such panel.
    """
    for text in re.split(r"<IMAGE \d+>", prompt):
        found = {
            kind for kind, words in WORDS.items() if re.search(rf"(?i)(?<![\w-])(?:{words})(?![\w-])", text)
        }
        if len(found) == 1:
            return found.pop()
    return None


def region(labels: np.ndarray, kind: str) -> Region:
    """The region that a garment of a kind needs.

    Args:
        labels: (H, W) uint8 of places in `parsing_labels.PARTS`. kind: of `KINDS`.

    Raises:
        InputError: the photo shows no person wearing clothes.
    """
    garment = KINDS[kind]
    person = ~_are(labels, "background", "bag")
    if person.mean() < LEAST or not _are(labels, *ALL, "neck").any() or not _are(labels, *_BODY).any():
        raise InputError(
            "No person wearing clothes is seen in the photo.", "Draw the outline yourself: give --polygon."
        )
    body = _stance(labels, person)
    goes, arms = _are(labels, *garment.goes), _are(labels, "arm")
    sleeves = arms & (body.from_shoulders() <= garment.sleeves)
    covered = goes | sleeves
    if garment.hem == LONG:
        covered |= _are(labels, "leg")
    area = _grown(covered, MARGIN * body.side) | _hanging(body, garment)
    stays = _are(labels, "face", "hair", "hat", "bag", "hand", "shoe") | (arms & ~sleeves)
    if not _are(labels, "hand").any():
        stays |= _hands(arms, body)
    if garment.waist == 0 and garment.hem < 1:
        stays |= _are(labels, "leg")
    if "top" not in garment.goes:
        stays |= _are(labels, "top", "neck") & ~_grown(goes, MARGIN * body.side)
    return Region(area, stays & area & ~_grown(goes, SEAM * body.side))


_BODY = ("hair", "face", "neck", "arm", "hand", "leg")


class _Stance(NamedTuple):
    """Where a person stands, in pixels: the middle column, the row of the shoulders, the lowest row, the
    side, and the size (H, W) of the photo.
    """

    middle: float
    shoulders: float
    feet: float
    side: float
    shape: tuple[int, ...]

    def below(self) -> np.ndarray:
        """(H, 1): how far a row is below the shoulders, in sides."""
        return np.asarray((np.arange(self.shape[0])[:, None] - self.shoulders) / self.side)

    def aside(self) -> np.ndarray:
        """(1, W): how far a column is from the middle, in sides."""
        return np.asarray(np.abs(np.arange(self.shape[1])[None] - self.middle) / self.side)

    def from_shoulders(self) -> np.ndarray:
        """(H, W): distance from the nearer shoulder joint, in sides."""
        return np.hypot(self.below() - 0.08, self.aside() - 0.22)


def _stance(labels: np.ndarray, person: np.ndarray) -> _Stance:
    side = float(np.sqrt(person.sum()))
    clothes, upper = _are(labels, *ALL), _are(labels, *UPPER)
    middle = float(np.median(np.nonzero(clothes if clothes.any() else person)[1]))
    upper = upper if upper.any() else clothes if clothes.any() else person
    # a raised sleeve is not near the middle
    near = upper & (np.abs(np.arange(labels.shape[1]) - middle) <= 0.12 * side)
    shoulders = np.nonzero(near if near.any() else upper)[0].min()
    return _Stance(middle, float(shoulders), float(np.nonzero(person)[0].max()), side, labels.shape)


def _hanging(body: _Stance, garment: Kind) -> np.ndarray:
    """The room for a garment that hangs from the shoulders or the waist, wider towards its hem."""
    below = body.below()
    half = np.interp(below, FLARES, (WIDTH, garment.flare))
    rows = (below >= garment.waist - MARGIN) & (below <= garment.hem)
    rows &= np.arange(body.shape[0])[:, None] <= body.feet
    return rows & (body.aside() <= half)


def _hands(arms: np.ndarray, body: _Stance) -> np.ndarray:
    """The far end of each arm."""
    hands, (numbers, count) = np.zeros_like(arms), ndimage.label(arms)
    away = body.from_shoulders()
    for number in range(1, count + 1):
        rows, columns = np.nonzero(numbers == number)
        end = int(away[rows, columns].argmax())
        near = np.hypot(rows - rows[end], columns - columns[end]) <= HAND * body.side
        hands[rows[near], columns[near]] = True
    return hands


def _are(labels: np.ndarray, *names: str) -> np.ndarray:
    chosen = np.zeros(len(PARTS), dtype=bool)
    chosen[[PART[name] for name in names]] = True
    return np.asarray(chosen[labels])


def _grown(mask: np.ndarray, pixels: float) -> np.ndarray:
    return grow(mask.astype(np.uint8), round(pixels)) > 0
