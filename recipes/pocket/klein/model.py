"""The tiny FLUX.2-klein: its size, its velocity with references, and a sampler for the recipe's measurements.

Shapes: latents_BCHW (B, 32, 9, 6 per panel), normalised; t in [0, 1], 1 is noise. References are clean, each
encoded alone, and stand after the picture's tokens in frames T = 10, 20, 30 of their own, at the picture's t.
Packing, positions, noise levels and the sampler are the product's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel

from recipes.pocket.klein.codec import CHANNELS
from recipes.pocket.klein.text import WIDTH, TextEncoder
from recipes.pocket.state import autocast
from triptych import flow
from triptych.backbones.flux2.model import empirical_mu, pack, position_ids, unpack

ROWS, COLUMNS = 9, 6
"""Tokens of a panel."""


def new_transformer(
    channels: int = CHANNELS, heads: int = 4, double: int = 2, single: int = 4
) -> Flux2Transformer2DModel:
    """Return an untrained transformer, 64 wide for each head; the shipped one's has 7.9M parameters."""
    model = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=channels,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=256,
        mlp_ratio=3.0,
        axes_dims_rope=(16, 16, 16, 16),
        rope_theta=2000,
        guidance_embeds=False,
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            zero = "modulation" in name or name in ("norm_out.linear", "proj_out")
            (torch.nn.init.zeros_ if zero else torch.nn.init.xavier_uniform_)(module.weight)
    return model


def text_ids(length: int) -> torch.Tensor:
    """Return (0, 0, 0, l) of the words, (length, 4)."""
    return torch.cat([torch.zeros(length, 3), torch.arange(length)[:, None].float()], 1)


def velocity(
    model: Any,
    latents_BCHW: torch.Tensor,
    t: torch.Tensor,
    states: torch.Tensor,
    references: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Return noise - data (B, 32, H, W) at times t (B,), given the words' states and clean references."""
    rows, columns = latents_BCHW.shape[2:]
    tokens = [pack(latents_BCHW), *(pack(reference) for reference in references)]
    places = [position_ids(rows, columns, 0, latents_BCHW.device)]
    for number, reference in enumerate(references, 1):
        places.append(position_ids(reference.shape[2], reference.shape[3], number, latents_BCHW.device))
    answer: torch.Tensor = model(
        hidden_states=torch.cat(tokens, 1),
        encoder_hidden_states=states,
        timestep=t,
        img_ids=torch.cat(places),
        txt_ids=text_ids(states.shape[1]).to(latents_BCHW.device),
        return_dict=False,
    )[0]
    return unpack(answer[:, : rows * columns], rows, columns)


@torch.no_grad()
def sample(
    model: Flux2Transformer2DModel,
    encoder: TextEncoder,
    prompts: Sequence[str],
    references: Sequence[torch.Tensor] = (),
    panels: int = 1,
    *,
    steps: int = 16,
    cfg: float = 1.0,
    seed: int = 0,
) -> torch.Tensor:
    """Draw latents_BCHW as Flux2KleinPipeline does; `cfg` 1 needs one pass a step, more needs two."""
    batch, shape = len(prompts), (model.config.in_channels, ROWS, COLUMNS * panels)
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    noise = torch.stack(noises).to(model.device)

    def with_words(words: Sequence[str]) -> flow.Velocity:
        states = encoder(words)

        def at(latents_BCHW: torch.Tensor, t: float) -> torch.Tensor:
            times = torch.full((batch,), t, device=noise.device)
            with autocast(noise.device):
                return velocity(model, latents_BCHW, times, states, references).float()

        return at

    wanted = with_words(prompts)
    if cfg != 1:
        wanted = flow.guided(wanted, with_words([""] * batch), cfg)
    mu = empirical_mu(ROWS * COLUMNS * panels, steps)
    return flow.sample(wanted, noise, flow.sigmas(steps, mu, 1 / steps))
