"""What is shown and said about a mask: the preview, and whether it follows an outline in the photo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from triptych.pictures import mask_checks, masks
from triptych.pictures.panels import Box


def test_preview_changes_the_inside_and_keeps_the_size() -> None:
    photo = Image.new("RGB", (300, 400), (40, 90, 160))
    shown = mask_checks.preview(
        photo, masks.polygon_mask([[(100, 100), (200, 100), (200, 250), (100, 250)]], photo.size)
    )
    assert shown.size == photo.size
    assert shown.mode == "RGB"
    assert shown.getpixel((150, 170)) != (40, 90, 160)
    assert shown.getpixel((20, 20)) == (40, 90, 160)


def test_the_preview_tints_outlines_and_names() -> None:
    mask = np.zeros((300, 200), np.float32)
    mask[100:150, 50:150] = 1
    shown = np.asarray(mask_checks.preview(Image.new("RGB", (200, 300), (40, 90, 160)), mask)).astype(int)
    assert np.abs(shown[100:150, 50:150] - (126, 80, 134)).max() <= 1, "0.6 of the photo, 0.4 of the tint"
    outline = np.zeros((300, 200), bool)
    outline[99:151, 49:151], outline[100:150, 50:150] = True, False
    assert (shown[outline] == 255).all()
    rest = np.argwhere((shown != (40, 90, 160)).any(axis=2) & ~outline & (mask == 0))
    assert rest[:, 0].min() >= 300 - 21 and rest[:, 1].min() >= 3, "and words in the corner"
    words = shown[279:, :].reshape(-1, 3)
    assert words.min(axis=1).max() > 200 and words.max(axis=1).min() < 60, "white with a black rim"


def test_the_edge_ratio_of_a_square_on_its_edge() -> None:
    """Steps of 100 levels have slopes of 50 on both sides of the outline: 312 pixels of it, 4 corners inside
    with both slopes, 4 outside with none; beside it nothing.
    """
    mask = np.zeros((100, 100), np.float32)
    mask[30:70, 30:70] = 1
    photo = Image.fromarray(np.where(mask[..., None] > 0, np.uint8([150] * 3), np.uint8([50] * 3)))
    expected = (312 * 50 + 4 * 50 * math.sqrt(2)) / 320
    assert mask_checks.edge_ratio(photo, mask) == pytest.approx(expected, rel=1e-4)
    assert mask_checks.edge_ratio(photo, np.ones_like(mask)) == 0


def test_a_polygon_along_a_silhouette_hugs_and_a_free_one_does_not() -> None:
    rng = np.random.default_rng(0)
    body = [
        (300.0, 200.0),
        (380.0, 180.0),
        (470.0, 210.0),
        (560.0, 420.0),
        (520.0, 450.0),
        (460.0, 330.0),
        (470.0, 640.0),
        (290.0, 640.0),
    ]
    inside = masks.polygon_mask([body], (800, 900))
    photo = np.where(inside[..., None] > 0, (60, 80, 150), (190, 180, 170)) + rng.normal(0, 6, (900, 800, 3))
    image = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
    assert mask_checks.edge_ratio(image, inside) > mask_checks.HUGGING
    wobbly = [
        (x + dx, y + dy) for (x, y), (dx, dy) in zip(body, rng.normal(0, 2, (len(body), 2)), strict=True)
    ]
    assert mask_checks.edge_ratio(image, masks.polygon_mask([wobbly], (800, 900))) > mask_checks.HUGGING
    for free in (
        masks.repaint_mask([body], (800, 900), grow_by=40),
        masks.polygon_mask([[(250.0, 150.0), (600.0, 150.0), (600.0, 700.0), (250.0, 700.0)]], (800, 900)),
        np.ones((900, 800), np.float32),
    ):
        assert mask_checks.edge_ratio(image, free) < mask_checks.HUGGING
    assert mask_checks.edge_ratio(Image.new("RGB", (800, 900)), inside) == 0


@pytest.mark.parametrize(("side", "box"), [(100, Box(80, 40, 320, 160)), (75, Box(107, 52, 287, 142))])
def test_the_edge_ratio_by_its_definition(side: int, box: Box) -> None:
    """The mask's box with a tenth around it, as wide as the photo is; two pixels are 1 % here."""
    left, top = {100: (150, 50), 75: (160, 60)}[side]
    photo = np.random.default_rng(1).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    photo[top : top + side, left : left + side] //= 2
    mask = np.zeros((200, 400), np.float32)
    mask[top : top + side, left : left + side] = 1

    def ring(reach: int) -> np.ndarray:
        around = np.zeros((200, 400), bool)
        around[top - reach : top + side + reach, left - reach : left + side + reach] = True
        around[top + reach : top + side - reach, left + reach : left + side - reach] = False
        return around[box.top : box.bottom, box.left : box.right]

    part = photo[box.top : box.bottom, box.left : box.right].astype(float)
    slopes = np.hypot(*(np.abs(slope).max(axis=2) for slope in np.gradient(part, axis=(0, 1))))
    expected = slopes[ring(2)].mean() / (slopes[ring(12) & ~ring(4)].mean() + 1)
    assert mask_checks.edge_ratio(Image.fromarray(photo), mask) == pytest.approx(expected, rel=1e-5)
    if side == 100:  # a larger photo is scaled down to this one
        large, larger = (np.kron(one, np.ones((3, 3, 1)[: one.ndim])) for one in (photo, mask))
        ratio = mask_checks.edge_ratio(Image.fromarray(large.astype(np.uint8)), larger.astype(np.float32))
        assert ratio == pytest.approx(expected, rel=1e-5)
        turned = Image.fromarray(large.astype(np.uint8).swapaxes(0, 1).copy())
        assert mask_checks.edge_ratio(turned, larger.T.astype(np.float32)) == pytest.approx(
            expected, rel=1e-5
        )
    dot = np.zeros_like(mask)
    dot[100, 200] = 1
    assert mask_checks.edge_ratio(Image.fromarray(photo), dot) == 0, "nothing lies beside it"
    strip = np.concatenate([np.ones((2, 40), np.float32), np.zeros((2, 60), np.float32)], axis=1)
    assert mask_checks.edge_ratio(Image.fromarray(photo[:2, :100].copy()), strip) > 0


@pytest.mark.parametrize(("size", "text", "line"), [((200, 300), 10, 1), ((525, 600), 21, 2)])
def test_the_preview_pixel_by_pixel(size: tuple[int, int], text: int, line: int) -> None:
    photo = Image.new("RGB", size, (40, 90, 162))
    mask = np.zeros(size[::-1], np.float32)
    mask[100:150, 50:150] = 1
    expected = photo.copy()
    expected.paste((255, 255, 255), (50 - line, 100 - line, 150 + line, 150 + line))
    expected.paste((126, 79, 135), (50, 100, 150, 150))
    ImageDraw.Draw(expected).text(
        (text / 2, size[1] - 1.6 * text),
        "inside the outline = repainted",
        "white",
        ImageFont.load_default(text),
        stroke_width=text // 10,
        stroke_fill="black",
    )
    assert np.array_equal(np.asarray(mask_checks.preview(photo, mask)), np.asarray(expected))


def test_a_strip_of_a_photo_follows_no_outline() -> None:
    assert mask_checks.edge_ratio(Image.new("RGB", (2000, 8)), np.ones((8, 2000), np.float32)) == 0.0
