"""Masks that a user gives: the same in every form, and a sentence for what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.errors import InputError
from triptych.pictures import given_masks, masks

WIDTH, HEIGHT = 48, 64
WHITE = np.zeros((HEIGHT, WIDTH), bool)
WHITE[5:20, 7:30] = True


@pytest.mark.parametrize(
    "mask",
    [
        WHITE,
        WHITE.astype(np.uint8) * 255,
        WHITE.astype(np.uint8),
        WHITE.astype(np.int64) * 255,
        WHITE.astype(np.uint16) * 65535,
        WHITE.astype(np.float64),
        WHITE[:, :, None].astype(np.float32),
        WHITE[None].astype(np.float16),
        np.dstack([WHITE] * 3),
        WHITE * 1.0005,
        torch.from_numpy(WHITE).long() * 255,
        Image.fromarray(WHITE.astype(np.uint16) * 65535),
        Image.fromarray(WHITE.astype(np.float32)),
        Image.fromarray(WHITE.astype(np.uint8) * 255).convert("P"),
        Image.fromarray(WHITE),
        Image.fromarray(WHITE.astype(np.uint8) * 255),
        Image.fromarray(np.dstack([WHITE.astype(np.uint8) * 255] * 3)),
        Image.fromarray(WHITE.astype(np.uint8) * 255).convert("RGBA"),
        Image.fromarray(np.dstack([WHITE * np.uint8(9)] * 3 + [WHITE * np.uint8(255)])),  # alpha is the mask
        torch.from_numpy(WHITE),
        torch.from_numpy(WHITE).bfloat16(),
        torch.from_numpy(WHITE).float()[None, None].requires_grad_(),
    ],
    ids=lambda mask: (
        f"{type(mask).__name__}-{getattr(mask, 'dtype', getattr(mask, 'mode', ''))}"
        f"-{getattr(mask, 'shape', '')}"
    ),
)
def test_a_mask_means_the_same_in_every_form(mask: Any) -> None:
    assert np.array_equal(given_masks.as_mask(mask, (WIDTH, HEIGHT)), WHITE.astype(np.float32))


def test_grey_values_and_narrow_photos_are_kept() -> None:
    grey = np.full((9, 1), 128, np.uint8)
    assert given_masks.as_mask(grey, (1, 9)).tolist() == [[np.float32(128) / np.float32(255)]] * 9
    with pytest.raises(InputError, match="photo 9 high and 2 wide") as caught:
        given_masks.as_mask(grey, (2, 9))
    assert caught.value.hint == "Give one value a pixel."
    with pytest.raises(InputError) as caught:
        given_masks.as_mask(grey, (9, 1))
    assert caught.value.hint.endswith("a pixel. Its sides are exchanged: an array is (height, width).")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (WHITE[:, :-1], "photo 64 high and 48 wide"),
        (WHITE * 1.5, "from 0 to 1.5"),
        (WHITE.astype(np.uint8) * 2, "nowhere whiter than 0.00784"),
        (WHITE.T, "exchanged"),
        (np.dstack([WHITE] * 4), "photo 64 high"),
        (np.zeros_like(WHITE), "black"),
        (WHITE.astype(np.float32) / 255, "nowhere whiter"),
        (WHITE.astype(np.float32) * 255, "from 0 to 255"),
        (WHITE.astype(np.float32) - 1, "from -1 to 0"),
        (np.where(WHITE, np.nan, 0), "nan"),
        (np.full((HEIGHT, WIDTH), "x"), "not understood"),
        (Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 9)), "nowhere whiter"),
        (None, "photo 64 high"),
        ([[0, 1], [1]], "no array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "mask",
)
def test_what_is_no_mask_is_a_sentence(mask: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        given_masks.as_mask(mask, (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("mask", "level"),
    [
        (Image.fromarray(WHITE.astype(np.float32) * np.float32(0.6)), 153),
        (Image.fromarray(WHITE.astype(np.uint16) * 40_000), 156),
        (Image.fromarray(WHITE.astype(np.uint8) * 200), 200),
        (WHITE * 0.5, 128),
        (WHITE * 1.0009, 255),
        (np.where(WHITE, 1, 1e-6), 255),
    ],
    ids=["float picture", "16 bits", "8 bits", "half", "rounding error", "a touch"],
)
def test_greys_of_a_mask_are_rounded_up(mask: Any, level: int) -> None:
    found = masks.mask_image(given_masks.as_mask(mask, (WIDTH, HEIGHT)))
    touched = isinstance(mask, np.ndarray) and mask.min() > 0
    assert np.array_equal(np.asarray(found), np.where(WHITE, level, int(touched)))
    assert masks.mask_image(np.full((1, 1), 1e-6, np.float32)).getpixel((0, 0)) == 1
