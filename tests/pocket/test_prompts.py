"""Captions say what they claim to say, and the triptych summary stays out of the boards."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from triptych.pocket.prompts import (
    BOARD_SUMMARIES,
    TRIPTYCH_SUMMARY,
    board_caption,
    panel_caption,
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
        "three pictures of one <Brand> item <IMAGE 1> the front of a yellow dress with black stripes, grey "
        "background"
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


def test_varied_words_say_the_same() -> None:
    rng = random.Random(3)
    for _ in range(40):
        garment, scenes = sample_triptych(rng)
        for scene in scenes:
            house = panel_caption(garment, scene)
            texts = {
                panel_caption(garment, scene, random.Random(n), details=1.0, varied=True).text
                for n in range(12)
            }
            said = [
                panel_caption(garment, scene, random.Random(n), details=1.0, varied=True).said
                for n in range(12)
            ]
            assert len(texts) >= 4, house.text
            assert all(one == house.said for one in said)


def test_a_print_is_named_where_its_back_is_seen() -> None:
    garment = Garment("t-shirt", "red", print="cross")
    behind = replace(SCENES[2], facing="behind")
    panels = triptych_caption(garment, (*SCENES[:2], behind)).panels
    assert panels == (
        "the front of a plain red t-shirt, grey background",
        "the back of the plain red t-shirt with a cross print, mint background",
        "a person from behind with long dark hair wearing the t-shirt, sky background",
    )
    silent = triptych_caption(garment, (*SCENES[:2], behind), named=False).text
    assert "print" not in silent


def test_printed_boards_stay_related_and_never_one_item() -> None:
    rng = random.Random(4)
    for kind in BOARD_SUMMARIES:
        for _ in range(60):
            panels = sample_board(rng, kind, print_share=1.0, behind_share=0.3)
            assert all(garment.print != "none" and not garment.held_out for garment, _ in panels)
            if kind == "matching":
                assert len({garment.print for garment, _ in panels}) == 1
