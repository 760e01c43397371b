"""A picture says how it was made, and can be made again from that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from triptych.cli import main
from triptych.errors import ConfigError, InputError
from triptych.images import read_settings, save_png
from triptych.reproduce import ReproduceConfig, reproduce
from triptych.stages.generate import GenerateConfig, generate
from triptych.stages.tryon import TryonConfig, tryon

PROMPT = "three pictures <IMAGE 1> the front of a dress <IMAGE 2> the back <IMAGE 3> a person wearing the dress — größe"
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    product = Image.new("RGB", (120, 160), "white")
    product.paste((200, 30, 40), (30, 30, 90, 130))
    product.save(folder / "front.png")
    noise = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((211, 307), Image.Resampling.BICUBIC).save(folder / "deep" / "person.jpg")
    corners = [[60, 80], [140, 80], [120, 140], [150, 200], [50, 190]]
    holes = [[[80, 100], [90, 100], [90, 110]]]
    (folder / "polygon.json").write_text(json.dumps({"polygons": [corners], "holes": holes}))
    return folder


def options(model: Path, photos: Path, out: Path, **changes) -> TryonConfig:
    inputs = {"front": photos / "front.png", "person": photos / "deep" / "person.jpg", "polygon": photos / "polygon.json"}
    more = {"prompt": PROMPT, "model": str(model), "device": "cpu", "dtype": "fp32", "num_inference_steps": 2, "out": out}
    unusual = {"crop_margin": 0.3, "expand": "hull", "grow": 3, "feather": 5, "rough": "paste", "strength": 0.8, "seed": 7}
    return TryonConfig(**{**inputs, **more, **unusual, **changes})


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_a_try_on_is_made_again_pixel_for_pixel(tiny_flux: Path, photos: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    tryon(options(tiny_flux, photos, out)).finish()
    about = read_settings(out)
    assert about is not None
    ignored = {
        "work",
        "catalogue",
        "triptychs",
        "embeddings",
        "lora_folder",
        "lora",
        "out",
        "device",
        "caption",
        "batch",
        "batch_size",
        "vlm_model",
        "base_url",
        "context_cache_gib",
        "blocks_to_swap",
    }
    ignored |= {"front", "back", "person", "polygon", "num_images_per_prompt"}
    assert set(about) - {"verb", "sha256", "made_on"} == set(TryonConfig.model_fields) - ignored, "every setting is in the picture"
    assert about["guidance_scale"] == 3.5 and about["panel_height"] == 48, "recommendations of the model are written out"
    shutil.move(photos / "front.png", photos / "renamed.png")
    summary = reproduce(ReproduceConfig(image=out, photos=[photos], model=str(tiny_flux), device="cpu", work=tmp_path)).finish()
    assert summary["identical"] is True
    assert Path(summary["image"]).name == name.replace(".", "-again.")
    tryon(options(tiny_flux, photos, out, front=photos / "renamed.png", seed=8)).finish()
    before, after = (np.asarray(Image.open(path)) for path in (out, summary["image"]))
    assert (before != after).any(), "another seed makes another picture"


def test_a_generated_triptych_is_made_again(tiny_flux: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = GenerateConfig(
        prompt=PROMPT,
        model=str(tiny_flux),
        front=photos / "front.png",
        device="cpu",
        dtype="fp32",
        num_inference_steps=2,
        out=tmp_path / "g",
    )
    (image,) = generate(config).finish()["images"]
    words = ["reproduce", image, "--photos", str(photos), "--model", str(tiny_flux), "--device", "cpu", "--out", str(tmp_path / "again")]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


def test_what_cannot_be_reproduced_is_named(tiny_flux: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    tryon(options(tiny_flux, photos, out)).finish()
    again = {"model": str(tiny_flux), "work": tmp_path}
    with pytest.raises(InputError, match="The person photo this picture"):
        reproduce(ReproduceConfig(image=out, photos=[photos / "front.png", photos / "polygon.json"], **again))
    with pytest.raises(InputError, match="is not there"):
        reproduce(ReproduceConfig(image=out, photos=[tmp_path / "nowhere"], **again))
    with pytest.raises(InputError, match="does not say how"):
        reproduce(ReproduceConfig(image=photos / "front.png", photos=[photos], **again))
    with pytest.raises(InputError, match="only lies beside"):
        reproduce(ReproduceConfig(image=tmp_path / "out-triptych.png", photos=[photos], **again))
    about = read_settings(out)
    assert about is not None
    for change, error in (({"strength": "much"}, ConfigError), ({"no_such": 1}, ConfigError), ({"sha256": []}, InputError)):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "odd.png", text={"triptych": json.dumps({**about, **change})})
        with pytest.raises(error):
            reproduce(ReproduceConfig(image=tmp_path / "odd.png", photos=[photos], **again))
    for broken in ("[" * 100_000, "[]", "null", "{"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "odd.png", text={"triptych": broken})
        assert read_settings(tmp_path / "odd.png") is None


def test_pictures_say_that_a_model_made_them(tiny_flux: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("out.png", "out.jpg"):
        tryon(options(tiny_flux, photos, tmp_path / name, num_images_per_prompt=2)).finish()
    edited = ["out-7.png", "out-8.png", "out-7.jpg", "out-7-triptych.png", "out-sheet.png"]
    common = {"prompt": PROMPT, "model": str(tiny_flux), "device": "cpu", "dtype": "fp32", "num_inference_steps": 2}
    (free,) = generate(GenerateConfig(**common, out=tmp_path / "a")).finish()["images"]
    (given,) = generate(GenerateConfig(**common, out=tmp_path / "b", front=photos / "front.png")).finish()["images"]

    def source(path: Path) -> str:
        with Image.open(path) as image:
            root = ElementTree.fromstring(image.info["xmp"])
        (found,) = root.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
        return str(found.text)

    for path in (*(tmp_path / name for name in edited), given):
        assert source(path) == SOURCE + "compositeWithTrainedAlgorithmicMedia"
    for path in (free, *(tmp_path / "a" / "panels").iterdir(), *(tmp_path / "b" / "panels").glob("*-worn.png")):
        assert source(path) == SOURCE + "trainedAlgorithmicMedia"
    for untouched in (tmp_path / "b" / "panels").glob("*-front.png"):
        with Image.open(untouched) as image:
            assert "xmp" not in image.info
    assert Image.open(tmp_path / "out-sheet.png").width > 600
