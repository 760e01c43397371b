"""The user's own files are never replaced: only what triptych wrote is, told by its own metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InputError, WorkError
from triptych.pictures.images import SETTINGS
from triptych.pictures.overwrite import is_ours
from triptych.pictures.saving import save_jpeg, save_png
from triptych.pictures.xmp import packet
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.reproduce import reproduce
from triptych.verbs.reproduce_config import ReproduceConfig
from triptych.verbs.tryon import TryonConfig, tryon

PROMPT = (
    "three pictures <IMAGE 1> the front of a dress <IMAGE 2> the back <IMAGE 3> a person wearing the dress"
)


@pytest.fixture
def config(tmp_path: Path, tiny_flux: Path) -> TryonConfig:
    for name in ("front", "me", "own"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (60, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "p.json").write_text(json.dumps({"polygons": [[[9, 9], [30, 9], [30, 50]]]}))
    inputs = {
        "front": tmp_path / "front.png",
        "person": tmp_path / "me.png",
        "polygon": tmp_path / "p.json",
        "out": tmp_path / "new.png",
    }
    return TryonConfig(
        **inputs, prompt=PROMPT, model=str(tiny_flux), device="cpu", dtype="fp32", num_inference_steps=1
    )


@pytest.mark.parametrize("name", ["new.png", "new-mask.png", "new-triptych.png"])
@pytest.mark.parametrize("kind", ["photo", "text", "link"])
def test_tryon_refuses_before_anything_is_written(
    config: TryonConfig, tmp_path: Path, name: str, kind: str
) -> None:
    own = tmp_path / name
    if kind == "link":
        own.symlink_to(tmp_path / "own.png")
    else:
        own.write_bytes((tmp_path / "own.png").read_bytes() if kind == "photo" else b"my notes")
    before = own.read_bytes()
    with pytest.raises(InputError, match="did not write it"):
        tryon(config.model_copy(update={"device": "no-such-device"}))
    assert own.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("new*")) == [name]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_triptych_wrote_is_replaced(config: TryonConfig, tmp_path: Path, suffix: str) -> None:
    for seed in (1, 2):
        out = tmp_path / f"new{suffix}"
        tryon(config.model_copy(update={"out": out, "seed": seed, "num_images_per_prompt": 2})).finish()
    assert all(is_ours(path) for path in tmp_path.glob("new*"))
    again = tmp_path / f"new-2-again{suffix}"
    again.write_bytes((tmp_path / "own.png").read_bytes())
    words = {
        "image": tmp_path / f"new-2{suffix}",
        "photos": [tmp_path],
        "model": config.model,
        "device": "cpu",
    }
    with pytest.raises(InputError, match="did not write it"):
        reproduce(ReproduceConfig(**words))
    (tmp_path / "new-sheet.png").write_bytes((tmp_path / "own.png").read_bytes())
    with pytest.raises(InputError, match="did not write it"):
        tryon(config.model_copy(update={"num_images_per_prompt": 2}))


def test_whose_a_file_is_stands_in_it(tmp_path: Path) -> None:
    picture, about = Image.new("RGB", (8, 8)), json.dumps({"verb": "tryon"})
    save_png(picture, tmp_path / "a.png", text={"Software": "triptych"})
    save_jpeg(picture, tmp_path / "b.jpg", comment=about)
    save_jpeg(
        picture, tmp_path / "c.jpg", comment="x" * 65_000, xmp=packet("trainedAlgorithmicMedia")
    )  # settings that were too long
    (tmp_path / "d.png").touch()
    assert all(is_ours(path) for path in tmp_path.iterdir())
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_png(picture, theirs / "a.png", text={"Software": "other", "Comment": about})
    save_jpeg(
        picture,
        theirs / "b.jpg",
        comment="triptych",
        xmp=packet("trainedAlgorithmicMedia").replace(b"triptych", b"other"),
    )
    save_jpeg(picture, theirs / "c.jpg", comment=json.dumps({SETTINGS: 1}))
    (theirs / "e.png").write_bytes(b"broken")
    assert not any(is_ours(path) for path in [*theirs.iterdir(), theirs, tmp_path / "nowhere"])


def test_generate_keeps_a_file_of_the_users_in_its_place(tiny_flux: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        prompt=PROMPT,
        model=str(tiny_flux),
        device="cpu",
        dtype="fp32",
        num_inference_steps=1,
        out=tmp_path / "g",
    )
    generate(config).finish()
    generate(config).finish()
    for path in [*(tmp_path / "g").glob("*.png"), *(tmp_path / "g" / "panels").glob("*-worn.png")]:
        before = path.read_bytes()
        Image.new("RGB", (8, 8)).save(path)
        with pytest.raises(InputError, match="did not write it"):
            generate(config)
        path.write_bytes(before)


@pytest.mark.parametrize("verb", ["tryon", "generate"])
def test_a_folder_that_cannot_be_is_told_before_a_model_is_loaded(
    config: TryonConfig, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "triptych.backbones.contract.Backbone.load_transformer", lambda self: pytest.fail("too late")
    )
    out = tmp_path / "own.png" / "sub"
    with pytest.raises(WorkError, match=r"cannot be a folder: .*own.png is a file") as caught:
        if verb == "tryon":
            tryon(config.model_copy(update={"out": out / "new.png"}))
        else:
            generate(GenerateConfig(prompt=PROMPT, model=config.model, device="cpu", dtype="fp32", out=out))
    assert "--out" in caught.value.hint
