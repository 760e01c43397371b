"""Whether people wear the garment of their item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triptych.data.catalogue import Photo
from triptych.vision.agreement import likelier_garments


def catalogue(count: int, wears: dict[int, int]) -> tuple[list[Photo], dict[str, np.ndarray]]:
    """Items with a garment and a person. Of a person's features a small part is the garment that it wears,
    by default its item's; the rest is the same for all. wears: other garments, by item.
    """
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(count, 32))
    common = {"garment": rng.normal(size=32) * 8, "human": rng.normal(size=32) * 8}
    rows, vectors = [], dict[str, np.ndarray]()
    for number in range(count):
        for label, look in (("garment", number), ("human", wears.get(number, number))):
            key = f"{label}{number}"
            vectors[key] = common[label] + looks[look] + 0.2 * rng.normal(size=32)
            vectors[key] /= np.linalg.norm(vectors[key])
            rows.append(Photo(f"item{number}", f"/{key}.jpg", key, label, 1.0))
    return rows, vectors


def asked(count: int, wears: dict[int, int] | None = None) -> dict[str, float]:
    rows, vectors = catalogue(count, wears or {})

    def features(keys: Sequence[str]) -> np.ndarray:
        return np.stack([vectors[key] for key in keys])

    return likelier_garments(rows, features)


def test_another_garment_is_told_from_the_own_one() -> None:
    found = asked(20, {3: 11, 7: 2})
    wrong = {"/human3.jpg", "/human7.jpg"}
    assert found.keys() == {f"/human{number}.jpg" for number in range(20)}
    assert all((share > 0.2) == (path in wrong) for path, share in found.items()), found
    assert all(found[path] < 0.05 for path in found.keys() - wrong)


def test_of_many_items_some_are_compared() -> None:
    found = asked(300, {250: 4})
    assert len(found) == 300 and found["/human250.jpg"] > 0.3
    assert np.mean([share < 0.1 for share in found.values()]) > 0.98


def test_of_few_items_nothing_is_said() -> None:
    assert asked(8, {3: 1}) == {} and asked(9, {3: 1})
