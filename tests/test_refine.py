"""The second pass of a try-on: where it looks, what it may change, and what is told about it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from triptych.cli import main
from triptych.errors import ConfigError
from triptych.pictures import masks
from triptych.pictures.images import read_settings
from triptych.pictures.panels import Box
from triptych.session import Session
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.evaluate import EvaluateConfig, evaluate
from triptych.verbs.plan import PlanConfig, plan
from triptych.vton.fit import TryOnResult, fitted
from triptych.vton.refine import _detailed, _put_together
from triptych.vton.request import Person
from triptych.vton.tiles import tiles

PROMPT = "dress <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn"  # no longer than the tiny models read
OUTLINE = [(30.0, 20.0), (90.0, 24.0), (96.0, 150.0), (24.0, 150.0)]
QUICK: dict[str, Any] = {"num_inference_steps": 3, "feather": 4, "crop": "none"}


def photo(seed: int, size: tuple[int, int] = (128, 192)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def white(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], np.float32)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def test_tiles_have_half_the_sides_and_hold_the_mask() -> None:
    layout, size = TRY_ON.layout(48, 72), (192, 288)
    whole = Box(0, 0, *size)
    assert tiles(white(size, (80, 100, 120, 180)), whole, layout) == [(52, 68, 148, 212)], "96 × 144, centred"
    assert tiles(white(size, (0, 0, 10, 10)), whole, layout) == [(0, 0, 96, 144)], "inside the photo"
    wide = tiles(white(size, (20, 100, 180, 180)), whole, layout)
    assert wide == [(20, 68, 116, 212), (84, 68, 180, 212)]
    apart = tiles(white(size, (0, 0, 20, 20), (172, 268, 192, 288)), whole, layout)
    assert apart == [(0, 0, 96, 144), (96, 144, 192, 288)], "none where nothing is repainted"
    for number in range(20):
        rng = np.random.default_rng(number)
        left, top = rng.integers(0, 150), rng.integers(0, 200)
        mask = white(size, (left, top, left + rng.integers(1, 192 - left), top + rng.integers(1, 288 - top)))
        covered = sum(white(size, tile) for tile in tiles(mask, whole, layout))
        assert (covered[mask > 0] > 0).all()
    fine = tiles(white((72, 100), (10, 10, 50, 70)), Box(0, 0, 72, 100), layout)
    assert fine == [(6, 4, 54, 76)], "no finer than the photo itself"
    assert tiles(white((50, 75), (10, 10, 30, 30)), Box(0, 0, 50, 75), layout) == []


def test_tiles_are_blended_into_their_neighbours_and_into_nothing_else() -> None:
    grey, parts = Image.new("RGB", (60, 20), (9, 9, 9)), []
    for left, level in ((0, 100), (30, 200)):
        parts.append((Box(left, 0, left + 40, 20), Image.new("RGB", (40, 20), (level, 0, level))))
    made = np.asarray(_put_together(grey, parts))
    assert (made[:, :30, 0] == 100).all() and (made[:, 40:, 0] == 200).all() and (made[..., 1] == 0).all()
    assert (np.diff(made[10, 29:41, 0].astype(int)) >= 0).all(), "a ramp between them"
    assert np.array_equal(np.asarray(_put_together(grey, parts[1:]))[:, :30], np.full((20, 30, 3), 9))


def test_only_detail_is_taken_and_only_inside_the_mask() -> None:
    """A Gaussian of two pixels keeps a tint of the second picture out and lets single pixels through."""
    size, layout = (96, 144), TRY_ON.layout(24, 36)
    first, mask = photo(1, size), masks.feather(white(size, (30, 40, 70, 100)), 8)
    fitting = fitted({"front": first, "back": first}, Person(first, mask=mask > 0), layout, 12, 0, None)
    fitting, result = replace(fitting, mask=mask), TryOnResult(first, mask, first, first, fitting.box)
    tinted = Image.fromarray(np.asarray(first) // 2 + 60)
    dots = np.indices(size[::-1]).sum(0) % 2 * 20 - 10
    dotted = Image.fromarray(np.clip(np.asarray(first, int) + dots[..., None], 0, 255).astype(np.uint8))
    before = np.asarray(first, int)
    for second, least, most in ((first, 0, 0), (dotted, 8, 11)):
        moved = np.abs(np.asarray(_detailed(fitting, result, second, layout).image, int) - before)
        assert (moved[mask == 0] == 0).all() and least <= moved[mask == 1].mean() <= most
    change = np.asarray(_detailed(fitting, result, tinted, layout).image, int) - before
    assert np.abs(ndimage.gaussian_filter(change[..., 0].astype(float), 6)).max() < 6
    assert (change[mask == 0] == 0).all()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    for number, name in enumerate(("front", "back", "person")):
        photo(number).save(tmp_path / f"{name}.png")
    (tmp_path / "polygon.json").write_text(json.dumps({"polygons": [OUTLINE]}))
    return {path.stem: path for path in sorted(tmp_path.iterdir())}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_refining_changes_the_inside_alone_and_is_made_again(
    tiny: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = inputs["person"].parent / "out.png"
    given = [word for name, path in inputs.items() for word in (f"--{name}", path)]
    words = ["tryon", "--model", tiny, "--prompt", PROMPT, "--device", "cpu", "--dtype", "fp32", *given]
    words += ["--crop", "none", "--feather", 4, "--num-inference-steps", 3]
    assert "refine" not in run(capsys, *words, "--out", out.with_name("plain.png"))
    assert run(capsys, *words, "--refine", "--out", out)["refine"] == 0.2
    before, plain, after = (pixels(path) for path in (inputs["person"], out.with_name("plain.png"), out))
    mask = masks.feather(masks.polygon_mask([OUTLINE], (128, 192)), 4)
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert (plain != after).any(axis=2)[mask == 1].mean() > 0.5
    assert read_settings(out)["refine"] == 0.2 and "refine" not in read_settings(out.with_name("plain.png"))
    again = run(capsys, "reproduce", out, "--model", tiny, "--photos", out.parent)
    assert again["identical"] is True


def test_photos_are_read_once_for_both_passes(tiny_flux2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, read = Session(str(tiny_flux2), device="cpu", dtype="fp32"), []
    encode = session.autoencoder.encode
    monkeypatch.setattr(session.autoencoder, "encode", lambda x: read.append(x.shape) or encode(x))
    shown = photo(1), photo(2), photo(3)
    for strength, pictures in (
        (0.0, 3),
        (0.35, 3 + 1 + 4),
    ):  # kept: the products; four tiles
        session.try_on(*shown, polygons=[OUTLINE], prompt=PROMPT, refine=strength, **QUICK)
        assert len(read) == pictures


def test_without_a_mask_what_changed_is_refined(tiny_flux2: Path) -> None:
    session = Session(str(tiny_flux2), device="cpu", dtype="fp32")
    once, twice = (
        session.try_on(photo(1), photo(2), photo(3), prompt=PROMPT, mask_free=True, refine=strength, **QUICK)[
            0
        ]
        for strength in (0.0, 0.35)
    )
    assert np.array_equal(once.mask, twice.mask) and twice.settings["refine"] == 0.35
    before, plain, after = (np.asarray(image) for image in (photo(3), once.image, twice.image))
    assert np.array_equal(before[twice.mask == 0], after[twice.mask == 0])
    assert (plain != after).any(axis=2)[twice.mask == 1].mean() > 0.5


def test_products_read_alone_are_not_read_again(tiny_flux: Path) -> None:
    session = Session(str(tiny_flux), device="cpu", dtype="fp32")
    how = QUICK | {"context": "clean", "context_reading": "products", "refine": 0.35}
    session.try_on(photo(1), photo(2), photo(3), polygons=[OUTLINE], prompt=PROMPT, **how)
    assert session.contexts.hits == 2 * 4, "latents, keys and values of the products, at each of four tiles"


def test_a_photo_without_more_detail_is_left_alone_with_a_word(
    tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session, small = Session(str(tiny_flux), device="cpu", dtype="fp32"), photo(3, (36, 54))
    made = [
        session.try_on(
            photo(1),
            None,
            small,
            mask=white((36, 54), (9, 9, 30, 40)),
            prompt=PROMPT,
            refine=strength,
            **QUICK,
        )[0].image.tobytes()
        for strength in (0.0, 0.35)
    ]
    assert made[0] == made[1] and "There is no second pass" in caplog.text


def test_lines_of_a_batch_have_strengths_of_their_own(
    tiny_flux: Path, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = inputs["person"].parent
    (folder / "jobs.csv").write_text(
        "id,person,polygon,refine\na,person.png,polygon.json,\nb,person.png,polygon.json,0.2\n"
        "c,person.png,polygon.json,2\n"
    )
    words = ["tryon", "--batch", folder / "jobs.csv", "--front", inputs["front"], "--model", tiny_flux]
    words += ["--prompt", PROMPT, "--crop", "none", "--num-inference-steps", 2, "--refine", 0.5]
    assert main([*map(str, words), "--out", str(folder / "out"), "--device", "cpu"]) == 1
    assert [read_settings(folder / "out" / f"{name}.png")["refine"] for name in "ab"] == [0.5, 0.2]
    with open(folder / "out" / "results.csv", newline="") as file:
        assert "takes a number from 0 to 1" in [row["reason"] for row in csv.DictReader(file)][2]
    assert capsys.readouterr().err


def test_refining_without_a_person_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--refine has no effect in mode generate"):
        evaluate(EvaluateConfig(pocket=True, refine=0.35, work=tmp_path))
    assert main(["tryon", "--refine", "--front", "a.jpg", "--prompt", "x"]) == 1
    assert main(["generate", "--refine", "0.35", "--prompt", "x"]) == 2


def test_the_second_pass_is_planned(tiny_flux: Path) -> None:
    config = PlanConfig(model=str(tiny_flux), card="rtx-4090")
    once, twice, tiled = (
        plan(config, {"tryon": more}).finish()["tryon"]
        for more in ({}, {"refine": 0.5}, {"refine": 0.5, "crop": "none"})
    )
    assert once["flops"] < twice["flops"] < 3 * once["flops"] < tiled["flops"]
