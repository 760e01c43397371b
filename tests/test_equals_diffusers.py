"""Our sampling is diffusers' sampling: the same pictures for the same seeds and noise levels, to 1e-5 in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxInpaintPipeline, FluxPipeline

from triptych import flow
from triptych.backbones.flux import pack, unpack
from triptych.inference import Models, Sampling, load_models, sample_latents, to_images
from triptych.panels import PanelLayout

LAYOUT = PanelLayout(32, 48)
PROMPT = "three pictures of one <Brand> item <IMAGE 1> a red dress <IMAGE 2> the dress <IMAGE 3> a person"
LENGTH = 24
PROMPTS = [PROMPT]


@pytest.fixture(scope="module")
def models(tiny_flux: Path) -> Models:
    return load_models(str(tiny_flux), PROMPTS, device="cpu", dtype="fp32")


def run(models: Models, sampling: Sampling, seeds: list[int], **known) -> torch.Tensor:
    count = len(seeds)
    text, empty = models.text([PROMPT] * count), models.text([""] * count)
    return sample_latents(models.backbone, models.transformer, LAYOUT, (16, 6, 12), text, empty, seeds, sampling, **known)


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(("true_cfg", "steps", "seeds"), [(1.0, 4, [3]), (2.5, 5, [7]), (1.0, 3, [1, 2, 3])])
def test_text_to_image_equals_flux_pipeline(models: Models, tiny_flux: Path, true_cfg: float, steps: int, seeds: list[int]) -> None:
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    theirs = pipe(
        [PROMPT] * len(seeds),
        negative_prompt=[""] * len(seeds),
        true_cfg_scale=true_cfg,
        guidance_scale=3.5,
        height=48,
        width=96,
        num_inference_steps=steps,
        max_sequence_length=LENGTH,
        generator=generators(seeds),
        output_type="latent",
    ).images
    ours = run(models, Sampling(steps, 3.5, true_cfg, time_shift="canvas"), seeds)
    assert (ours - unpack(theirs, 6, 12)).abs().max() <= 1e-5
    # The comparison could not fail if the model ignored its input: another seed must give something else.
    other = run(models, Sampling(steps, 3.5, true_cfg, time_shift="canvas"), [seed + 100 for seed in seeds])
    assert (ours - other).abs().max() > 0.1


def test_decoded_pictures_equal_flux_pipeline(models: Models, tiny_flux: Path) -> None:
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    theirs = pipe(
        PROMPT, height=48, width=96, guidance_scale=3.5, num_inference_steps=3, max_sequence_length=LENGTH, generator=generators([5])
    ).images[0]
    (ours,) = to_images(models.autoencoder.decode(run(models, Sampling(3, time_shift="canvas"), [5])))
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


@pytest.mark.parametrize(("strength", "steps", "true_cfg"), [(1.0, 4, 1.0), (0.9, 10, 1.0), (0.6, 7, 1.0), (0.85, 6, 3.0), (0.3, 10, 1.0)])
def test_clamped_sampling_equals_flux_inpaint(models: Models, tiny_flux: Path, strength: float, steps: int, true_cfg: float) -> None:
    generator = torch.Generator().manual_seed(11)
    known = torch.randn(1, 16, 6, 12, generator=generator)
    cells = torch.zeros(6, 12)
    cells[1:5, 9:12] = 1  # an odd edge: tokens that are only partly repainted
    mask_pixels = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]
    pipe = FluxInpaintPipeline.from_pretrained(tiny_flux)
    theirs = pipe(
        PROMPT,
        negative_prompt="",
        true_cfg_scale=true_cfg,
        image=known,
        mask_image=mask_pixels,
        masked_image_latents=known,
        height=48,
        width=96,
        strength=strength,
        guidance_scale=3.5,
        num_inference_steps=steps,
        max_sequence_length=LENGTH,
        generator=generators([21]),
        output_type="latent",
    ).images
    ours = run(models, Sampling(steps, 3.5, true_cfg, strength, "canvas"), [21], known_BCHW=known, repaint_mask=cells)
    assert (ours - unpack(theirs, 6, 12)).abs().max() <= 1e-5
    outside = cells[None, None].expand_as(ours) == 0
    assert torch.equal(ours[outside], known[outside]), "known latents come back clean"
    assert (ours - known)[~outside].abs().max() > 0.1, "the polygon was really repainted"


@pytest.mark.parametrize("steps", [1, 2, 8, 28, 50])
@pytest.mark.parametrize("mu", [0.3, 0.484, 1.15, 2.0])
def test_sigmas_equal_the_scheduler(steps: int, mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert np.allclose(flow.sigmas(steps, mu), scheduler.sigmas.numpy(), atol=1e-7)


def test_pack_is_diffusers_pack() -> None:
    latents = torch.randn(2, 16, 6, 12)
    theirs = FluxPipeline._pack_latents(latents, 2, 16, 6, 12)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(theirs, 6, 12), latents)


def test_panel_shift_leaves_more_steps_for_texture(models: Models) -> None:
    """At FLUX's real sizes: 28 steps of a 768×1024 triptych, below sigma 0.5 (the canvas shift leaves 3)."""
    levels = {tokens: flow.sigmas(28, models.backbone.shift_mu(tokens)) for tokens in (3 * 3072, 3072)}
    below = {tokens: sum(0 < sigma < 0.5 for sigma in values) for tokens, values in levels.items()}
    assert below[3 * 3072] == 3
    assert below[3072] == 7
