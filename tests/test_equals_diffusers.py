"""Our sampling is diffusers' sampling: the same pictures for the same seeds and noise levels, to 1e-5 in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)

from triptych import flow
from triptych.backbones.contract import Backbone
from triptych.backbones.flux.model import pack, unpack
from triptych.backbones.flux2.autoencoder import patchify
from triptych.backbones.registry import load_backbone
from triptych.errors import ConfigError, ModelError
from triptych.sampling.canvas import to_images
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.generate import GenerateConfig, generate

from .conftest import latent_shape

LAYOUT = TRY_ON.layout(32, 48)
PROMPT = "three pictures of one <Brand> item <IMAGE 1> a red dress <IMAGE 2> the dress <IMAGE 3> a person"
LENGTH = 24
PROMPTS = [PROMPT]


@dataclass(frozen=True)
class Family:
    """diffusers' pipelines of a family (None: it inpaints by another method), what they call classifier-free
    guidance, how their latents become ours, and whether they take a negative prompt (else it is empty).
    """

    text_to_image: Any
    inpaint: Any
    options: Callable[[float], dict[str, float]]
    latents: Callable[[OpenedModel, torch.Tensor], torch.Tensor]
    takes_negative_prompt: bool = True

    def silent(self, prompts: int) -> dict[str, list[str]]:
        return {"negative_prompt": [""] * prompts} if self.takes_negative_prompt else {}


FAMILIES = {
    "flux": Family(
        FluxPipeline,
        FluxInpaintPipeline,
        lambda cfg: {"true_cfg_scale": cfg, "guidance_scale": 3.5},
        lambda models, tokens: unpack(tokens, 6, 12),
    ),
    "sd3": Family(
        StableDiffusion3Pipeline,
        StableDiffusion3InpaintPipeline,
        lambda cfg: {"guidance_scale": cfg},
        lambda models, latents: latents,
    ),
    "flux2": Family(
        Flux2KleinPipeline,
        None,  # known tokens put back: tests/test_flux2.py
        lambda cfg: {"guidance_scale": cfg},
        lambda models, cells: (patchify(cells) - models.autoencoder.mean) / models.autoencoder.std,
        takes_negative_prompt=False,
    ),
}


@pytest.fixture(scope="module")
def models(tiny: Path) -> OpenedModel:
    return load_models(str(tiny), PROMPTS, device="cpu", dtype="fp32")


@pytest.fixture
def family(models: OpenedModel) -> Family:
    return FAMILIES[models.backbone.name]


def run(
    models: OpenedModel, sampling: Sampling, seeds: list[int], known: Known | None = None
) -> torch.Tensor:
    count = len(seeds)
    text, empty = models.text([PROMPT] * count), models.text([""] * count)
    canvases = Canvases(LAYOUT, latent_shape(models.backbone), text, seeds, empty, known)
    return sample_latents(models.backbone, models.transformer, canvases, sampling)


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("true_cfg", "steps", "seeds"), [(1.0, 4, [3]), (2.5, 5, [7]), (1.0, 3, [1, 2, 3]), (4.0, 1, [5])]
)
def test_text_to_image_equals_diffusers(
    models: OpenedModel, family: Family, tiny: Path, true_cfg: float, steps: int, seeds: list[int]
) -> None:
    pipe = family.text_to_image.from_pretrained(tiny)
    theirs = pipe(
        prompt=[PROMPT] * len(seeds),
        height=48,
        width=96,
        num_inference_steps=steps,
        max_sequence_length=LENGTH,
        generator=generators(seeds),
        output_type="latent",
        **family.options(true_cfg),
        **family.silent(len(seeds)),
    ).images
    ours = run(models, Sampling(steps, 3.5, true_cfg, time_shift="canvas"), seeds)
    assert (ours - family.latents(models, theirs)).abs().max() <= 1e-5
    # The comparison could not fail if the model ignored its input: another seed must give something else.
    other = run(models, Sampling(steps, 3.5, true_cfg, time_shift="canvas"), [seed + 100 for seed in seeds])
    assert (ours - other).abs().max() > 0.1
    empty = models.text([""] * len(seeds))
    silent = sample_latents(
        models.backbone,
        models.transformer,
        Canvases(LAYOUT, latent_shape(models.backbone), empty, seeds, empty),
        Sampling(steps, 3.5, time_shift="canvas"),
    )
    assert (ours - silent).abs().max() > 1e-4, "the prompt is heard"


def test_decoded_pictures_equal_diffusers(models: OpenedModel, family: Family, tiny: Path) -> None:
    pipe = family.text_to_image.from_pretrained(tiny)
    options = {"num_inference_steps": 3, "max_sequence_length": LENGTH, **family.options(1.0)}
    theirs = pipe(prompt=PROMPT, height=48, width=96, generator=generators([5]), **options).images[0]
    (ours,) = to_images(models.autoencoder.decode(run(models, Sampling(3, time_shift="canvas"), [5])))
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


@pytest.mark.parametrize("tiny", ["flux", "sd3"], indirect=True)
@pytest.mark.parametrize(
    ("strength", "steps", "true_cfg"),
    [(1.0, 4, 1.0), (0.9, 10, 1.0), (0.6, 7, 1.0), (0.85, 6, 3.0), (0.3, 10, 1.0)],
)
def test_clamped_sampling_equals_diffusers_inpainting(
    models: OpenedModel, family: Family, tiny: Path, strength: float, steps: int, true_cfg: float
) -> None:
    generator = torch.Generator().manual_seed(11)
    known = torch.randn(1, 16, 6, 12, generator=generator)
    cells = torch.zeros(6, 12)
    cells[1:5, 9:12] = 1  # an odd edge: tokens that are only partly repainted
    mask_pixels = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]
    pipe = family.inpaint.from_pretrained(tiny)
    theirs = pipe(
        PROMPT,
        negative_prompt="",
        image=known,
        mask_image=mask_pixels,
        masked_image_latents=known,
        height=48,
        width=96,
        strength=strength,
        num_inference_steps=steps,
        max_sequence_length=LENGTH,
        generator=generators([21]),
        output_type="latent",
        **family.options(true_cfg),
    ).images
    ours = run(models, Sampling(steps, 3.5, true_cfg, strength, "canvas"), [21], Known(known, cells))
    assert (ours - family.latents(models, theirs)).abs().max() <= 1e-5
    outside = cells[None, None].expand_as(ours) == 0
    assert torch.equal(ours[outside], known[outside]), "known latents come back clean"
    assert (ours - known)[~outside].abs().max() > 0.1, "the polygon was really repainted"


@pytest.mark.parametrize("steps", [1, 2, 8, 28, 50])
@pytest.mark.parametrize("mu", [0.3, 0.484, 1.15, 2.0])
def test_sigmas_equal_the_scheduler(steps: int, mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert np.allclose(flow.sigmas(steps, mu, 1 / steps), scheduler.sigmas.numpy(), atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 28, 50])
def test_sigmas_of_a_fixed_shift_equal_the_scheduler(tiny_sd3: Path, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    backbone = load_backbone(str(tiny_sd3), "cpu", "fp32")
    for tokens in (12, 9216):
        assert backbone.mu(tokens, 28) == pytest.approx(math.log(3.0))
        assert np.allclose(backbone.sigmas(steps, tokens), scheduler.sigmas.numpy(), atol=1e-6)


@pytest.fixture
def flux(tiny_flux: Path) -> Backbone:
    return load_backbone(str(tiny_flux), "cpu", "fp32")


def test_pack_is_diffusers_pack() -> None:
    latents = torch.randn(2, 16, 6, 12)
    theirs = FluxPipeline._pack_latents(latents, 2, 16, 6, 12)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(theirs, 6, 12), latents)


def test_panel_shift_leaves_more_steps_for_texture(flux: Backbone) -> None:
    """At FLUX's real sizes: 28 steps of a 768×1024 triptych, below sigma 0.5 (the canvas shift leaves 3)."""
    levels = {tokens: flux.sigmas(28, tokens) for tokens in (3 * 3072, 3072)}
    below = {tokens: sum(0 < sigma < 0.5 for sigma in values) for tokens, values in levels.items()}
    assert below[3 * 3072] == 3
    assert below[3072] == 7


def test_what_a_family_lacks_is_said_in_a_sentence(tiny_sd3: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        model=str(tiny_sd3), prompt=PROMPT, device="cpu", dtype="fp32", out=tmp_path, num_inference_steps=1
    )
    with pytest.raises(ConfigError, match="no distilled guidance") as caught:
        generate(config.model_copy(update={"guidance_scale": 3.5}))
    assert "--true-cfg-scale" in caught.value.hint
    with pytest.raises(ModelError, match="18 × 3 tokens") as caught:
        generate(config.model_copy(update={"panel_width": 96})).finish()
    assert "256 pixels" in caught.value.hint
