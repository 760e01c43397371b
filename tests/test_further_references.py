"""References besides the panels' photos: seen as in diffusers' pipelines, recorded, refused elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
from PIL import Image

from triptych.cli import main
from triptych.errors import ConfigError
from triptych.pictures.images import read_settings
from triptych.sampling.opened import OpenedModel
from triptych.sampling.references import references_of
from triptych.session import Session
from triptych.tasks.tryon import TRY_ON

from .test_flux2 import CLOSE, LENGTH, PANEL, PROMPT, normal, photo, pipeline, sampled, seeded
from .test_flux2 import models as models
from .test_flux2_in_use import shop as shop


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), int)


@pytest.mark.parametrize(
    ("context", "kind"), [("native", Flux2KleinPipeline), ("clean", Flux2KleinKVPipeline)]
)
def test_references_follow_the_panels_as_in_the_pipelines(
    models: OpenedModel, tiny_flux2: Path, context: str, kind: type
) -> None:
    panels, further = ([photo(number, (64, 64)) for number in numbers] for numbers in ((1, 2), (3, 4)))
    sampling = models.sampling(context=context, context_placement="reference", true_cfg_scale=1.0)
    sampling = replace(sampling, num_inference_steps=4)
    given = dict(zip(("front", "back"), panels, strict=True))
    layout = TRY_ON.layout(64, 64)
    shown = references_of(models, [given], layout, sampling, further)
    assert [reference.frame for reference in shown] == [1, 2, 3, 4]
    ours = sampled(models, PANEL, [3], sampling, None, shown)
    options = {"prompt": PROMPT, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    options |= {"num_inference_steps": 4, "output_type": "latent"}
    options |= {"guidance_scale": 1.0} if kind is Flux2KleinPipeline else {}
    theirs = pipeline(tiny_flux2, kind)(image=[*panels, *further], generator=seeded(3), **options).images
    torch.testing.assert_close(ours, normal(models, theirs), **CLOSE)
    turned = references_of(models, [given], layout, sampling, further[::-1])
    assert (ours - sampled(models, PANEL, [3], sampling, None, turned)).abs().max() > 1e-4, (
        "their order counts"
    )


@pytest.mark.parametrize("products", [0, 2])
def test_a_session_shows_them(models: OpenedModel, tiny_flux2: Path, products: int) -> None:
    """Without product photos all panels of the canvas are made, from words and references."""
    panels, further = [photo(1, (32, 48)), photo(2, (32, 48))][:products], [photo(3, (32, 48))]
    session = Session(str(tiny_flux2), device="cpu", dtype="fp32")
    made, without = (
        session.generate(*panels, prompt=PROMPT, references=shown, num_inference_steps=2)[0].image
        for shown in (further, [])
    )
    assert made.size == ((32, 48) if products else (96, 48))
    assert not np.array_equal(pixels(made), pixels(without))


def test_what_is_kept_of_references_makes_the_same_picture(tiny_flux2: Path) -> None:
    panels, further = [photo(1, (48, 64)), photo(2, (48, 64))], [photo(3, (64, 64))]
    corners = [[(2, 2), (18, 2), (18, 18)]]

    def dressed(session: Session, references: list[Image.Image], seed: int) -> np.ndarray:
        how = {"context": "clean", "context_placement": "reference", "context_guidance_scale": 2.0}
        (made,) = session.try_on(
            *panels,
            photo(9, (60, 80)),
            polygons=corners,
            prompt=PROMPT,
            references=references,
            seeds=[seed],
            num_inference_steps=2,
            crop="none",
            **how,
        )
        return pixels(made.image)

    keeping = Session(str(tiny_flux2), device="cpu", dtype="fp32", context_cache_gib=1)
    forgetting = Session(str(tiny_flux2), device="cpu", dtype="fp32", context_cache_gib=0)
    for seed in (0, 1):
        assert np.array_equal(dressed(keeping, further, seed), dressed(forgetting, further, seed))
    found = keeping.contexts.hits, keeping.contexts.misses
    assert found == (3 + 2, 3 + 2), "three photos' latents; what is read of all, and of the person alone"
    without = dressed(keeping, [], 1)
    assert np.array_equal(without, dressed(forgetting, [], 1))
    assert not np.array_equal(without, dressed(keeping, further, 1))


def test_a_picture_with_references_is_made_again(
    tiny_flux2: Path, tmp_path: Path, shop: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        photo(30 + number, (64, 48)).save(tmp_path / f"more-{number}.png")
    more = [tmp_path / "more-0.png", tmp_path / "more-1.png"]
    usual = ["--model", tiny_flux2, "--prompt", "the dress", "--num-inference-steps", 2, "--json"]

    def run(*words: object) -> dict:
        assert main([*map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    given = [word for path in more for word in ("--reference", path)]
    made = Path(
        run("generate", "--front", shop["front"], *given, "--out", tmp_path / "g", *usual)["images"][0]
    )
    names = ["id", "front", "person", "polygon", "reference"]
    row = ["a", "front.png", "person.png", "polygon.json", " more-0.png|more-1.png "]
    (tmp_path / "jobs.csv").write_text(f"{','.join(names)}\n{','.join(row)}\n")
    assert run("tryon", "--batch", tmp_path / "jobs.csv", "--out", tmp_path / "t", *usual)["made"] == 1
    dressed = tmp_path / "t" / "a.png"
    hashes = [read_settings(path)["sha256"] for path in (made, dressed)]
    assert hashes[0]["reference 1"] == hashes[1]["reference 1"] != hashes[1]["reference 2"]
    photos = [word for path in (*shop.values(), *more) for word in ("--photos", path)]
    for picture in (made, dressed):
        words = ["reproduce", picture, "--model", tiny_flux2, "--work", tmp_path / "w", "--json"]
        assert run(*words, *photos)["identical"] is True
    assert main([*map(str, [*words, *photos[:-2]])]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "The photo of the reference 2 this picture was made from" in told


def test_references_are_refused_where_they_are_not_seen(
    tiny_flux: Path, tiny_flux2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(3, (64, 64)).save(tmp_path / "more.png")
    for model, more, reason in (
        (tiny_flux, [], "does not know reference pictures"),
        (tiny_flux2, ["--context", "noisy"], "in noisy context all photos are panels"),
    ):
        words = ["generate", "--model", model, "--prompt", "x", "--reference", tmp_path / "more.png"]
        assert main([*map(str, [*words, *more, "--work", tmp_path])]) == 1
        assert reason in " ".join(capsys.readouterr().err.split())
    session = Session(str(tiny_flux), device="cpu", dtype="fp32")
    with pytest.raises(ConfigError, match="does not know reference pictures"):
        session.generate(prompt="x", references=[photo(3, (64, 64))])
