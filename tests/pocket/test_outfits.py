"""Outfits of the rendered world: exact masks, and nothing else of the world has changed."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import numpy as np
import pytest

from triptych.captioning.prompt_tokens import prompt_tokenizer
from triptych.pocket.outfits import (
    Outfit,
    RenderedOutfit,
    outfit_caption,
    product_scene,
    render_outfit,
    render_product,
    sample_outfit,
)
from triptych.pocket.parts import ACCESSORIES, PART
from triptych.pocket.render import render
from triptych.pocket.world import COLOURS, NONE, Garment, sample_scene
from triptych.tasks.outfit import OUTFIT
from triptych.vision import parsing_labels

FULL = Outfit(Garment("t-shirt", "red"), Garment("skirt", "blue", "dots", "white"), "green", "yellow")
PIECES = ("top", "bottom", "hat", "bag")


def pixels(drawn: RenderedOutfit) -> np.ndarray:
    return np.asarray(drawn.image).astype(int)


def recoloured(outfit: Outfit, piece: str) -> Outfit:
    changed = "pink" if piece in ACCESSORIES else replace(getattr(outfit, piece), colour="pink")
    return replace(outfit, **{piece: changed})


@pytest.mark.parametrize("pose", ["arms down", "one arm up", "arms out", "hand on hip"])
@pytest.mark.parametrize("types", [("t-shirt", "skirt"), ("jacket", "trousers"), ("sweater", "skirt")])
def test_a_piece_is_exactly_where_its_mask_is(types: tuple[str, str], pose: str) -> None:
    scene = sample_scene(random.Random(pose), "worn", pose=pose, facing="front")
    top, bottom = (
        replace(one, type=type_) for one, type_ in zip((FULL.top, FULL.bottom), types, strict=True)
    )
    outfit = replace(FULL, top=top, bottom=bottom)
    drawn = render_outfit(outfit, scene, 5, 4)
    masks = {name: np.asarray(mask) for name, mask in drawn.masks.items()}
    assert set(masks) == set(PIECES)
    assert np.stack(list(masks.values())).sum(0, dtype=int).max() <= 256, "no sample is of two pieces"
    for piece in PIECES:
        other = render_outfit(recoloured(outfit, piece), scene, 5, 4)
        assert {name: mask.tobytes() for name, mask in other.masks.items()} == {
            name: mask.tobytes() for name, mask in drawn.masks.items()
        }
        changed = (pixels(other) != pixels(drawn)).any(2)
        assert not changed[masks[piece] == 0].any(), piece
        assert changed[masks[piece] == 255].mean() > 0.55, piece  # white dots and the zip stay
        assert (masks[piece] == 255).sum() > 300, piece
        assert (drawn.labels == outfit.parts[piece])[masks[piece] == 255].all()
        assert not (drawn.labels == outfit.parts[piece])[masks[piece] == 0].any()


def test_the_person_is_the_one_in_single_garments() -> None:
    scene = sample_scene(random.Random(2), "worn", hairstyle="short", facing="front")
    alone = render(FULL.top, scene, 9, 4)
    outfit = render_outfit(replace(FULL, hat=NONE, bag=NONE), scene, 9, 4)
    changed = (pixels(outfit) != np.asarray(alone.image)).any(2)
    below = np.zeros_like(changed)
    below[140:] = True  # the other trousers, which the skirt takes the place of
    assert not (changed & ~below).any()
    assert changed.any()


def test_hats_and_bags_have_numbers_of_their_own() -> None:
    assert {*ACCESSORIES} == {"hat", "bag"} and not {*ACCESSORIES.values()} & {*PART.values()}
    assert all(parsing_labels.PART[name] == value for name, value in ACCESSORIES.items())


def test_outfits_differ_in_colour_and_pattern_and_keep_what_is_held_out_apart() -> None:
    rng = random.Random(0)
    for held_out in (False, True):
        drawn = [sample_outfit(rng, held_out=held_out) for _ in range(300)]
        for one in drawn:
            assert one.top.colour != one.bottom.colour and one.top.pattern != one.bottom.pattern
            colours = [one.top.colour, one.bottom.colour, *{one.hat, one.bag} - {NONE}]
            assert len(set(colours)) == 2 + (one.hat != NONE) + (one.bag != NONE)
            assert one.top.held_out == one.bottom.held_out == held_out
        assert {one.top.type for one in drawn} == {"t-shirt", "sweater", "jacket"}
        assert {one.bottom.type for one in drawn} == {"skirt", "trousers"}
        assert 0.2 < sum(one.hat != NONE for one in drawn) / 300 < 0.4
        assert 0.4 < sum(one.bag != NONE for one in drawn) / 300 < 0.6


def test_products_are_drawn_alone() -> None:
    scene = product_scene(random.Random(3))
    assert render_product(FULL, "top", scene, 4).tobytes() == render(FULL.top, scene, 4).image.tobytes()
    for piece, colour in (("hat", "green"), ("bag", "yellow")):
        shown = np.asarray(render_product(FULL, piece, scene, 4, 4)).astype(int)
        cloth = (np.abs(shown - COLOURS[colour]).max(2) == 0).mean()
        assert 0.03 < cloth < 0.3 and (shown[0] == shown[0, 0]).all() and (shown[:, 0] == shown[0, 0]).all()


@pytest.mark.parametrize("model", ["pocket-klein"])
def test_captions_fit_the_model_and_are_silent(model: str) -> None:
    tokens, rng = prompt_tokenizer(model), random.Random(1)
    assert tokens is not None
    for _ in range(200):
        outfit, scene = sample_outfit(rng), sample_scene(rng, "worn")
        text = outfit_caption(outfit, scene)
        assert tokens.count(text) <= 64
        assert text.count("<IMAGE ") == len(outfit.roles) + 1
        assert {*outfit.roles} <= {*OUTFIT.roles}
        said = text.split("<IMAGE")[1:-1]
        assert not any(colour in part for part in said for colour in COLOURS)
        named = outfit_caption(outfit, scene, named=True)
        assert outfit.bag != NONE or tokens.count(named) <= 64
        assert outfit.top.colour in named and outfit.bottom.colour in named


def test_outfits_are_those_that_were_measured() -> None:
    """Pinned: the figures of the documents rest on these pixels."""
    rng, pinned = random.Random(12), 0
    for number in range(20):
        outfit, scene = sample_outfit(rng), sample_scene(rng, "worn", held_out=None)
        drawn = render_outfit(outfit, scene, rng.getrandbits(31), 1 + number % 4)
        for piece in outfit.roles:
            photo = render_product(outfit, piece, product_scene(rng), number)
            pinned = zlib.crc32(photo.tobytes() + drawn.masks[piece].tobytes(), pinned)
        pinned = zlib.crc32(drawn.image.tobytes(), pinned)
    assert pinned == 3429514629
