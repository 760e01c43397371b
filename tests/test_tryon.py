"""generate and tryon, through the verbs: sizes, known panels, and pixels that must not change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from triptych.errors import InputError, ModelError
from triptych.pictures import masks
from triptych.pictures.colours import from_srgb, to_srgb
from triptych.pictures.panels import fit, split
from triptych.pictures.polygons import read_polygons
from triptych.sampling.generate import generate_triptych
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.tryon import TryonConfig, tryon

PROMPT = (
    "three pictures <IMAGE 1> the front of a dress <IMAGE 2> the back <IMAGE 3> a person wearing the dress"
)


def photo(path: Path, size: tuple[int, int], seed: int, **save) -> Path:
    pixels = np.random.default_rng(seed).integers(
        0, 255, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8
    )
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **save)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    polygon = tmp_path / "polygon.json"
    polygon.write_text(json.dumps({"polygons": [[[60, 80], [140, 80], [150, 200], [50, 190]]]}))
    return {
        "front": photo(tmp_path / "front.jpg", (120, 160), 1),
        "back": photo(tmp_path / "back.png", (100, 170), 2),
        "person": photo(tmp_path / "person.jpg", (211, 307), 3, quality=93),
        "polygon": polygon,
    }


def options(tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path, **changes) -> TryonConfig:
    base = {
        "prompt": PROMPT,
        "model": str(tiny_flux),
        "device": "cpu",
        "dtype": "fp32",
        "out": tmp_path / "out.png",
        "num_inference_steps": 3,
    }
    return TryonConfig(**{**base, **inputs, **changes})


def test_outside_the_feathered_polygon_every_pixel_is_the_photos_own(
    tiny: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    tryon(options(tiny, inputs, tmp_path, feather=6)).finish()
    before, after = (
        np.asarray(Image.open(path).convert("RGB")) for path in (inputs["person"], tmp_path / "out.png")
    )
    assert before.shape == after.shape
    polygons = read_polygons(inputs["polygon"])
    inside = masks.polygon_mask(polygons, (211, 307))
    outside = masks.grow(inside, 6) == 0
    assert np.array_equal(before[outside], after[outside])
    assert outside.mean() > 0.5
    assert (before[inside == 1] != after[inside == 1]).mean() > 0.5, "the polygon was repainted"


def test_the_picture_carries_its_settings_and_the_model_saw_the_panels(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    summary = tryon(
        options(tiny_flux, inputs, tmp_path, seed=5, num_images_per_prompt=2, strength=0.7)
    ).finish()
    assert [Path(path).name for path in summary["images"]] == ["out-5.png", "out-6.png"]
    about = json.loads(Image.open(tmp_path / "out-6.png").text["triptych"])
    assert (about["seed"], about["strength"], about["prompt"]) == (6, 0.7, PROMPT)
    assert set(about["sha256"]) == {"front", "back", "person", "polygon"}
    assert str(tmp_path) not in json.dumps(about), "paths of the user's machine stay at home"
    assert Image.open(tmp_path / "out-5-triptych.png").size == (96, 48)
    assert Image.open(tmp_path / "out-mask.png").size[0] == 211
    first, second = (np.asarray(Image.open(tmp_path / f"out-{seed}.png")) for seed in (5, 6))
    assert (first != second).any()


def test_the_same_seed_makes_the_same_picture(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        tryon(options(tiny_flux, inputs, tmp_path, out=tmp_path / name)).finish()
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png"))
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"front": None}, "--front"),
        ({"polygon": Path("none.json")}, "none.json"),
        ({"prompt": " "}, "prompt"),
        ({"person": Path("none.jpg")}, "none.jpg"),
    ],
)
def test_bad_input_is_named_before_any_model_is_loaded(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        tryon(options(tiny_flux, inputs, tmp_path, **{**changes, "device": "no-such-device"}))
    assert caught.value.hint


def test_a_polygon_outside_the_photo_is_refused(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    inputs["polygon"].write_text(json.dumps({"polygons": [[[900, 900], [950, 900], [950, 950]]]}))
    with pytest.raises(InputError, match="outside"):
        tryon(options(tiny_flux, inputs, tmp_path))


def test_no_photo_is_ever_overwritten(tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    for out in (inputs["back"], tmp_path):
        with pytest.raises(InputError, match=r"overwrite|no name"):
            tryon(options(tiny_flux, inputs, tmp_path, out=out, device="no-such-device"))


def test_the_garment_is_put_back_in_the_photos_own_colour_space(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """A profile with red and blue exchanged: the model must see, and give back, the colours a viewer sees."""
    grey = Image.new("RGB", (211, 307), (200, 120, 40))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(profile)
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = (
        bytes(swapped)
        .replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
        .replace(b"sRGB", b"swap")
    )
    seen = np.asarray(to_srgb(grey, swapped))[0, 0].tolist()
    assert np.abs(np.array(seen) - [40, 120, 200]).max() <= 3
    assert (
        np.abs(np.asarray(from_srgb(to_srgb(grey, swapped), swapped), int) - np.asarray(grey, int)).max() <= 2
    )
    grey.save(inputs["person"].with_suffix(".png"), icc_profile=swapped)
    tryon(options(tiny_flux, {**inputs, "person": inputs["person"].with_suffix(".png")}, tmp_path)).finish()
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == swapped


def test_no_such_model_is_one_sentence(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no diffusers model folder"):
        tryon(options(tmp_path / "nowhere" / "model", inputs, tmp_path))


def test_generate_keeps_the_products_and_makes_the_rest(
    tiny: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    models = load_models(str(tiny), [PROMPT], device="cpu", dtype="fp32")
    layout = TRY_ON.layout(32, 48)
    front = Image.open(inputs["front"])
    sampling = Sampling(3)
    one, two = (
        generate_triptych(models, [PROMPT], layout, [seed], sampling, [{"front": front, "back": front}])[0]
        for seed in (1, 2)
    )
    panels = [[np.asarray(panel, int) for panel in split(canvas, layout)] for canvas in (one, two)]
    for canvas in panels:
        assert np.array_equal(canvas[0], np.asarray(fit(front, 32, 48)))
        assert np.array_equal(canvas[1], canvas[0])
    assert np.abs(panels[0][2] - panels[1][2]).max() > 5


def test_generate_writes_canvas_and_panels(tiny: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        prompt=PROMPT,
        model=str(tiny),
        device="cpu",
        dtype="fp32",
        num_inference_steps=2,
        out=tmp_path / "out",
    )
    summary = generate(config).finish()
    (canvas,) = summary["images"]
    assert Image.open(canvas).size == (96, 48)
    names = sorted(file.name.rsplit("-", 1)[1] for file in (tmp_path / "out" / "panels").iterdir())
    assert names == ["back.png", "front.png", "worn.png"]
