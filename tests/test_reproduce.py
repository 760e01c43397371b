"""A picture says how it was made, and can be made again from that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.cli import main
from triptych.config.marks import RESULT, marked
from triptych.errors import InputError
from triptych.pictures.images import read_settings
from triptych.pictures.saving import save_png
from triptych.verbs import STAGES
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.reproduce import ReproduceConfig, differences, reproduce
from triptych.verbs.tryon import TryonConfig, tryon

PROMPT = (
    "three pictures <IMAGE 1> the front of a dress <IMAGE 2> the back <IMAGE 3> a person wearing the "
    "dress — größe"
)
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
    inputs = {
        "front": photos / "front.png",
        "person": photos / "deep" / "person.jpg",
        "polygon": photos / "polygon.json",
    }
    more = {
        "prompt": PROMPT,
        "model": str(model),
        "device": "cpu",
        "dtype": "fp32",
        "num_inference_steps": 2,
        "out": out,
    }
    unusual = {
        "crop_margin": 0.3,
        "expand": "hull",
        "grow": 3,
        "feather": 5,
        "rough": "paste",
        "strength": 0.8,
        "seed": 7,
    }
    return TryonConfig(**{**inputs, **more, **unusual, **changes})


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_a_try_on_is_made_again_pixel_for_pixel(
    tiny_flux: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    tryon(options(tiny_flux, photos, out)).finish()
    about = read_settings(out)
    assert about is not None
    unsaid = {"polygon_label", "mask_free", "refine"}  # recorded where they are given
    assert set(about) - OURS == marked(TryonConfig, RESULT) - unsaid, "every setting is in the picture"
    assert about["made_on"]["threads"] == torch.get_num_threads()
    assert about["guidance_scale"] == 3.5 and about["panel_height"] == 48, (
        "recommendations of the model are written out"
    )
    shutil.move(photos / "front.png", photos / "renamed.png")
    summary = reproduce(
        ReproduceConfig(image=out, photos=[photos], model=str(tiny_flux), device="cpu", work=tmp_path)
    ).finish()
    assert summary["identical"] is True
    assert Path(summary["image"]).name == name.replace(".", "-again.")
    other = tmp_path / ("b.jpg" if name.endswith("png") else "b.png")
    config = ReproduceConfig(
        image=out, photos=[photos], model=str(tiny_flux), device="cpu", work=tmp_path, out=other
    )
    assert reproduce(config).finish()["differs"][0].startswith("format: ")
    tryon(options(tiny_flux, photos, out, front=photos / "renamed.png", seed=8)).finish()
    before, after = (np.asarray(Image.open(path)) for path in (out, summary["image"]))
    assert (before != after).any(), "another seed makes another picture"


def test_a_generated_triptych_is_made_again(
    tiny_flux: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    words = [
        "reproduce",
        image,
        "--photos",
        str(photos),
        "--model",
        str(tiny_flux),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "again"),
    ]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True
    assert main([*words[:-1], str(tmp_path / "again.png")]) == 1
    assert "is the name of a picture" in capsys.readouterr().err and not (tmp_path / "again.png").exists()


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
    for broken in ("[" * 100_000, "[]", "null", "{"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "odd.png", text={"triptych": broken})
        assert read_settings(tmp_path / "odd.png") is None


# --- A picture comes from anybody
# -----------------------------------------------------------------------------------------

HASH = "0" * 64
FOREIGN: dict[str, dict[str, Any]] = {
    "tryon": {
        "verb": "tryon",
        "sha256": dict.fromkeys(("front", "person", "polygon"), HASH),
        "made_on": {},
        "prompt": PROMPT,
        "model": "pocket",
    },
    "generate": {"verb": "generate", "sha256": {}, "made_on": {}, "prompt": PROMPT, "model": "pocket"},
}
OURS = {"verb", "sha256", "made_on", "part"}
EVERY_KEY = sorted(
    {key for stage in STAGES for key in stage.load()[1].model_fields}
    | {"config", "__class__", "photos", "image", ""}
)


def foreign(path: Path, about: dict[str, Any]) -> ReproduceConfig:
    """A picture that says `about`, to be reproduced without any photo."""
    save_png(Image.new("RGB", (8, 8)), path / "evil.png", text={"triptych": json.dumps(about)})
    return ReproduceConfig(image=path / "evil.png", photos=[path], work=path / "w")


@pytest.mark.parametrize("verb", ["tryon", "generate"])
def test_every_other_key_of_every_config_is_refused(verb: str, tmp_path: Path) -> None:
    allowed = marked({"tryon": TryonConfig, "generate": GenerateConfig}[verb], RESULT)
    refused = [key for key in EVERY_KEY if key not in allowed | OURS]
    assert len(refused) > 60
    for key in refused:
        with pytest.raises(InputError, match="no picture of triptych's has"):
            reproduce(foreign(tmp_path, {**FOREIGN[verb], key: "evil.png"}))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ""},
        {"prompt": " \n"},
        {"prompt": "a\0b"},
        {"prompt": "a\ud800b"},
        {"prompt": "x" * 100_000},
        {"prompt": ["a"]},
        {"prompt": None},
        {"strength": "0.5"},
        {"strength": float("nan")},
        {"lora_scale": float("inf")},
        {"lora_scale": 1e30},
        {"guidance_scale": 1e30},
        {"drop_background": 1},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": True},
        {"num_inference_steps": 10**9},
        {"num_inference_steps": 3.0},
        {"panel_width": 800_000},
        {"panel_width": 8192, "panel_height": 8192},
        {"feather": 10**9},
        {"crop": "none;rm"},
        {"quantize": "../x"},
        {"dtype": "fp64"},
        {"model": "attacker/model"},
        {"model": "/home/x/model"},
        {"model": "../model"},
        {"model": ""},
        {"verb": "train"},
        {"verb": ["tryon"]},
        {"sha256": {"front": "x.png"}},
        {"sha256": {"front": HASH}},
        {"sha256": {**FOREIGN["tryon"]["sha256"], "caption": HASH}},
        {"sha256": []},
        {"made_on": []},
        {"made_on": {"device": "\x1b[31m"}},
        {"made_on": {"path": "/"}},
        {"made_on": {"threads": "many"}},
        {"part": "mask"},
    ],
    ids=lambda change: ascii(change)[:40],
)
def test_a_picture_with_an_impossible_setting_is_refused_in_a_sentence(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        reproduce(foreign(tmp_path, {**FOREIGN["tryon"], **change}))
    if "panel_height" not in change:  # whose canvas is looked at after the inputs
        assert "evil.png" in caught.value.message and "not among the files" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("model", ["pocket-klein", "black-forest-labs/FLUX.2-klein-4B"])
def test_a_model_that_comes_with_the_package_or_is_well_known_is_used(model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not among the files"):
        reproduce(foreign(tmp_path, {**FOREIGN["tryon"], "model": model}))
    with pytest.raises(InputError, match="not well known"):
        reproduce(foreign(tmp_path, {**FOREIGN["tryon"], "model": "somebody/else"}))


def test_a_foreign_picture_reaches_no_server_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack of the report: a captioner's address and local paths in place of hashes; nothing is opened
    but the picture.
    """
    (tmp_path / "secret.txt").write_text("secret line")
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    paths = {name: str(tmp_path / "evil.png") for name in ("front", "person", "polygon")}
    bare = {"verb": "tryon", "sha256": {}, "made_on": {}, "prompt": ""}
    for extra in (
        {"vlm_model": "x", "base_url": "http://127.0.0.1:9/v1"},
        {"caption": str(tmp_path / "secret.txt")},
        {"batch": "b.csv"},
    ):
        with pytest.raises(InputError, match="no picture of triptych's has"):
            reproduce(foreign(tmp_path, {**bare, **paths, **extra}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.png", "secret.txt"]


def test_the_settings_a_picture_may_carry_are_the_ones_it_is_given() -> None:
    """A new option of tryon or generate that changes pixels is marked RESULT, and entered here."""
    pixels = {
        *("model", "lora_scale", "num_inference_steps", "guidance_scale", "true_cfg_scale", "time_shift"),
        *("context", "context_placement", "context_reading", "active_tokens", "drop_background"),
        *("token_bucket", "step_cache"),
        *("context_guidance_scale", "guidance_stop", "panel_width", "panel_height", "seed", "dtype"),
        *("quantize", "prompt"),
    }
    fit = {
        "crop",
        "crop_margin",
        "expand",
        "grow",
        "feather",
        "rough",
        "strength",
        "polygon_label",
        "mask_free",
        "refine",
    }
    assert marked(GenerateConfig, RESULT) == pixels
    assert marked(TryonConfig, RESULT) == pixels | fit


def test_threads_are_recorded_and_named_when_pixels_differ() -> None:
    before = {"device": "cpu", "dtype": "float32", "torch": "2.10", "threads": 2}
    assert differences(before, {**before, "threads": 1}) == ["threads: 2 then, 1 now"]
    assert differences({"device": "cpu"}, {"device": "cpu", "threads": 4}) == [
        "threads: not recorded then, 4 now"
    ]
    assert len(differences(before, before)) == 1


def test_pictures_say_that_a_model_made_them(tiny_flux: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("out.png", "out.jpg"):
        tryon(options(tiny_flux, photos, tmp_path / name, num_images_per_prompt=2)).finish()
    edited = ["out-7.png", "out-8.png", "out-7.jpg", "out-7-triptych.png", "out-sheet.png"]
    common = {
        "prompt": PROMPT,
        "model": str(tiny_flux),
        "device": "cpu",
        "dtype": "fp32",
        "num_inference_steps": 2,
    }
    (free,) = generate(GenerateConfig(**common, out=tmp_path / "a")).finish()["images"]
    (given,) = generate(GenerateConfig(**common, out=tmp_path / "b", front=photos / "front.png")).finish()[
        "images"
    ]

    def source(path: Path) -> str:
        with Image.open(path) as image:
            root = ElementTree.fromstring(image.info["xmp"])
        (found,) = root.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
        return str(found.text)

    for path in (*(tmp_path / name for name in edited), given):
        assert source(path) == SOURCE + "compositeWithTrainedAlgorithmicMedia"
    for path in (
        free,
        *(tmp_path / "a" / "panels").iterdir(),
        *(tmp_path / "b" / "panels").glob("*-worn.png"),
    ):
        assert source(path) == SOURCE + "trainedAlgorithmicMedia"
    for untouched in (tmp_path / "b" / "panels").glob("*-front.png"):
        with Image.open(untouched) as image:
            assert "xmp" not in image.info
    assert Image.open(tmp_path / "out-sheet.png").width > 600
