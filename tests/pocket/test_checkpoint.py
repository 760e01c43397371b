"""The shipped folder is an ordinary FluxPipeline, and it draws what it is told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.pocket.package import SETTINGS
from triptych.pocket import captioner_path, checkpoint_path
from triptych.pocket.oracle import judge
from triptych.pocket.prompts import panel_caption, sample_triptych, triptych_caption
from triptych.pocket.render import render
from triptych.pocket.world import VIEWS, sample_garment, sample_scene


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import FluxPipeline

    loaded = FluxPipeline.from_pretrained(checkpoint_path(), torch_dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_folder_is_small_and_has_no_pickle() -> None:
    files = [path for path in checkpoint_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jinja", ".txt"}


def test_recommended_settings_are_the_trained_ones() -> None:
    settings = json.loads((checkpoint_path() / "triptych.json").read_text())
    assert settings == SETTINGS
    assert (settings["panel_width"], settings["panel_height"], settings["max_sequence_length"]) == (
        48,
        72,
        56,
    )


def test_parts_are_the_stock_classes(pipeline: Any) -> None:
    names = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert names == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
        "transformer": "FluxTransformer2DModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }


def test_the_t5_tokenizer_reads_any_text(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer_2
    assert tokenizer.tokenize("one <Brand> item <IMAGE 1> red") == [
        "▁one",
        "▁<Brand>",
        "▁item",
        "▁<IMAGE",
        "▁1>",
        "▁red",
    ]
    assert tokenizer.unk_token_id not in tokenizer('Größe 38: J\'aime çà! (50% coton) "quoted"').input_ids
    assert len(tokenizer("日本語の長い文章").input_ids) < 6
    rng = random.Random(0)
    longest = max(len(tokenizer(triptych_caption(*sample_triptych(rng)).text).input_ids) for _ in range(200))
    assert longest <= 56


def test_stock_flux_pipeline_obeys_words(pipeline: Any) -> None:
    rng = random.Random(5)
    panels = [(sample_garment(rng), sample_scene(rng, VIEWS[index % 3])) for index in range(16)]
    pictures = pipeline(
        [panel_caption(*panel).text for panel in panels],
        negative_prompt=[""] * len(panels),
        width=48,
        height=72,
        num_inference_steps=12,
        guidance_scale=1.0,
        true_cfg_scale=3.0,
        max_sequence_length=24,
        generator=[torch.Generator().manual_seed(index) for index in range(16)],
    ).images
    seen = judge(pictures, [garment.type for garment, _ in panels])
    assert np.mean([one.person == scene.worn for one, (_, scene) in zip(seen, panels, strict=True)]) >= 0.9
    assert (
        np.mean([one.colour == garment.colour for one, (garment, _) in zip(seen, panels, strict=True)]) >= 0.8
    )


def test_bfloat16_draws_the_same_to_the_eye(pipeline: Any) -> None:
    from diffusers import FluxPipeline

    half = FluxPipeline.from_pretrained(checkpoint_path(), torch_dtype=torch.bfloat16, local_files_only=True)
    half.set_progress_bar_config(disable=True)
    prompt = triptych_caption(*sample_triptych(random.Random(3))).text
    options = {
        "width": 144,
        "height": 72,
        "num_inference_steps": 6,
        "guidance_scale": 1.0,
        "max_sequence_length": 56,
        "output_type": "np",
    }
    noise = torch.randn(1, 162, 32, generator=torch.Generator().manual_seed(0))
    one, other = (
        pipe(prompt, negative_prompt="", true_cfg_scale=3.0, latents=noise.to(pipe.dtype), **options).images[
            0
        ]
        for pipe in (pipeline, half)
    )
    assert np.abs(one - other).mean() < 0.02, "mean difference, of 1"


def test_the_autoencoder_returns_what_it_got(pipeline: Any) -> None:
    rng = random.Random(6)
    panels = [
        np.asarray(render(sample_garment(rng), sample_scene(rng, VIEWS[i % 3]), i).image) for i in range(9)
    ]
    images = torch.from_numpy(np.concatenate(panels, 1)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mode()
        back = pipeline.vae.decode(latents).sample.float()
    assert latents.shape == (1, 8, 18, 12 * 9)
    assert 10 * torch.log10(4 / ((back - images) ** 2).mean()) > 27


def test_the_judge_is_nearly_always_right() -> None:
    rng = random.Random(7)
    panels = [(sample_garment(rng), sample_scene(rng, VIEWS[index % 3])) for index in range(120)]
    pictures = [render(*panel, index).image for index, panel in enumerate(panels)]
    seen = judge(pictures, [garment.type for garment, _ in panels])
    for name in ("colour", "pattern", "colour2"):
        right = [
            getattr(one, name) == getattr(garment, name)
            for one, (garment, _) in zip(seen, panels, strict=True)
        ]
        assert np.mean(right) >= 0.96, name
    assert (
        np.mean([one.type == garment.type for one, (garment, _) in zip(judge(pictures), panels, strict=True)])
        >= 0.9
    )
    assert all(one.person == scene.worn for one, (_, scene) in zip(seen, panels, strict=True))


def test_the_judge_takes_larger_panels() -> None:
    rng = random.Random(8)
    garment, scene = sample_garment(rng), sample_scene(rng, "front")
    small, large = render(garment, scene, 1), render(garment, scene, 1, scale=4)
    assert judge([small.image])[0].colour == judge([large.image])[0].colour == garment.colour


def test_the_captioner_answers_both_questions() -> None:
    from recipes.pocket.captioner import measure_captioner

    scores = measure_captioner(captioner_path(), count=24, seed=5)
    assert scores["check"] >= 0.9
    assert scores["colour"] >= 0.9


def test_importing_the_package_costs_nothing() -> None:
    import subprocess
    import sys

    code = "import sys, triptych.pocket; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
