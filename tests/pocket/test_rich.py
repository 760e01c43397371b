"""The richer world: its garments, people and light, and what stays as the small world has it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from recipes.pocket.klein.sets import sample_look, sample_quad
from triptych.pocket.prompts import panel_caption
from triptych.pocket.render import Rendered, render
from triptych.pocket.rich import MOTIFS, RichGarment, RichScene, enriched
from triptych.pocket.world import Garment, Scene, sample_scene

FRONT, BACK = Scene("front", "grey"), Scene("back", "grey")
SWEATER = RichGarment("sweater", "red")


def person(facing: str = "front", **more: object) -> RichScene:
    """A person of the small world, with more."""
    scene = sample_scene(random.Random(1), "worn", facing=facing)
    return replace(RichScene(**vars(scene)), **more)


def differing(one: Rendered, other: Rendered) -> np.ndarray:
    """Where two pictures differ, (H, W)."""
    return (np.asarray(one.image) != np.asarray(other.image)).any(-1)


@pytest.mark.parametrize("held_out", [False, True])
def test_enriched_sets_keep_what_the_samplers_promise(held_out: bool) -> None:
    rng, richer = random.Random(2), 0
    for number in range(60):
        one = (sample_quad if number % 2 else sample_look)(rng, held_out)
        panels = enriched(one.panels, rng)
        richer += isinstance(panels[0][0], RichGarment)
        for (before, seen), (garment, scene) in zip(one.panels, panels, strict=True):
            assert (garment.held_out, scene.held_out) == (before.held_out, seen.held_out)
            assert (garment.type, *garment.look[:3]) == (before.type, *before.look[:3])
            assert not before.shows_print(seen) or garment.shows_print(scene)
        if one.kind == "quad":
            assert panels[0][0] == panels[1][0] and panels[0][1] == panels[2][1]
        elif one.panels[0][0].print != "none":
            assert len({garment.look for garment, _ in panels}) == 1
    assert 30 < richer < 60, "some sets stay plain"


@pytest.mark.parametrize(
    ("change", "seen_from"),
    [({"neckline": "v-neck"}, "front"), ({"pockets": True}, "front"), ({"hood": True}, "both")]
    + [({"neckline": "high neck"}, "both")]
    + [
        ({"print": motif, "place": place}, side)
        for motif in MOTIFS
        for place, side in (("chest", "front"), ("hem", "front"), ("back", "back"))
    ],
)
def test_each_attribute_shows_where_it_should(change: dict[str, object], seen_from: str) -> None:
    garment = replace(SWEATER, **change)
    for side, scenes in {"front": (FRONT, person()), "back": (BACK, person("behind"))}.items():
        for scene in scenes:
            before, after = render(SWEATER, scene, 3), render(garment, scene, 3)
            moved = differing(before, after)
            assert moved.any() == (seen_from in (side, "both")), (side, scene)
            assert not moved[(np.asarray(before.mask) == 0) & (np.asarray(after.mask) == 0)].any()


def test_six_motifs_at_three_places_are_all_different() -> None:
    drawn = {
        render(replace(SWEATER, print=motif, place=place), scene, 3).image.tobytes()
        for motif in MOTIFS
        for place, scene in (("chest", person()), ("hem", person()), ("back", person("behind")))
    }
    assert len(drawn) == 18


def test_another_garment_changes_the_garment_alone_among_companions_and_in_any_light() -> None:
    top, bottom = Garment("t-shirt", "blue"), Garment("skirt", "yellow", "dots", "black")
    scene = person(top=top, bottom=bottom, hat="pink", bag="green", shaded=True)
    for one, other in (
        (SWEATER, replace(SWEATER, colour="green")),
        (bottom, replace(bottom, colour2="blue")),
    ):
        before, after = render(one, scene, 5, 2), render(other, scene, 5, 2)
        moved = differing(before, after)
        assert moved.any() and not moved[np.asarray(before.mask) == 0].any()
        assert np.array_equal(before.mask, after.mask)
    alone = render(bottom, replace(scene, top=None), 5, 2)
    companion = differing(alone, render(bottom, scene, 5, 2))
    assert companion.any() and not companion[np.asarray(alone.mask) == 255].any(), "the top is tucked in"


def test_the_plain_attributes_draw_the_small_world() -> None:
    for scene in (FRONT, BACK, person(), person("behind")):
        plain = Scene(**{name: getattr(scene, name) for name in Scene.__dataclass_fields__})
        for garment in (SWEATER, replace(SWEATER, print="cross")):
            small = Garment(garment.type, garment.colour, print=garment.print)
            assert not differing(render(garment, scene, 3), render(small, plain, 3)).any()


def test_words_tell_the_cut_and_the_print_only_of_a_named_look() -> None:
    garment = RichGarment("sweater", "red", print="star", place="chest", hood=True, pockets=True)
    scene = person(bottom=Garment("skirt", "blue"), hat="pink")
    caption = panel_caption(garment, scene)
    assert (
        "a plain red hooded pocket sweater with a star print on the chest and a blue skirt and a pink hat"
        in caption.text
    )
    assert {"hood": "yes", "print": "star", "place": "chest", "beside": "blue"}.items() <= caption.said[
        0
    ].items()
    silent = panel_caption(garment, scene, named=False, details=0)
    assert not {"hooded", "star", "pocket"} & set(silent.text.split())
