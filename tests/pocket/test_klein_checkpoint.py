"""The shipped klein pocket: ordinary diffusers classes, small, and it does what it was trained for."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from recipes.pocket.klein.evaluate import EDIT_KINDS, Evaluation
from recipes.pocket.klein.package import SETTINGS
from recipes.pocket.klein.sets import padded, sample_quad
from triptych.backbones.settings import model_settings, resolve_model
from triptych.pocket import checkpoint_path
from triptych.pocket.oracle import judge

FOLDER = checkpoint_path("pocket-klein")


@pytest.fixture(scope="module")
def pipeline() -> Flux2KleinPipeline:
    loaded = Flux2KleinPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_found_by_name_and_small() -> None:
    assert resolve_model("pocket-klein") == str(FOLDER)
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 21_000_000
    assert json.loads((FOLDER / "triptych.json").read_text()) == SETTINGS
    settings = model_settings("pocket-klein")
    assert (settings.stride, settings.max_sequence_length, settings.knows) == (8, 64, "rendered")
    assert (settings.context, settings.context_placement) == ("native", "reference")
    assert json.loads((FOLDER / "model_index.json").read_text())["is_distilled"] is False


def test_diffusers_copies_a_garment_from_a_reference(pipeline: Flux2KleinPipeline) -> None:
    """Panels are narrower than the 64 pixels that the pipeline asks of references, so they are widened."""
    rng, hits = random.Random(1), []
    for seed in range(6):
        quad = sample_quad(rng, held_out=True)
        garment, _ = quad.panels[0]
        pictures = quad.pictures()
        made = pipeline(
            [Image.fromarray(padded(pictures[1]))],
            f"a {'person wearing' if quad.panels[0][1].worn else quad.panels[0][1].view + ' view of'} "
            f"the {garment.type}, as in picture 1",
            width=48,
            height=72,
            num_inference_steps=8,
            guidance_scale=2.0,
            max_sequence_length=SETTINGS["max_sequence_length"],
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        hits.append(judge([np.asarray(made)], [garment.type])[0].colour == garment.colour)
    assert sum(hits) >= 4, "colour is one of eight by chance"


@pytest.mark.slow
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_edits_carry_over_what_the_docs_say(pipeline: Flux2KleinPipeline, kind: str) -> None:
    shares, _ = Evaluation.of(FOLDER, pipeline.transformer).edits(kind, 50)
    assert shares["colour"] > 0.7
