"""Token sets: rounding up promotes neighbours only, and background that is left out is never garment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from triptych.pictures import masks
from triptych.pictures.panels import Box
from triptych.sampling import token_sets
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.vton.dress import try_on
from triptych.vton.request import Person


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.05, 0.95))
@settings(max_examples=80, deadline=None)
def test_rounding_up_adds_the_nearest_allowed_tokens(seed: int, multiple: int, share: float) -> None:
    random = np.random.default_rng(seed)
    allowed = np.zeros((6, 12), dtype=bool)
    allowed[:, 8:] = True
    active = allowed & (random.random(allowed.shape) < share)
    before = active.copy()
    rounded = token_sets.rounded_up(active[None], allowed, multiple)[0]
    assert np.array_equal(active, before)
    assert not (active & ~rounded).any() and not (rounded & ~allowed).any()
    if active.any():
        assert rounded.sum() % multiple == 0 or np.array_equal(rounded, allowed)
        assert rounded.sum() - active.sum() < multiple
        rings, reach = rounded & ~active, active
        while rings.any():  # each ring is used up before the next is touched
            ring = (masks.grow(reach.astype(np.uint8), 1) > 0) & allowed & ~reach
            outside = rings & ~ring
            assert not outside.any() or (ring & ~rounded).sum() == 0
            reach, rings = reach | ring, outside
            if not ring.any():
                break
    else:
        assert not rounded.any()


def test_all_samples_of_a_batch_get_as_many_tokens_as_the_largest_needs() -> None:
    sets = np.zeros((2, 3, 4), bool)
    sets[0, 0, 0] = sets[1, 1, :3] = True
    rounded = token_sets.rounded_up(sets, np.ones((3, 4), bool), 2)
    assert rounded.sum((1, 2)).tolist() == [4, 4], "three, rounded up to a multiple of two"


def test_allowed_tokens_apart_from_the_active_ones_come_last_in_reading_order() -> None:
    active, allowed = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    active[0, 0] = allowed[0, 1] = True
    allowed[2:, 4:] = True
    grown = token_sets.grown_to(active, allowed, 4)
    assert np.argwhere(grown).tolist() == [[0, 0], [0, 1], [2, 4], [2, 5]]
    assert token_sets.grown_to(active, allowed, 99).sum() == 6, "no more than there are"
    assert not token_sets.grown_to(np.zeros((4, 6), bool), allowed, 3).any()


@pytest.mark.parametrize("turned", [False, True], ids=["beside", "above"])
def test_what_lies_between_two_parts_of_the_garment_stays(turned: bool) -> None:
    """Two bars of a white garment in front of white: what lies between them may be garment too, what lies
    outside is not.
    """
    pixels = np.full((160, 240, 3), 255, np.uint8)
    pixels[64:96, 32:48] = pixels[64:96, 176:192] = (40, 60, 90)
    expected = np.ones((10, 15), bool)
    expected[3:7, 1:13] = False  # the bars, what lies between them, and one token around
    if turned:
        pixels, expected = pixels.transpose(1, 0, 2), expected.T
    left_out = token_sets.background_tokens(Image.fromarray(np.ascontiguousarray(pixels)), 16)
    assert left_out.dtype == bool and np.array_equal(left_out, expected)


def garment_photo(
    size: tuple[int, int], colour: tuple[int, int, int], ground: tuple[int, int, int]
) -> Image.Image:
    image = Image.new("RGB", size, ground)
    width, height = size
    ImageDraw.Draw(image).polygon(
        [(width * x, height * y) for x, y in ((0.3, 0.3), (0.7, 0.3), (0.75, 0.8), (0.25, 0.8))], fill=colour
    )
    return image


def test_only_plain_background_is_left_out() -> None:
    photo = garment_photo((288, 384), (180, 40, 60), (250, 250, 250))
    left_out = token_sets.background_tokens(photo, 16)
    assert left_out.shape == (24, 18)
    assert 0.3 < left_out.mean() < 0.7
    pixels = left_out.repeat(16, 0).repeat(16, 1)
    assert (np.asarray(photo)[pixels] == 250).all()
    garment = token_sets.latent_mask((np.asarray(photo) != 250).any(2).astype(np.float32), 16)
    assert not (left_out & (masks.grow(garment.astype(np.uint8), 1) > 0)).any(), "not its neighbours either"


def test_what_the_garment_encloses_stays() -> None:
    """An opening that is connected with the ground, and a white shirt of which only a part of the outline
    stands out.
    """
    photo = garment_photo((288, 384), (180, 40, 60), (255, 255, 255))
    ImageDraw.Draw(photo).rectangle((100, 150, 190, 384), fill="white")
    left_out = token_sets.background_tokens(photo, 16)
    assert left_out.any() and not left_out[8:19, 5:13].any()
    shirt = garment_photo((288, 384), (255, 255, 255), (255, 255, 255))
    draw = ImageDraw.Draw(shirt)
    draw.line([(72, 307), (86, 115), (202, 115), (216, 307)], fill=(120, 120, 120), width=12)
    left_out = token_sets.background_tokens(shirt, 16)
    assert left_out.any() and not left_out[8:18, 6:12].any()


def test_a_fiftieth_of_the_panel_is_enough_and_a_faint_part_stays() -> None:
    pixels = np.full((160, 240, 3), 255, np.uint8)
    pixels[64:88, 64:96] = (40, 60, 90)  # 768 of 38,400 pixels
    left_out = token_sets.background_tokens(Image.fromarray(pixels), 16)
    assert left_out[0, 0] and left_out[9, 14] and not left_out[4, 4]
    pixels[144:160, 224:240] = 240
    assert not token_sets.background_tokens(Image.fromarray(pixels), 16)[9, 14], "no plain background"
    layout = TRY_ON.layout(80, 160)
    canvas = Image.fromarray(pixels)
    assert token_sets.background_of(canvas, layout, ("front",), 16).dtype == bool


@pytest.mark.parametrize("ground", ["noise", "nothing", "thread"])
def test_nothing_is_left_out_in_doubt(ground: str) -> None:
    if ground == "noise":
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 64, 3), dtype=np.uint8))
    else:
        photo = Image.new("RGB", (64, 96), "white")
        if ground == "thread":
            ImageDraw.Draw(photo).line((32, 30, 32, 60), fill="black")
    assert not token_sets.background_tokens(photo, 16).any()


def test_left_out_tokens_are_not_read(tiny: Path) -> None:
    models = load_models(str(tiny), ["p"], device="cpu", dtype="fp32")
    layout = TRY_ON.layout(80, 144)
    size = layout.width, layout.height
    front = garment_photo(size, (180, 40, 60), (255, 255, 255))
    mask = np.zeros(size[::-1], dtype=np.float32)
    mask[20:60, 16:40] = 1
    person = Image.fromarray(np.random.default_rng(3).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    left_out = token_sets.background_of(front.resize(layout.size), layout, (), 16)
    assert left_out.shape == (layout.height // 16, layout.size[0] // 16) and not left_out.any()

    seen: list[int] = []
    read = models.backbone.read
    models.backbone.read = lambda *about: (seen.append(int(about[1][0].known.sum())), read(*about))[1]  # type: ignore[method-assign]
    made = {}
    for drop, bucket in ((False, 1), (True, 1), (False, 5)):
        sampling = Sampling(2, context="clean", drop_background=drop, token_bucket=bucket)
        made[drop, bucket] = try_on(
            models, front, front, [Person(person, mask, "p", [0])], layout, sampling, feather=0
        )[0][0]
    total = 3 * left_out.shape[0] * (layout.width // 16)
    alone = int(token_sets.background_tokens(front, 16).sum())
    active = total - seen[0]
    assert alone > 0 and seen[1] == seen[0] - 2 * alone
    assert (total - seen[2]) == -(-active // 5) * 5
    assert (np.asarray(made[False, 1].image) != np.asarray(made[True, 1].image)).any()
    for result in made.values():
        outside = np.asarray(result.mask) == 0
        assert np.array_equal(np.asarray(result.image)[outside], np.asarray(person)[outside])


def test_a_mask_on_the_grid_takes_no_cell_beside_it() -> None:
    """Photos as large as the panel, or an exact multiple, are not blurred over the edge: more active tokens
    would be run for nothing.
    """
    cells = np.zeros((12, 8), dtype=np.float32)
    cells[3:9, 2:5] = 1
    for scale in (1, 2, 5):
        mask = np.kron(cells, np.ones((8 * scale, 8 * scale), np.float32))
        box = Box(0, 0, mask.shape[1], mask.shape[0])
        assert np.array_equal(token_sets.latent_mask(token_sets.fit_mask(mask, box, 64, 96), 8), cells > 0)


def test_sets_of_a_batch_are_rounded_up_to_the_largest_of_them() -> None:
    sets = np.zeros((2, 3, 6), dtype=bool)
    sets[0, 0, :3], sets[1, 1, :4] = True, True
    rounded = token_sets.rounded_up(sets, np.ones((3, 6), dtype=bool), 4)
    assert rounded.sum((1, 2)).tolist() == [4, 4]
    pixels = np.kron(sets, np.ones((1, 8, 8), np.float32))
    assert (token_sets.latent_mask(pixels, 8) == sets).all()


def test_where_nothing_is_left_out_the_answer_is_false_for_every_token() -> None:
    plain, layout = Image.new("RGB", (96, 48), "white"), TRY_ON.layout(32, 48)
    assert token_sets.background_tokens(plain.crop((0, 0, 32, 48)), 16).tolist() == [[False] * 2] * 3
    assert token_sets.background_of(plain, layout, (), 16).tolist() == [[False] * 6] * 3
