"""The region of an automatic mask, from exact label maps of the rendered world."""

from __future__ import annotations

import random

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.pocket.render import Rendered, render
from triptych.pocket.wardrobe import TOPS
from triptych.pocket.world import TYPES, sample_garment, sample_scene
from triptych.vision.parsing_labels import PART
from triptych.vton.region import ALL, KINDS, kind_in, region


def dressed(old: str, new: str, seed: int, **scene: str) -> tuple[Rendered, Rendered]:
    """Somebody in a garment, and in exactly the same photo in another."""
    rng = random.Random(f"{old} {new} {seed}")
    shown = sample_scene(rng, "worn", held_out=None, **scene)
    one, other = (sample_garment(rng, type=type_, held_out=None) for type_ in (old, new))
    return render(one, shown, seed, 2, labels=True), render(other, shown, seed, 2, labels=True)


def labels_of(person: Rendered) -> np.ndarray:
    assert person.labels is not None
    return person.labels


def inside(labels: np.ndarray, kind: str) -> np.ndarray:
    found = region(labels, kind)
    assert not (found.holes & ~found.area).any()
    return found.area & ~found.holes


@pytest.mark.parametrize("new", TYPES)
def test_the_old_garment_goes_and_the_new_one_has_room(new: str) -> None:
    for seed, old in enumerate(TYPES * 2):
        before, after = dressed(old, new, seed)
        labels, garment = labels_of(before), np.asarray(after.mask) > 127
        repainted = inside(labels, new)
        goes = np.isin(labels, [PART[name] for name in KINDS[new].goes])
        assert not (goes & ~repainted).any(), (old, new)
        if new not in ("skirt", "trousers") or old not in TOPS:  # a top hangs over them
            assert (garment & ~repainted).sum() < 0.01 * garment.sum(), (old, new)
        face = labels == PART["face"]
        assert not (face & ~goes & repainted).any(), (old, new)


@pytest.mark.parametrize(("kind", "free"), [("upper", "skirt"), ("skirt", "top")])
def test_the_kind_decides_and_not_what_is_worn(kind: str, free: str) -> None:
    before, _ = dressed("skirt", "skirt", 3, pose="arms down")
    labels = labels_of(before)
    stays, repainted = labels == PART[free], inside(labels, kind)
    assert (stays & repainted).sum() < 0.65 * stays.sum()
    assert (repainted & ~stays).sum() > 500
    assert inside(labels, "whole").sum() > 1.5 * repainted.sum()


def test_old_sleeves_go_and_bare_arms_stay_under_a_sleeveless_garment() -> None:
    for pose in ("arms out", "one arm up"):
        long, bare = (dressed(old, "dress", 5, pose=pose)[0] for old in ("sweater", "dress"))
        sleeves = labels_of(long) == PART["top"]
        assert (inside(labels_of(long), "sleeveless") & sleeves).sum() == sleeves.sum()
        arms = labels_of(bare) == PART["arm"]
        assert (inside(labels_of(bare), "sleeveless") & arms).sum() < 0.35 * arms.sum()
        assert (inside(labels_of(bare), "sweater") & arms).sum() > 0.95 * arms.sum()


@pytest.mark.parametrize("old", ["sweater", "t-shirt"])
def test_hands_are_the_ends_of_arms_for_a_parser_that_has_none(old: str) -> None:
    labels = labels_of(dressed(old, "jacket", 9, pose="arms out")[0])
    hands, arms = labels == PART["hand"], np.isin(labels, [PART["hand"], PART["arm"]])
    assert hands.sum() > 20
    found = region(np.where(hands, PART["arm"], labels).astype(np.uint8), "jacket")
    assert (found.holes & hands).sum() > 0.6 * hands.sum()
    assert old == "sweater" or (found.holes & arms).sum() < 0.6 * arms.sum()


def test_a_larger_photo_has_the_same_region() -> None:
    labels = labels_of(dressed("dress", "sweater", 2)[0])
    small, large = inside(labels, "jacket"), inside(labels.repeat(3, 0).repeat(3, 1), "jacket")
    back = large.reshape(*small.shape[:1], 3, small.shape[1], 3)[:, 1, :, 1]
    assert (small & back).sum() > 0.97 * (small | back).sum()


def test_a_photo_without_a_person_is_refused() -> None:
    flat = render(sample_garment(random.Random(1)), sample_scene(random.Random(1), "front"), 1, labels=True)
    for labels in (labels_of(flat), np.zeros((90, 60), np.uint8), np.full((90, 60), PART["leg"], np.uint8)):
        with pytest.raises(InputError, match="No person wearing clothes"):
            region(labels, "upper")


def test_somebody_without_legs_in_the_photo_is_dressed_too() -> None:
    labels = labels_of(dressed("jacket", "dress", 4, pose="arms down")[0])[: 2 * 42]
    clothes = np.isin(labels, [PART[name] for name in ALL])
    assert (inside(labels, "whole") & clothes).sum() == clothes.sum()


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("three pictures of one T-shirt <IMAGE 1> a shirt <IMAGE 2> a jacket", "t-shirt"),
        (
            "<IMAGE 1> the front of a red dress <IMAGE 2> its back <IMAGE 3> a person in a dress and a coat",
            "dress",
        ),
        ("a person in a sweater and trousers <IMAGE 1> a blue sweater", "sweater"),
        ("Ripped jeans <IMAGE 3> worn with a top", "trousers"),
        ("the garment <IMAGE 1> a skirted coat-dress", None),
        ("", None),
    ],
)
def test_the_words_of_a_caption_name_the_kind(prompt: str, kind: str | None) -> None:
    assert kind_in(prompt) == kind
