"""Rectified flow by hand: every formula against numbers worked out on paper."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from triptych import flow

DATA = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
NOISE = torch.tensor([3.0, 6.0]).view(1, 2, 1, 1)


def test_a_training_pair_is_a_straight_line_from_data_to_noise() -> None:
    quarter = flow.interpolate(DATA, NOISE, torch.tensor([0.25]))
    assert quarter.flatten().tolist() == [1.5, 0.0]
    assert flow.velocity_target(DATA, NOISE).flatten().tolist() == [2.0, 8.0]
    both = flow.interpolate(DATA.expand(2, -1, -1, -1), NOISE.expand(2, -1, -1, -1), torch.tensor([0.0, 1.0]))
    assert torch.equal(both[0], DATA[0]) and torch.equal(both[1], NOISE[0]), "each sample at its own time"


def test_noise_follows_from_the_key_alone_on_every_machine() -> None:
    """LoRAs and pictures are made again from these seeds: the rule is fixed for good."""
    drawn = torch.randn(3, generator=flow.generator_for(7, "step", "item-1"))
    seed = int.from_bytes(hashlib.sha256(b"7\x00step\x00item-1").digest()[:8], "big") >> 1
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator("cpu").manual_seed(seed)))
    assert flow.generator_for(7).device.type == "cpu"


def test_noise_levels_of_training_are_logit_normal_and_shifted() -> None:
    normal = torch.randn((), generator=flow.generator_for(0))
    assert flow.logit_normal_time(flow.generator_for(0), 0.0) == torch.sigmoid(normal)
    shifted = flow.logit_normal_time(flow.generator_for(0), math.log(3), mean=0.5, std=2.0)
    t = torch.sigmoid(0.5 + 2.0 * normal)
    assert shifted == pytest.approx(float(3 * t / (1 + 2 * t)), abs=1e-6)


def test_levels_fall_from_one_to_zero_and_are_computed_as_the_scheduler_does() -> None:
    assert flow.sigmas(4, 0.0, 0.25) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow.sigmas(2, math.log(3), 0.5) == pytest.approx([1.0, 0.75, 0.0])
    assert len(flow.sigmas(28, 1.15, 1 / 28)) == 29


@pytest.mark.parametrize(
    ("strength", "left"), [(1.0, 4), (0.9, 4), (0.75, 3), (0.5, 2), (0.25, 1), (0.01, 1)]
)
def test_strength_runs_the_tail_of_the_levels(strength: float, left: int) -> None:
    """As diffusers rounds: the number of skipped steps goes down, so 0.9 of four steps are four. One step
    always stays.
    """
    levels = [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow.from_strength(levels, strength) == levels[4 - left :]


def test_the_sampler_takes_euler_steps_and_tells_how_far_it_is() -> None:
    asked: list[float] = []
    told: list[tuple[int, int]] = []

    def velocity(latents: Tensor, t: float) -> Tensor:
        asked.append(t)
        return (latents + t).to(torch.float64)

    made = flow.sample(
        velocity, torch.ones(1, 1, 1, 1), [1.0, 0.5, 0.0], on_step=lambda *step: told.append(step)
    )
    # 1 − 0.5·(1 + 1) = 0; 0 − 0.5·(0 + 0.5) = −0.25
    assert made.item() == -0.25 and made.dtype == torch.float32, "the state keeps its precision"
    assert asked == [1.0, 0.5] and told == [(1, 2), (2, 2)]


def test_a_clamp_puts_known_latents_back_at_the_level_reached() -> None:
    clamp = flow.Clamp(DATA, NOISE, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    assert clamp.start(0.5).flatten().tolist() == [2.0, 2.0]
    assert clamp.apply(torch.full((1, 2, 1, 1), 9.0), 0.5).flatten().tolist() == [9.0, 2.0]
    seen: list[list[float]] = []

    def velocity(latents: Tensor, t: float) -> Tensor:
        seen.append(latents.flatten().tolist())
        return torch.zeros_like(latents)

    made = flow.sample(velocity, clamp.start(1.0), [1.0, 0.25, 0.0], clamp)
    assert seen == [[3.0, 6.0], [3.0, 0.0]], "noised to the next level after the first step"
    assert made.flatten().tolist() == [3.0, -2.0], "and clean after the last"


def test_guidance_extrapolates_until_its_level_and_not_at_it() -> None:
    asked: list[float] = []

    def unconditional(latents: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.ones_like(latents)

    guided = flow.guided(lambda latents, t: 3 * torch.ones_like(latents), unconditional, 5.0, until=0.5)
    at = {t: guided(torch.zeros(1), t).item() for t in (1.0, 0.5, 0.2)}
    assert at == {1.0: 11.0, 0.5: 3.0, 0.2: 3.0} and asked == [1.0]
    everywhere = flow.guided(lambda latents, t: 3 * torch.ones_like(latents), unconditional, 5.0)
    assert everywhere(torch.zeros(1), 0.01).item() == 11.0, "on at every level unless told otherwise"
