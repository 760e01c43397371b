"""Rectified flow as pure functions: training pairs, the time shift, the sampler, the SDEdit clamp.

Legend: B batch, C channels, H and W latent rows and columns. `t` and `sigma` are the same number in [0, 1]: 0
is data, 1 is noise. Velocity points from data to noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""(latents_BCHW, t) → velocity_BCHW."""


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key` alone, e.g. (seed, step, id), so a draw does not depend on the batch
    size.
    """
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def interpolate(data_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 − t)·data + t·noise (Liu et al. 2022, arXiv 2209.03003, eq. 1, with time running towards
    noise).
    """
    t = t_B.view(-1, 1, 1, 1)
    return (1.0 - t) * data_BCHW + t * noise_BCHW


def velocity_target(data_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """dx_t/dt of `interpolate`: noise − data."""
    return noise_BCHW - data_BCHW


def shift_time(t: Tensor, mu: float) -> Tensor:
    """t moved towards noise: e^mu / (e^mu + 1/t − 1) (Esser et al. 2024, arXiv 2403.03206, eq. 23, as
    diffusers writes it).

    0 and 1 stay where they are; mu = 0 changes nothing.
    """
    shift = math.exp(mu)
    return shift * t / (1.0 + (shift - 1.0) * t)


def logit_normal_time(generator: torch.Generator, mu: float, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """One t in (0, 1): sigmoid of a normal (arXiv 2403.03206, eq. 19), then the model's time shift.
    Shape ().
    """
    return shift_time(torch.sigmoid(mean + std * torch.randn((), generator=generator)), mu)


def sigmas(num_inference_steps: int, mu: float, last: float) -> list[float]:
    """The noise levels of a sampling run: `num_inference_steps` + 1 numbers falling from 1 to 0.

    Evenly spaced from 1 to `last`, then time-shifted, with a final 0. Computed in float32, as
    FlowMatchEulerDiscreteScheduler does, and equal to its levels.
    """
    steps = torch.linspace(1.0, last, num_inference_steps, dtype=torch.float64).float()
    shifted = math.exp(mu) / (math.exp(mu) + (1 / steps - 1))
    return [*shifted.tolist(), 0.0]


def from_strength(levels: Sequence[float], strength: float) -> list[float]:
    """The tail of `levels` that SDEdit runs: all of it at `strength` 1, the second half of the steps at 0.5.

    Rounds as diffusers' `get_timesteps` does. `strength` in (0, 1]; at least one step stays.
    """
    steps = len(levels) - 1
    skipped = int(max(steps - min(steps * strength, steps), 0))
    return list(levels[min(skipped, steps - 1) :])


@dataclass(frozen=True)
class Clamp:
    """Known latents that a sampling run keeps outside a mask.

    known_BCHW: clean latents of the edited canvas. noise_BCHW: the noise of the whole run, drawn once and
    used at every level. mask: (H, W) or any shape that broadcasts to BCHW; 1 = repaint, 0 = keep.
    """

    known_BCHW: Tensor
    noise_BCHW: Tensor
    mask: Tensor

    def start(self, sigma: float) -> Tensor:
        """SDEdit's start (Meng et al. 2021, arXiv 2108.01073): the whole edited canvas, noised to `sigma`."""
        return (1.0 - sigma) * self.known_BCHW + sigma * self.noise_BCHW

    def apply(self, latents_BCHW: Tensor, sigma: float) -> Tensor:
        """Restore the known part, noised to `sigma`, the current level of the latents (0: clean)."""
        return self.mask * latents_BCHW + (1.0 - self.mask) * self.start(sigma)


def sample(
    velocity: Velocity,
    latents_BCHW: Tensor,
    levels: Sequence[float],
    clamp: Clamp | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Euler steps of dx/dt = velocity from levels[0] down to levels[-1]; a clamp restores the known latents
    after each step.

    Args:
        latents_BCHW: the state at levels[0], in float32. It stays float32 in whatever dtype the model
            computes.
        on_step: called after each step with (steps done, all steps).
    """
    total = len(levels) - 1
    for step, (now, after) in enumerate(zip(levels, levels[1:], strict=False), 1):
        latents_BCHW = latents_BCHW + (after - now) * velocity(latents_BCHW, now).to(latents_BCHW.dtype)
        if clamp is not None:
            latents_BCHW = clamp.apply(latents_BCHW, after)
        if on_step is not None:
            on_step(step, total)
    return latents_BCHW


def guided(conditional: Velocity, unconditional: Velocity, scale: float, until: float = 0.0) -> Velocity:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): u + scale·(c − u).

    At noise levels t ≤ `until` guidance is off and the unconditional pass is skipped (Kynkäänniemi et al.
    2024, arXiv 2404.07724).
    """

    def velocity(latents_BCHW: Tensor, t: float) -> Tensor:
        wanted = conditional(latents_BCHW, t)
        if t <= until:
            return wanted
        negative = unconditional(latents_BCHW, t)
        return negative + scale * (wanted - negative)

    return velocity
