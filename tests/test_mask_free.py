"""Try-on without a mask: the panel is made anew from references, and what changed comes into the photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.cli import main
from triptych.errors import ConfigError
from triptych.evaluation.rendered import held_out_items, verdicts
from triptych.pictures.images import read_settings
from triptych.session import Session

from .test_flux2_in_use import shop as shop

HOW = {"num_inference_steps": 2, "true_cfg_scale": 1.0}


def pixels(image: Image.Image | Path) -> np.ndarray:
    return np.asarray((Image.open(image) if isinstance(image, Path) else image).convert("RGB"), int)


def test_a_rendered_person_is_dressed_and_everything_else_stays() -> None:
    session, items = Session("pocket-klein", device="cpu", dtype="fp32"), held_out_items(4, seed=6)
    panels, missed = [], []
    for item in items:
        before = item.view(2, item.other())
        prompt = f"the person of picture 3 wearing the {item.garment.type} of picture 1"
        (made,) = session.try_on(
            item.front, item.back, before.image, prompt=prompt, mask_free=True, feather=0
        )
        same = (pixels(made.image) == pixels(before.image)).all(axis=2)
        assert same[made.mask == 0].all() and 0 < made.mask.mean() < 0.7
        missed.append((made.mask == 0)[np.asarray(before.mask) > 127].mean())
        panels.append(made.image)
    assert np.mean(missed) < 0.03, "the old garment is gone"
    assert sum(verdicts(panels, items)["colour"]) >= 3


def test_the_panel_is_what_generate_makes_of_the_same_references(
    tiny_flux2: Path, shop: dict[str, Path]
) -> None:
    session = Session(str(tiny_flux2), device="cpu", dtype="fp32")
    front, back, person = (Image.open(shop[name]).convert("RGB") for name in ("front", "back", "person"))
    person = person.resize((32, 48))
    (made,) = session.try_on(front, back, person, prompt="a dress", mask_free=True, feather=0, **HOW)
    (whole,) = session.generate(front, back, "a dress", references=[person], **HOW)
    assert made.settings["mask_free"] is True and made.settings["strength"] == 1.0
    changed = made.mask == 1
    assert changed.any() and np.array_equal(pixels(made.image)[changed], pixels(whole.image)[changed])
    assert np.array_equal(pixels(made.triptych)[:, 64:], pixels(whole.image))
    with pytest.raises(ConfigError, match="references"):
        session.try_on(front, back, person, prompt="a dress", mask_free=True, context="noisy", **HOW)


@pytest.mark.parametrize("limit", [False, True])
def test_what_changed_is_written_and_the_picture_is_made_again(
    tiny_flux2: Path,
    tmp_path: Path,
    shop: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    limit: bool,
) -> None:
    out, inputs = tmp_path / "out" / "t.png", {n: p for n, p in shop.items() if limit or n != "polygon"}
    words = ["tryon", "--mask-free", "--model", tiny_flux2, "--prompt", "the dress", "--out", out, "--json"]
    words += [word for name, path in inputs.items() for word in (f"--{name}", path)]
    assert main([*map(str, words)]) == 0
    capsys.readouterr()
    assert out.with_name("t-mask.png").is_file()
    drawn = json.loads(out.with_name("t-mask.json").read_text())
    assert drawn["polygons"] and read_settings(out)["mask_free"] is True
    before, after = pixels(shop["person"]), pixels(out)
    assert (before != after).any()
    if limit:
        assert np.array_equal(before[:, :10], after[:, :10]), "the polygon is a limit"
        corrected = {**drawn, "polygons": []}
        out.with_name("t-mask.json").write_text(json.dumps(corrected))
        assert main([*map(str, words), "--seed", "5"]) == 0
        capsys.readouterr()
        assert json.loads(out.with_name("t-mask.json").read_text()) == corrected, "a correction is kept"
        assert main([*map(str, words)]) == 0
        capsys.readouterr()
    photos = [word for path in inputs.values() for word in ("--photos", path)]
    assert main([*map(str, ["reproduce", out, "--model", tiny_flux2, *photos, "--json"])]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


@pytest.mark.parametrize(
    ("more", "words"), [(["--strength", "0.5"], "strength"), (["--rough", "paint"], "rough")]
)
def test_options_without_effect_are_refused(
    tiny_flux2: Path, shop: dict[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    given = [word for name, path in shop.items() if name != "polygon" for word in (f"--{name}", str(path))]
    assert main(["tryon", "--mask-free", "--model", str(tiny_flux2), "--prompt", "x", *given, *more]) == 1
    assert f"--{words} has no effect" in capsys.readouterr().err
