"""The measure of outfits: the judge sees each garment, and what a run leaves alone."""

from __future__ import annotations

import numpy as np

from triptych.evaluation.outfits import GARMENTS, alone, held_out_outfits, outfit_verdicts, shares
from triptych.pocket.world import OTHER_CLOTHES


def test_true_outfits_pass_and_others_do_not() -> None:
    items = held_out_outfits(60, seed=1)
    truth = shares(outfit_verdicts([item.truth.image for item in items], items))
    assert all(
        truth[f"{role} {name}"]["share"] >= 0.93 for role in GARMENTS for name in ("colour", "pattern")
    )
    assert truth["outfit"]["share"] >= 0.88
    before = outfit_verdicts([item.before.image for item in items], items)
    assert sum(before["top colour"]) <= 2 and sum(before["bottom colour"]) <= 2
    assert not any(before["outfit"])


def test_each_piece_is_judged_for_itself() -> None:
    items = held_out_outfits(24, seed=2, bags=True)
    assert all(item.outfit.bag != item.other().bag for item in items)
    halves = []
    for item in items:
        half = item.before.image.copy()
        half.paste(item.truth.image, (0, 0), item.truth.masks["bottom"])
        halves.append(half)
    found = outfit_verdicts(halves, items)
    assert sum(found["bottom both"]) >= 20 and sum(found["top colour"]) <= 2
    assert not any(found["bag"])
    assert all(outfit_verdicts([item.truth.image for item in items], items)["bag"])


def test_the_judge_sees_nothing_of_the_truth_beside_the_picture() -> None:
    """The person whom it is shown is drawn with the true garment; none of that may be left."""
    (item,) = held_out_outfits(1, seed=3)
    for role in GARMENTS:
        grey = item.truth.image.copy()
        grey.paste((128, 128, 128), (0, 0, *grey.size))
        shown = np.asarray(alone(grey, item, role, "grey")).astype(int)
        mask = np.asarray(item.worn(item.outfit, 1).masks[role])
        assert (shown[mask > 0] - 128 >= -8).all() and (np.ptp(shown[mask > 127], axis=1) == 0).all()
        other = np.abs(shown - OTHER_CLOTHES["grey"]).max(2) < 9
        assert other[mask > 0].mean() > 0.95
