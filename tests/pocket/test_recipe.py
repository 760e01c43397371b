"""The recipe of the embedded model, every stage for a few steps: it can be stopped, it never shows what a
LoRA is to add.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recipes.pocket import guidance, prints, transformer
from recipes.pocket.bank import Bank, make_bank
from recipes.pocket.evaluate import Evaluation, draw_single, obeyed
from recipes.pocket.flux import velocity
from recipes.pocket.package import package_pipeline
from recipes.pocket.parser import augmented, draw, train_parser
from recipes.pocket.state import train_steps
from recipes.pocket.text import make_tokenizers, train_text
from triptych.pocket import checkpoint_path
from triptych.pocket.parts import PART
from triptych.pocket.prompts import panel_caption
from triptych.pocket.render import render
from triptych.pocket.world import NONE, VIEWS, sample_garment, sample_scene
from triptych.vision.parsing import open_parser

STATE = "transformer.state.safetensors"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder up to the bank: the shipped autoencoder, text encoders of two steps, few pictures."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(checkpoint_path() / "vae", folder / "vae")
    make_tokenizers(folder)
    train_text(folder, 2)
    make_bank(folder, singles=48, boards=60)
    return folder


def parts_of(build: Path, folder: Path) -> Path:
    """A build folder that begins where `build` stands."""
    folder.mkdir()
    for path in build.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_the_bank_never_shows_one_item_from_all_sides(build: Path) -> None:
    bank = Bank(build)
    assert {len(entries) for entries in bank.entries.values()} == {48, 60}
    assert bank.latents["boards"].shape == (60, 8, 18, 36)
    for kind, panels in bank.entries["boards"]:
        assert kind in ("independent", "matching", "copy")
        for garment, scene in panels:
            assert not garment.held_out and not scene.held_out
            views = [other.view for worn, other in panels if worn == garment]
            assert kind == "independent" or len(set(views)) == 1, (
                "the same garment is only ever shown twice in the same view"
            )
            assert scene.view in VIEWS


def test_a_stopped_training_goes_on_to_the_same_weights(build: Path, tmp_path: Path) -> None:
    whole, stopped = parts_of(build, tmp_path / "whole"), parts_of(build, tmp_path / "stopped")
    transformer.train_transformer(whole, steps=2, compile_model=False)  # two steps, and one of decay

    losses = 0

    def stop_later(*args: object) -> torch.Tensor:
        nonlocal losses
        losses += 1
        if losses == 2:
            (stopped / "stop-now").touch()
        return flow_loss(*args)  # type: ignore[arg-type]

    flow_loss = transformer.flow_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "flow_loss", stop_later)
        transformer.train_transformer(stopped, steps=2, compile_model=False)
    assert not (stopped / "transformer.done").exists()
    (stopped / "stop-now").unlink()
    transformer.train_transformer(stopped, steps=2, compile_model=False)
    assert (stopped / "transformer.done").read_text() == (whole / "transformer.done").read_text()
    one, other = load_file(whole / STATE), load_file(stopped / STATE)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_guidance_is_distilled_and_packaged(build: Path, tmp_path: Path) -> None:
    """A few steps bring one pass closer to the guided two; at w = 1 nothing moves; the folder opens in
    diffusers.
    """
    from diffusers import FluxPipeline

    folder = parts_of(build, tmp_path / "build")
    transformer.train_transformer(folder, steps=2, compile_model=False, start_from=checkpoint_path())
    before_prints = transformer.averaged_transformer(folder)
    prints.train_prints(folder, 2, compile_model=False)
    teacher = prints.printed_transformer(folder)
    assert any(
        not torch.equal(a, b) for a, b in zip(teacher.parameters(), before_prints.parameters(), strict=True)
    )
    bank = Bank(folder)
    assert all(
        bank.entries["singles"][number][1][0][0].print != NONE for number in prints.printed_singles(bank)
    )
    encoders = transformer.TextEncoders.trained(folder)
    prompts, latents = transformer.sample_batch(bank, "singles", random.Random(0))

    def loss(student: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(
                guidance.guidance_loss(
                    student, teacher, encoders, prompts, latents, torch.Generator().manual_seed(1)
                )
            )

    before = loss(teacher)
    guidance.train_guidance(folder, 4)
    student = guidance.guided_transformer(folder)
    assert loss(student) < before
    text = (torch.randn(48, 24, 128), torch.randn(48, 128))
    with torch.no_grad():
        plain, guided = (
            [velocity(model, latents, torch.full((48,), 0.5), text, torch.full((48,), w)) for w in (1.0, 3.0)]
            for model in (teacher, student)
        )
    assert (plain[0] - guided[0]).abs().max() < 1e-4, "at guidance 1 the model is what it was"
    assert (plain[1] - guided[1]).abs().max() > 1e-3
    package_pipeline(folder, tmp_path / "made")
    pipeline = FluxPipeline.from_pretrained(
        tmp_path / "made", torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    options = {
        "width": 48,
        "height": 72,
        "num_inference_steps": 2,
        "max_sequence_length": 24,
        "output_type": "np",
    }
    pictures = [
        pipeline(
            "a red dress", guidance_scale=w, generator=torch.Generator().manual_seed(0), **options
        ).images
        for w in (1.0, 3.0)
    ]
    assert np.isfinite(pictures).all() and not np.array_equal(*pictures)


def test_prints_are_learned_in_two_parts() -> None:
    rates = [prints.part_of(step, prints.STEPS)[1] for step in range(prints.STEPS)]
    assert max(rates[:550]) == pytest.approx(7e-4, rel=0.05) and max(rates[550:]) == pytest.approx(
        5e-4, rel=0.1
    )
    assert rates[549] < 3e-5 and rates[769] < 3e-5 and rates[550] < 2e-5


def test_obedience_counts_what_was_said_and_nothing_else() -> None:
    rng = random.Random(4)
    panels = [draw_single(rng, VIEWS[index % 3]) for index in range(60)]
    said = [panel_caption(*panel, rng, details=1.0, varied=True).said[0] for panel in panels]
    pictures = [render(*panel, index).image for index, panel in enumerate(panels)]
    scores = obeyed(panels, said, pictures)
    assert {"person", "type", "colour", "pattern", "print", "facing", "hair", "background"} <= scores.keys()
    assert min(scores.values()) >= 0.8
    wrong = obeyed(panels[1:] + panels[:1], said[1:] + said[:1], pictures)
    assert wrong["colour"] < 0.5 and wrong["background"] < 0.6
    assert any(garment.print != NONE for garment, _ in panels)


def test_sheets_are_drawn(build: Path) -> None:
    pictures = Evaluation(build, transformer.new_transformer()).draw(["a dress"] * 2, 3, steps=1)
    assert pictures.shape == (2, 72, 144, 3)


def test_a_stage_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    def train(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        module, calls = torch.nn.Linear(4, 3), []

        def loss_of(rng: random.Random, noise: torch.Generator) -> tuple[str, torch.Tensor]:
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return "a", (module(torch.randn(2, 4, generator=noise)) * rng.random()).square().mean()

        return train_steps(
            folder,
            "s",
            module,
            9,
            3,
            lambda n: 0.1 / (n + 1),
            loss_of,
            weight_decay=0.1,
            ema=lambda n: 0.5,
            save_every=2,
        )

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop=6)
    again = train(tmp_path / "stopped")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_parser_is_an_ordinary_folder_after_a_few_steps(tmp_path: Path) -> None:
    train_parser(tmp_path, steps=2, pool=4, held_out=8)
    parts = open_parser(str(tmp_path / "parser")).parts(render_person())
    assert parts.shape == (72, 48)
    assert sum(path.stat().st_size for path in (tmp_path / "parser").iterdir()) < 3 << 20


def render_person() -> Image.Image:
    rng = random.Random(4)
    return render(sample_garment(rng), sample_scene(rng, "worn"), 4).image


def test_another_look_moves_picture_and_labels_together() -> None:
    rng = random.Random(8)
    for _ in range(40):
        picture, labels = draw(rng)
        values, parts = augmented(picture, labels, rng)
        background = np.median(values[parts == PART["background"]], axis=0)
        away = np.abs(values - background).max(2)
        assert np.median(away[parts == PART["background"]]) < 12
        assert np.median(away[parts != PART["background"]]) > 25
