"""Whether people wear the garment of their item, by the features that `clean` has already.

Features of people and of garments are far apart, whatever is worn; what is left when each kind's own mean is
taken away says what kind of garment it is. By that the garment of a person's own item is compared with those
of other items. It says little where all items are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from triptych.data.catalogue import Photo

FEWEST, MOST = 8, 64
"""Items that garments are compared with: with fewer nothing is said, of more these many are taken."""


def likelier_garments(
    rows: Sequence[Photo], features: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, float]:
    """For each photo of a person, by its path: the share in [0, 1] of other items whose garment is more like
    the person's photo than the garment of its own item. Empty in a catalogue of too few items.

    features: (N, D) vectors of length 1 for N sha256 keys.
    """
    garments: dict[str, list[str]] = {}
    people: dict[str, list[Photo]] = {}
    for row in rows:
        if row.item and row.label == "garment":
            garments.setdefault(row.item, []).append(row.sha256)
        elif row.item and row.label == "human":
            people.setdefault(row.item, []).append(row)
    items = sorted(garments)
    if len(items) <= FEWEST:
        return {}
    others = [items[place] for place in sorted({*np.linspace(0, len(items) - 1, MOST, dtype=int)})]
    seen = [row.sha256 for item in others for row in people.get(item, ())]
    if not seen:
        return {}
    means = {
        "garment": features([key for item in others for key in garments[item]]).mean(0),
        "human": features(seen).mean(0),
    }
    taken = {item: _left(features(garments[item]), means["garment"]) for item in others}
    found = {}
    for item in people.keys() & garments.keys():
        own = taken[item] if item in taken else _left(features(garments[item]), means["garment"])
        for row in people[item]:
            found[row.path] = _likelier(_left(features([row.sha256]), means["human"])[0], own, taken, item)
    return found


def _likelier(person: np.ndarray, own: np.ndarray, taken: Mapping[str, np.ndarray], item: str) -> float:
    likeness = (own @ person).max()
    rest = [(vectors @ person).max() > likeness for other, vectors in taken.items() if other != item]
    return float(np.mean(rest))


def _left(vectors_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    left = vectors_ND - mean_D
    return left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
