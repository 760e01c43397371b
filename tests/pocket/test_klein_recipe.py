"""The recipe of the klein pocket, every stage for a few steps: what its data show, and that its parts fit
diffusers' pipeline.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file

from recipes.pocket.klein import transformer
from recipes.pocket.klein.bank import KleinBank, make_bank
from recipes.pocket.klein.captions import edit_caption
from recipes.pocket.klein.codec import KleinCodec, converted_autoencoder
from recipes.pocket.klein.evaluate import Evaluation, judged
from recipes.pocket.klein.model import new_transformer, sample, velocity
from recipes.pocket.klein.package import package_pipeline
from recipes.pocket.klein.sets import EDIT_SHARES, LAYOUTS, draw_edit, sample_look, sample_quad
from recipes.pocket.klein.text import LENGTH, WIDTH, TextEncoder, make_tokenizer, train_text
from triptych.backbones.flux2.autoencoder import patchify
from triptych.pocket import checkpoint_path
from triptych.pocket.render import render
from triptych.pocket.world import TYPES

COUNTS = {"boards": 12, "quad": 48, "look": 36}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder up to the bank: a text encoder of one step, few pictures."""
    folder = tmp_path_factory.mktemp("build")
    make_tokenizer(folder)
    train_text(folder, 1)
    make_bank(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def bank(build: Path) -> KleinBank:
    return KleinBank(build)


def test_no_example_shows_one_garment_in_two_views_or_anything_held_out(bank: KleinBank) -> None:
    rng = random.Random(0)
    sets = bank.sets | {
        "quad": bank.sets["quad"] + [sample_quad(rng) for _ in range(300)],
        "look": bank.sets["look"] + [sample_look(rng) for _ in range(300)],
    }
    for one in (*sets["quad"], *sets["look"]):
        for garment, scene in one.panels:
            assert not garment.held_out and not scene.held_out
            ways = {(s.view, s.facing) for g, s in one.panels if g == garment}
            assert len(ways) == 1, "a set shows a garment from one side only"
    for layout in LAYOUTS:
        for _ in range(300):
            edit = draw_edit(layout, sets, rng)
            places = [edit.target, *edit.references]
            assert len(set(places)) == len(LAYOUTS[layout]) + 1
            panels = [sets[kind][number].panels[index] for kind, number, index in places]
            for garment, _ in panels:
                assert len({scene.view for other, scene in panels if other == garment}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edits_point_at_the_right_references(bank: KleinBank, layout: str) -> None:
    rng = random.Random(1)
    for kind in EDIT_SHARES[layout]:
        for _ in range(20):
            edit = draw_edit(layout, bank.sets, rng, kind)
            (garment, scene), *shown = (
                bank.sets[part][number].panels[index]
                for part, number, index in (edit.target, *edit.references)
            )
            if kind in ("scene", "dress"):
                assert shown[edit.garment_from[0] - 1][0] == garment
            if kind in ("dress", "look"):
                assert shown[edit.person_from - 1][1] == scene
                assert shown[edit.person_from - 1][0] != garment
                assert LAYOUTS[layout][edit.person_from - 1] != "cropped"
            if kind == "matching":
                assert {one.look for one, _ in shown} == {garment.look}
                assert garment.type not in [one.type for one, _ in shown]
            caption = edit_caption(kind, (garment, scene), shown, edit.garment_from, edit.person_from, rng)
            if kind == "dress":
                assert str(edit.garment_from[0]) in caption.text and str(edit.person_from) in caption.text
                assert garment.colour not in caption.text.split(), (
                    "the garment is known from the picture only"
                )


def test_a_quad_is_two_garments_on_the_same_two_people() -> None:
    rng = random.Random(3)
    quads = [one for one in (sample_quad(rng) for _ in range(60)) if one.panels[0][1].worn]
    one = next(q for q in quads if q.panels[0][0].type == q.panels[2][0].type)
    (x, scene), (y, same) = one.panels[0], one.panels[2]
    assert scene == same and x != y and one.seeds[0] == one.seeds[2]
    pictures = one.pictures()
    mask = np.asarray(render(x, scene, one.seeds[0]).mask)
    assert (pictures[0] != pictures[2]).any()
    assert np.array_equal(pictures[0][mask == 0], pictures[2][mask == 0])


def test_the_autoencoder_is_the_shipped_one_and_its_channels_are_normalised(
    build: Path, bank: KleinBank
) -> None:
    first = AutoencoderKL.from_pretrained(checkpoint_path() / "vae", dtype=torch.float32)
    model, images = converted_autoencoder(), torch.rand(2, 3, 72, 48) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images).latent_dist.mode()
        assert torch.equal(latents, first.encode(images).latent_dist.mode())
        assert torch.equal(model.decode(latents).sample, first.decode(latents).sample)
    whole = torch.cat([bank.latents[part]["whole"].float().transpose(0, 1).flatten(1) for part in COUNTS], 1)
    assert whole.mean(1).abs().max() < 0.02 and (whole.std(1) - 1).abs().max() < 0.02
    quad = bank.sets["quad"][0]
    codec = KleinCodec.trained(build)
    alone = codec.encode(np.stack(quad.pictures()[:1]))
    assert (alone[0] - bank.latent(("quad", 0, 0)).float()).abs().max() < 0.15  # bfloat16, half precision
    assert bank.latent(("quad", 0, 0), "cropped").shape == (32, 6, 6)
    assert bank.latent(("quad", 0, 0), "padded").shape == (32, 9, 8)


def test_training_learns_and_a_stopped_run_goes_on_to_the_same_weights(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "SIZES", dict.fromkeys(transformer.SIZES, 2))
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
        for path in build.iterdir():
            (folder / path.name).symlink_to(path)
    transformer.train_transformer(folders[0], 5, compile_model=False)
    losses, flow_loss = [], transformer.flow_loss

    def stop_later(*args: object) -> torch.Tensor:
        losses.append(flow_loss(*args))  # type: ignore[arg-type]
        if len(losses) == 3:
            (folders[1] / "stop-now").touch()
        return losses[-1]

    monkeypatch.setattr(transformer, "flow_loss", stop_later)
    transformer.train_transformer(folders[1], 5, compile_model=False)
    assert len(losses) == 3
    (folders[1] / "stop-now").unlink()
    transformer.train_transformer(folders[1], 5, compile_model=False)
    one, other = (load_file(folder / transformer.STATE) for folder in folders)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert one["model.proj_out.weight"].abs().sum() > 0, "the zeros of the start are gone"


def test_a_second_leg_starts_from_a_pipeline(build: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    for path in build.iterdir():
        (folder / path.name).symlink_to(path)
    shipped = checkpoint_path("pocket-klein")
    (folder / "stop-now").touch()  # before the first step
    transformer.train_transformer(folder, 5, compile_model=False, start_from=shipped)
    started = load_file(folder / transformer.STATE)
    weights = load_file(shipped / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights and all(torch.equal(started[f"model.{key}"], weights[key].float()) for key in weights)


@pytest.mark.parametrize("kind", transformer.SIZES)
def test_every_kind_of_batch_has_one_shape(bank: KleinBank, kind: str) -> None:
    prompts, latents, references = transformer.sample_batch(bank, kind, random.Random(2))
    assert len(prompts) == len(latents) == transformer.SIZES[kind]
    assert latents.shape[1:] == (32, 9, 18 if kind == "boards" else 6)
    sizes = {"whole": (9, 6), "cropped": (6, 6), "padded": (9, 8)}
    assert [x.shape[2:] for x in references] == [sizes[shape] for shape in LAYOUTS.get(kind, ())]


def test_the_package_runs_in_diffusers_and_gives_our_latents(build: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    for path in build.iterdir():
        (folder / path.name).symlink_to(path)
    torch.manual_seed(0)
    model = new_transformer()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)  # the zeros of the start would hide the references
    run = transformer.Training(folder / transformer.STATE, model, ["boards"], 1e-3)
    run.save()
    package_pipeline(folder, tmp_path / "made")
    pipeline = Flux2KleinPipeline.from_pretrained(tmp_path / "made", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    encoder = TextEncoder.trained(tmp_path / "made")
    prompt = "put the dress of picture 2 on the person of picture 1"
    states = encoder([prompt])
    theirs, _ = pipeline.encode_prompt(prompt, max_sequence_length=LENGTH)
    assert states.shape == (1, LENGTH, WIDTH)
    assert torch.equal(states, theirs)
    rng = random.Random(0)
    shown = [np.pad(x, ((0, 0), (8, 8), (0, 0)), mode="edge") for x in sample_quad(rng).pictures()[:2]]
    codec = KleinCodec(pipeline.vae)
    with torch.autocast("cpu", enabled=False):
        references = [codec.encode(x[None]) for x in shown]
    options = {"width": 48, "height": 72, "max_sequence_length": LENGTH, "num_inference_steps": 2}
    picture = pipeline(
        [Image.fromarray(x) for x in shown],
        prompt,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    ).images
    ours = sample(pipeline.transformer, encoder, [prompt], references, steps=2, cfg=3.0)
    theirs = (patchify(picture) - codec.mean) / codec.std
    assert (ours - theirs).abs().max() < 0.1 and float((ours - theirs).abs().mean()) < 0.02  # bfloat16
    with torch.no_grad():
        with_them = velocity(model, ours, torch.tensor([0.5]), states, references)
        without = velocity(model, ours, torch.tensor([0.5]), states)
    assert with_them.shape == without.shape and not torch.equal(with_them, without)


def test_measuring_sees_the_truth_and_misses_a_wrong_picture(build: Path) -> None:
    rng = random.Random(6)
    panels = [sample_look(rng).panels[0] for _ in range(40)]
    truth = [np.asarray(render(*panel, index).image) for index, panel in enumerate(panels)]
    right, wrong = judged(panels, truth, "scene"), judged(panels[1:] + panels[:1], truth, "scene")
    assert min(right["colour"], right["pattern"], right["type"]) > 0.85
    assert wrong["colour"] < 0.5 and wrong["type"] < 0.5
    _, rows = Evaluation.of(build, new_transformer()).edits("dress", 2, steps=1, cfg=1.0)
    assert rows.shape == (8, 72, 48, 3) and len(TYPES) == 6
