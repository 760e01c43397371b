"""Loss masks: found under the names people give them, read as they mean them, and refused before the first
step.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InputError
from triptych.tasks.tryon import TRY_ON
from triptych.training.masks import LossMasks

LAYOUT = TRY_ON.layout(32, 48)
IDS = ["dress-1", "dress-2", "Coat"]


def masks(folder: Path, learned: tuple[str, ...] = LAYOUT.roles) -> LossMasks:
    return LossMasks(
        folder,
        dict.fromkeys(IDS, LAYOUT),
        {"dress-1": "dress", "dress-2": "dress", "Coat": "Mantel 7"},
        learned,
    )


def half_white(mode: str = "L") -> Image.Image:
    """The left half of each panel's height counts: white above, black below."""
    pixels = np.zeros((48, 96), dtype=np.uint8)
    pixels[:24] = 255
    return Image.fromarray(pixels).convert(mode)


NAMES = [
    "Coat.png",
    "coat.PNG",
    "Coat.jpg",
    "Coat.webp",
    "Coat-masklabel.png",
    "Coat_mask.png",
    "mask_Coat.png",
    "Coat.mask.png",
    "mantel 7.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_usual_names_are_found(tmp_path: Path, name: str) -> None:
    half_white().save(tmp_path / name, {"jpg": "JPEG", "webp": "WEBP"}.get(name.rsplit(".")[-1], "PNG"))
    mask = masks(tmp_path).learned("Coat", (6, 12))
    assert mask is not None and mask[:3].mean() > 0.99 and mask[3:].mean() < 0.01
    assert masks(tmp_path).learned("dress-1", (6, 12)) is None


def test_what_belongs_to_nothing_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "dress-1.png",
        "dress.png",
        "dress-10.png",
        "IMG_1.jpg",
    ):  # an item of two triptychs means neither
        half_white().save(tmp_path / name)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        found = masks(tmp_path)
    assert (list(found.by_id), found.unmatched) == (["dress-1"], 3)
    assert "IMG_1.jpg, dress-10.png, dress.png" in caplog.text


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_the_mask(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = half_white("P")
        image.save(tmp_path / "Coat.png", transparency=0)
    else:
        image = Image.new("RGB", (96, 48), "grey").convert("RGBA" if mode != "LA" else "LA")
        image.putalpha(half_white())
        (image.quantize(4) if mode == "PA" else image).save(tmp_path / "Coat.png")
    mask = masks(tmp_path).learned("Coat", (6, 12))
    assert mask is not None and mask[:3].mean() > 0.99 and mask[3:].mean() < 0.01


def test_an_alpha_channel_that_is_opaque_all_over_says_nothing(tmp_path: Path) -> None:
    half_white("RGBA").save(tmp_path / "Coat.png")
    mask = masks(tmp_path).learned("Coat", (6, 12))
    assert mask is not None and mask[3:].max() == 0


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "no picture at all"),
    "none that matches": ({"IMG_1.png": half_white()}, "IMG_1.png is there"),
    "two for one": (
        {"Coat.png": half_white(), "Coat_mask.jpg": half_white()},
        "two loss masks: Coat.png and Coat_mask.jpg",
    ),
    "another size": (
        {"dress-1.png": half_white(), "Coat.png": Image.new("L", (48, 48), 255)},
        "48×48 px, its triptych 96×48",
    ),
    "black": (
        {"dress-1.png": half_white(), "Coat.png": Image.new("L", (96, 48), 3)},
        "1 loss masks are black .*: Coat.png",
    ),
    "transparent": ({"Coat.png": Image.new("RGBA", (96, 48), (255, 255, 255, 0))}, "black"),
}


@pytest.mark.parametrize("case", CASES)
def test_masks_that_cannot_be_meant_are_refused_at_the_call(tmp_path: Path, case: str) -> None:
    files, words = CASES[case]
    for name, image in files.items():
        image.save(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        masks(tmp_path)
    assert caught.value.hint


def test_a_mask_that_is_black_in_the_panel_that_is_learned_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((48, 96), dtype=np.uint8)
    pixels[:, :64] = 255  # front and back
    Image.fromarray(pixels).save(tmp_path / "Coat.png")
    masks(tmp_path)
    with pytest.raises(InputError, match="black where there is something to learn"):
        masks(tmp_path, ("worn",))
    with pytest.raises(InputError, match="missing"):
        masks(tmp_path / "nowhere")
    (tmp_path / "Coat.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(InputError, match="not a usable photo"):
        masks(tmp_path)
