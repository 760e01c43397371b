"""FLUX.2-klein in use: training on references, embeddings, try-on without a LoRA, its LoRAs elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline
from PIL import Image

from triptych import flow
from triptych.backbones.context import Reference, Window
from triptych.backbones.settings import model_settings
from triptych.captioning.write import prompt_problems
from triptych.cli import main
from triptych.data.embeddings import EmbeddingFolder
from triptych.errors import ConfigError
from triptych.lora.file import read_about
from triptych.pictures.images import read_settings
from triptych.sampling.canvas import to_pixels
from triptych.sampling.clean_context import ContextCache, Group, read_window
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling, recommended
from triptych.sampling.references import references_of
from triptych.session import Session, load_models
from triptych.tasks.tryon import TRY_ON
from triptych.training.loss import losses_of
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.generate_config import GenerateConfig
from triptych.verbs.train import train
from triptych.vton.dress import try_on
from triptych.vton.request import Person

from .test_families import write_triptychs
from .test_flux2 import CLOSE, LENGTH, PANEL, PROMPT, normal, photo, pipeline, sampled, seeded
from .test_flux2 import models as models
from .test_resume import finish, rows_of, start
from .test_train import config, training_set, write_records


@pytest.mark.parametrize("context", ["clean", "native"])
@pytest.mark.parametrize("run_known", [False, True])
def test_training_shows_references_as_sampling_does(
    tiny_flux2: Path, tmp_path: Path, context: str, run_known: bool
) -> None:
    """The loss of a part of the worn panel is that of the velocity which `tryon` computes for it."""
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    options = config(tmp_path, tiny_flux2, context=context, context_placement="reference")
    data = training_set(tmp_path, options)
    opened = load_models(str(tiny_flux2), [], device="cpu", dtype="fp32")
    backbone, transformer = opened.backbone, opened.transformer
    batch = data.fixed(backbone, "id-1", 0.6)
    clean = torch.randn(batch.clean_BCHW.shape, generator=seeded(3)) * 3
    active = torch.zeros(3, 6, dtype=torch.bool)
    active[:2, 4:] = True
    batch = replace(batch, clean_BCHW=clean, active=active, run_known=run_known)
    shown = tuple(Reference(clean[..., start : start + 2], None, 1 + start // 2) for start in (0, 2))
    person = Reference(clean[..., 4:], ~active[:, 4:], 3)
    x = flow.interpolate(clean, batch.noise_BCHW, batch.t_B)[..., 4:]
    run = torch.ones(3, 2, dtype=torch.bool) if run_known else active[:, 4:]
    with torch.no_grad():
        window = Window(run, beside=(*shown, person))
        if context == "clean":
            window = read_window(backbone, transformer, run, [Group([*shown, person])], batch.empty, False)
        made = backbone.velocity(transformer, x, batch.t_B, batch.text, 1.0, window)
        loss = losses_of(options, backbone, transformer, batch).sample_B
        alone = losses_of(options, backbone, transformer, replace(batch, within=active)).sample_B
    error = made - (batch.noise_BCHW - clean)[..., 4:]
    assert loss.item() == pytest.approx(error[:, :, :2].square().mean().item(), rel=1e-5)
    assert loss.item() != pytest.approx(alone.item(), rel=1e-5), "without products it is something else"


def test_a_lora_remembers_where_its_panels_stood(tiny_flux2: Path, tmp_path: Path) -> None:
    cases = (
        ({"context": "clean"}, "canvas"),
        ({"context": "native"}, "reference"),
        ({"context": "clean", "context_placement": "reference"}, "reference"),
        ({}, "canvas"),
        ({"context": "noisy"}, None),
    )
    for number, (changes, placement) in enumerate(cases):
        work = tmp_path / str(number)
        write_records(work, ["id-1", "id-2"], tiny_flux2)
        train(config(work, tiny_flux2, max_train_steps=1, **changes)).finish()
        about = read_about(work / "lora")
        assert about.get("context_placement") == placement
        sampling = recommended(model_settings(str(tiny_flux2)), about)
        assert sampling.context == changes.get("context", "clean")
        assert sampling.context_placement == (placement or "canvas")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("tiny_flux", {"context": "native"}, "do not know reference pictures"),
        ("tiny_sd3", {"context": "clean", "context_placement": "reference"}, "do not know reference"),
        ("tiny_flux2", {"context": "native", "context_placement": "canvas"}, "exclude each other"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, changes: dict, message: str
) -> None:
    folder = request.getfixturevalue(model)
    write_records(tmp_path, ["id-1", "id-2"], folder)
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path, folder, **changes))


def test_embed_stores_the_pipelines_latents_panel_by_panel(tiny_flux2: Path, tmp_path: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 2)
    options = {"device": "cpu", "dtype": "fp32", "columns": 3}
    summary = embed(EmbedConfig(work=tmp_path, model=str(tiny_flux2), **options)).finish()
    data, pipe = EmbeddingFolder(Path(summary["folder"])), pipeline(tiny_flux2)
    for id in data.ids:
        canvas = Image.open(tmp_path / "triptychs" / f"{id}.png")
        for left in (0, 32, 64):
            pixels = to_pixels([canvas.crop((left, 0, left + 32, 48))])
            cells = data[id].latent_mean_CHW[None, :, :, left // 16 : left // 16 + 2]
            torch.testing.assert_close(cells, pipe._encode_vae_image(pixels, None), **CLOSE)
        caption = (tmp_path / "triptychs" / f"{id}.txt").read_text()
        words, _ = pipe.encode_prompt(caption, max_sequence_length=LENGTH)
        torch.testing.assert_close(data[id].text["prompt_embeds"], words[0], **CLOSE)


def test_without_a_lora_any_sentence_will_do(tiny_flux2: Path, tiny_flux: Path) -> None:
    for model, lora in ((tiny_flux2, None), (tiny_flux2, Path("lora")), (tiny_flux, None)):
        described = GenerateConfig(model=str(model), lora=lora).describes_panels
        assert described == (lora is not None or model is tiny_flux)
    assert prompt_problems(str(tiny_flux2), "a person in the dress of image 1", 0) == []
    assert "marker" in prompt_problems(str(tiny_flux2), "a person in the dress of image 1", 3)[0]
    assert "markdown" in prompt_problems(str(tiny_flux2), "# a person", 0)[0]


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Path]:
    for name, size in (("front", (60, 80)), ("back", (90, 70)), ("person", (120, 160))):
        photo(len(name), size).save(tmp_path / f"{name}.png")
    (tmp_path / "polygon.json").write_text(json.dumps({"polygons": [[[30, 40], [90, 40], [90, 120]]]}))
    return {path.stem: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize("more", [[], ["--context", "clean", "--active-tokens", "polygon"]])
def test_people_are_dressed_before_anything_is_trained(
    tiny_flux2: Path,
    tmp_path: Path,
    shop: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    words = ["tryon", "--model", tiny_flux2, "--prompt", "the dress", "--out", tmp_path / "t.png", *more]
    words += [f"--{name}" if not at else shop[name] for name in shop for at in (0, 1)]
    assert main([*map(str, words), "--json"]) == 0
    assert "marker" not in capsys.readouterr().err
    before, after = (np.asarray(Image.open(path)) for path in (shop["person"], tmp_path / "t.png"))
    assert (
        np.array_equal(before[:, :10], after[:, :10]) and (before[60:90, 55:65] != after[60:90, 55:65]).any()
    )
    recorded = read_settings(tmp_path / "t.png")
    assert recorded["context_placement"] == "reference" and recorded["context"] in ("native", "clean")
    photos = [word for name in shop for word in ("--photos", shop[name])]
    again = ["reproduce", tmp_path / "t.png", "--model", tiny_flux2, *photos, "--json"]
    assert main([*map(str, again)]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


def test_a_photos_shape_is_seen_and_the_worn_panel_is_made(tiny_flux2: Path, shop: dict[str, Path]) -> None:
    """`generate` in memory: wide and tall products, in the triptych fitted into their panels."""
    session = Session(str(tiny_flux2), device="cpu", dtype="fp32")
    front, back = (Image.open(shop[name]).convert("RGB") for name in ("front", "back"))
    (picture,) = session.generate(front, back, "a person in the dress", num_inference_steps=2)
    assert picture.image.size == (32, 48) and picture.triptych.size == (96, 48) and picture.made == ("worn",)
    squeezed = back.resize((32, 48))
    (other,) = session.generate(front, squeezed, "a person in the dress", num_inference_steps=2)
    assert np.any(np.asarray(other.image) != np.asarray(picture.image))


def test_a_lora_of_references_makes_our_picture_in_diffusers(tiny_flux2: Path, tmp_path: Path) -> None:
    """With a LoRA that also reads the references, Flux2KleinKVPipeline makes the same picture."""
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    options = {
        "context_placement": "reference",
        "context_lora": True,
        "learning_rate": 0.05,
        "ema_decay": 0.0,
    }
    train(config(tmp_path, tiny_flux2, **options, max_train_steps=4)).finish()
    lora = tmp_path / "lora"
    opened = load_models(str(tiny_flux2), [PROMPT], lora, device="cpu", dtype="fp32")
    sampling = opened.sampling(num_inference_steps=4, true_cfg_scale=1.0)
    assert (sampling.context, sampling.context_placement) == ("clean", "reference") and sampling.context_lora
    photos = {"front": photo(1, (64, 64)), "back": photo(2, (64, 64))}
    shown = references_of(opened, [photos], TRY_ON.layout(64, 64), sampling)
    ours = sampled(opened, PANEL, [3], sampling, None, shown)
    pipe = pipeline(tiny_flux2, Flux2KleinKVPipeline)
    options = {"prompt": PROMPT, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    options |= {"image": list(photos.values()), "num_inference_steps": 4, "output_type": "latent"}
    bare = normal(opened, pipe(generator=seeded(3), **options).images)
    pipe.load_lora_weights(lora)
    theirs = normal(opened, pipe(generator=seeded(3), **options).images)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (theirs - bare).abs().max() > 1e-2, "the LoRA does something"


def test_two_processes_learn_from_references_as_one(tiny_flux2: Path, tmp_path: Path) -> None:
    options = {"context_placement": "reference", "context_lora": True, "max_train_steps": 3, "batch_size": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    for work in (one, two):
        write_records(work, ["id-1", "id-2", "id-3"], tiny_flux2)
    finish(start(two, tiny_flux2, options, processes=2))
    train(config(one, tiny_flux2, **options, gradient_accumulation_steps=2)).finish()
    ones, twos = rows_of(one), rows_of(two)
    assert len(ones) == len(twos) == 3
    for row, other in zip(ones, twos, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("active", ["panel", "polygon"])
@pytest.mark.parametrize("reading", ["joint", "products", "each"])
def test_people_dressed_together_are_dressed_as_alone(models: OpenedModel, active: str, reading: str) -> None:
    """Two polygons of equal size in one batch; the products' reading serves both persons."""
    sampling = Sampling(2, None, context="clean", context_placement="reference", active_tokens=active)
    sampling = replace(sampling, context_reading=reading, context_guidance_scale=3.0)
    layout, people = TRY_ON.layout(32, 48), []
    for number in range(2):
        mask = np.zeros((48, 32), dtype=np.float32)
        mask[16 * number : 16 * number + 32] = 1
        people.append(Person(photo(10 + number, (32, 48)), mask, PROMPT, [number]))

    def dressed(persons: list[Person], cache: ContextCache) -> list[np.ndarray]:
        models.contexts = cache
        made = try_on(models, photo(1, (40, 48)), photo(2, (64, 32)), persons, layout, sampling, feather=0)
        return [np.asarray(results[0].image, int) for results in made]

    cache = ContextCache(1 << 30)
    together = dressed(people, cache)
    alone = [dressed([person], ContextCache(0))[0] for person in people]
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(together, alone, strict=True))
    assert np.abs(together[0][:8] - np.asarray(people[0].photo, int)[:8]).max() > 0
    dressed([replace(people[0], photo=photo(20, (32, 48)))], cache)
    # Alone, each person is read once for both passes of the guidance.
    readings = {"joint": 0, "products": 1, "each": 2 + 3}[reading]
    assert cache.hits == 2 + readings, "another person finds the products there: two latents, their readings"


def test_plain_background_of_a_reference_is_left_out(models: OpenedModel) -> None:
    product = Image.new("RGB", (160, 160), "white")
    product.paste(photo(1, (32, 32)), (64, 64))
    layout, sampling = TRY_ON.layout(160, 160), Sampling(2, None, context="native", drop_background=True)
    shown = references_of(models, [{"front": product, "back": photo(2, (160, 160))}], layout, sampling)
    assert [reference.frame for reference in shown] == [1, 2]
    front, back = (reference.known for reference in shown)
    assert front[4:6, 4:6].all() and not front[0].any() and not front[:, 0].any() and back.all()
    whole = references_of(
        models, [{"front": product, "back": product}], layout, replace(sampling, drop_background=False)
    )
    assert whole[0].known is None and torch.equal(whole[0].latents_BCHW, shown[0].latents_BCHW)
    made = [sampled(models, PANEL, [1], sampling, None, (reference,)) for reference in (shown[0], whole[0])]
    assert 1e-6 < (made[0] - made[1]).abs().max() < 1
