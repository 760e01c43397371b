"""The tiny FLUX: its size, its velocity, and its sampler for the recipe's own measurements.

Shapes: latents_BCHW (B, 8, 18, 12 per panel), t in [0, 1] with t = 1 noise. Packing, noise levels and the
sampler are the product's own.
"""

from __future__ import annotations

import math

import torch
from diffusers import FluxTransformer2DModel

from recipes.pocket.state import autocast
from recipes.pocket.text import SINGLE_LENGTH, TRIPTYCH_LENGTH, WIDTH, TextEncoders
from triptych import flow
from triptych.backbones.flux.model import pack, position_ids, unpack

CHANNELS, ROWS, COLUMNS = 8, 18, 12
MU = math.log(1.6)
"""Time shift in training and in sampling: FluxPipeline computes 0.47 for a triptych of this size."""


def new_transformer() -> FluxTransformer2DModel:
    """Return the untrained transformer (9.2M parameters): d = 256, two double and four single blocks."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS * 4,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            modulation = ("norm" in name and name.endswith("linear")) or name == "proj_out"
            (torch.nn.init.zeros_ if modulation else torch.nn.init.xavier_uniform_)(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return model


def velocity(
    model: torch.nn.Module,
    latents_BCHW: torch.Tensor,
    t: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return noise - data (B, C, H, W) at times t (B,).

    text: T5 states and CLIP's pooled vectors. guidance: (B,), one value per sample, as its distillation
    needs; or 1. Uses the stock forward pass, which suffices for torch.compile and for guidance per sample.
    """
    states, pooled = text
    b, _, rows, columns = latents_BCHW.shape
    tokens: torch.Tensor = model(
        hidden_states=pack(latents_BCHW),
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=t,
        img_ids=position_ids(rows, columns, latents_BCHW.device),
        txt_ids=torch.zeros(states.shape[1], 3),
        guidance=torch.ones(b, dtype=latents_BCHW.dtype) if guidance is None else guidance,
        return_dict=False,
    )[0]
    return unpack(tokens, rows, columns)


@torch.no_grad()
def sample(
    model: torch.nn.Module,
    encoders: TextEncoders,
    prompts: list[str],
    panels: int = 3,
    *,
    steps: int = 16,
    true_cfg_scale: float = 1.0,
    guidance: float = 1.0,
    seed: int = 0,
) -> torch.Tensor:
    """Draw latents_BCHW; `guidance` is fed to the model, `true_cfg_scale` needs a second pass with an empty
    prompt.
    """
    batch = len(prompts)
    noises = [torch.Generator().manual_seed(seed + index) for index in range(batch)]
    shape = (CHANNELS, ROWS, COLUMNS * panels)
    noise = torch.stack([torch.randn(shape, generator=one) for one in noises])
    length = SINGLE_LENGTH if panels == 1 else TRIPTYCH_LENGTH
    fed = torch.full((batch,), guidance)

    def with_words(words: list[str]) -> flow.Velocity:
        with autocast():
            text = encoders(words, length)

        def at(latents_BCHW: torch.Tensor, t: float) -> torch.Tensor:
            with autocast():
                return velocity(model, latents_BCHW, torch.full((batch,), t), text, fed).float()

        return at

    wanted = with_words(prompts)
    if true_cfg_scale != 1:
        wanted = flow.guided(wanted, with_words([""] * batch), true_cfg_scale)
    return flow.sample(wanted, noise, flow.sigmas(steps, MU, 1 / steps))
