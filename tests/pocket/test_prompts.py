"""Captions say what they claim to say, and the triptych summary stays out of the boards."""

from __future__ import annotations

import random

import pytest

from triptych.pocket.prompts import (
    BOARD_SUMMARIES,
    TRIPTYCH_SUMMARY,
    board_caption,
    sample_board,
    sample_triptych,
    triptych_caption,
)
from triptych.pocket.world import COLOURS, PATTERNS, VIEWS, Garment, Scene

SCENES = (
    Scene("front", "grey"),
    Scene("back", "mint"),
    Scene("worn", "sky", "tan", "dark", "long", "arms out", "cream"),
)


def test_the_house_format() -> None:
    caption = triptych_caption(Garment("dress", "yellow", "stripes", "black"), SCENES)
    assert caption.text == (
        "three pictures of one <Brand> item <IMAGE 1> the front of a yellow dress with black stripes, grey background"
        " <IMAGE 2> the back of the dress, mint background"
        " <IMAGE 3> a person with long dark hair wearing the dress, sky background"
    )
    assert caption.said[0] == {
        "type": "dress",
        "view": "front",
        "colour": "yellow",
        "pattern": "stripes",
        "colour2": "black",
        "background": "grey",
    }
    assert "colour" not in caption.said[2]


def test_silence_is_silence() -> None:
    rng = random.Random(0)
    for _ in range(50):
        garment, scenes = sample_triptych(rng)
        words = triptych_caption(garment, scenes, rng, named=False).text.replace(",", "").split()
        hair = [scenes[2].hair]
        assert not [word for word in words if word in COLOURS and word not in hair]
        assert not [word for word in words if word in PATTERNS]


@pytest.mark.parametrize("kind", BOARD_SUMMARIES)
def test_boards_are_never_front_back_and_worn_of_one_item(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        panels = sample_board(rng, kind)
        views: dict[Garment, list[str]] = {}
        for garment, scene in panels:
            views.setdefault(garment, []).append(scene.view)
        assert all(len(set(seen)) < 3 for seen in views.values())
        if kind == "matching":
            assert len({garment.look for garment, _ in panels}) == 1
            assert len({garment.type for garment, _ in panels}) == 3
        elif kind == "copy":
            assert any(len(seen) > len(set(seen)) for seen in views.values())
        caption = board_caption(panels, kind, rng)
        assert TRIPTYCH_SUMMARY not in caption.text
        assert "<Brand>" not in caption.text


def test_the_share_of_silent_boards() -> None:
    rng = random.Random(2)
    panels = sample_board(rng, "matching")
    captions = [board_caption(panels, "matching", rng, silent=0.48, one_named=0.32) for _ in range(800)]
    named = [sum("colour" in said for said in caption.said) for caption in captions]
    assert abs(named.count(0) / 800 - 0.48) < 0.06
    assert abs(named.count(1) / 800 - 0.32) < 0.06
    assert VIEWS == ("front", "back", "worn")
