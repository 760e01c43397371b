"""Fewer passes: diffusers' FirstBlockCache under our sampling, which ends with the run, and guidance that
stops early.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.errors import ModelError
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON

LAYOUT = TRY_ON.layout(32, 48)


def run(models: OpenedModel, sampling: Sampling) -> tuple[torch.Tensor, int]:
    """Latents, and how often the last block's attention ran."""
    ran = []
    last = models.transformer.single_transformer_blocks[-1].attn
    handle = last.register_forward_hook(lambda *_: ran.append(1))
    known = torch.randn(1, 16, 6, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(6, 12)
    mask[1:5, 9:12] = 1
    text, empty = models.text(["p"]), models.text([""])
    canvas = Canvases(LAYOUT, (16, 6, 12), text, [3], empty, Known(known, mask))
    made = sample_latents(models.backbone, models.transformer, canvas, sampling)
    handle.remove()
    assert torch.equal(made[..., :9], known[..., :9])
    return made, len(ran)


@pytest.mark.parametrize(
    ("context", "guidance", "passes"), [("noisy", 1.0, 8), ("noisy", 2.0, 16), ("clean", 1.0, 8)]
)
def test_steps_are_saved_and_the_next_run_is_as_before(
    tiny_flux: Path, context: str, guidance: float, passes: int
) -> None:
    models = load_models(str(tiny_flux), ["p"], device="cpu", dtype="fp32")
    full, all_of_them = run(models, Sampling(8, true_cfg_scale=guidance, context=context))
    assert all_of_them == passes
    saved, fewer = run(models, Sampling(8, true_cfg_scale=guidance, context=context, step_cache=1.0))
    assert fewer < passes / 2
    assert (full - saved).abs().max() > 1e-6
    again, all_of_them = run(models, Sampling(8, true_cfg_scale=guidance, context=context))
    assert all_of_them == passes and torch.equal(full, again)


@pytest.mark.parametrize(
    "guidance", [{"true_cfg_scale": 2.0}, {"context": "clean", "context_guidance_scale": 2.0}]
)
def test_guidance_that_stops_early_saves_the_second_pass_of_the_later_steps(
    tiny_flux: Path, guidance: dict[str, Any]
) -> None:
    models = load_models(str(tiny_flux), ["p"], device="cpu", dtype="fp32")
    made = {
        stop: run(models, Sampling(8, guidance_scale=1.0, guidance_stop=stop, **guidance))
        for stop in (1.0, 0.5, 0.0)
    }
    assert [passes for _, passes in made.values()] == [16, 12, 8]
    off, _ = run(models, Sampling(8, guidance_scale=1.0, context=guidance.get("context", "noisy")))
    assert torch.equal(made[0.0][0], off)
    assert (made[0.5][0] - off).abs().max() > 1e-6 and (made[0.5][0] - made[1.0][0]).abs().max() > 1e-6


def test_a_family_without_it_says_so(tiny_sd3: Path) -> None:
    models = load_models(str(tiny_sd3), ["p"], device="cpu", dtype="fp32")
    text = models.text(["p"])
    with pytest.raises(ModelError, match="cannot be cached") as caught:
        sample_latents(
            models.backbone,
            models.transformer,
            Canvases(LAYOUT, (16, 6, 12), text, [0], text),
            Sampling(2, step_cache=0.1),
        )
    assert "--step-cache 0" in caught.value.hint
