"""The tiny FLUX: its size, its token order, its velocity and a sampler for the recipe's own measurements.

Shapes: latents_BCHW (B, 8, 18, 12 per panel), tokens_BLD (B, 54 per panel, 32), t in [0, 1] with t = 1 noise.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from triptych.pocket.recipe.state import autocast
from triptych.pocket.recipe.text import SINGLE_LENGTH, TRIPTYCH_LENGTH, WIDTH, TextEncoders

CHANNELS, ROWS, COLUMNS = 8, 18, 12
SHIFT = 1.6
"""Time shift in training and in sampling: exp(0.47), what FluxPipeline computes for a triptych of this size.
"""


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


def pack(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Turn latents into tokens of 2 x 2, as FluxPipeline does."""
    b, c, h, w = latents_BCHW.shape
    return (
        latents_BCHW.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)
    )


def unpack(tokens_BLD: torch.Tensor, columns: int) -> torch.Tensor:
    """Turn tokens back into latents of a given width."""
    b, _, d = tokens_BLD.shape
    grid = tokens_BLD.view(b, ROWS // 2, columns // 2, d // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, ROWS, columns)


def image_ids(columns: int) -> torch.Tensor:
    """Return the position ids (L, 3) of a canvas that is ``columns`` latents wide."""
    ids = torch.zeros(ROWS // 2, columns // 2, 3)
    ids[..., 1] += torch.arange(ROWS // 2)[:, None]
    ids[..., 2] += torch.arange(columns // 2)[None]
    return ids.reshape(-1, 3)


def velocity(
    model: torch.nn.Module,
    tokens: torch.Tensor,
    t: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return noise - data (B, L, D) for tokens at times t (B,); text: T5 states, CLIP pooled vectors;
    guidance (B,) or 1.
    """
    states, pooled = text
    columns = tokens.shape[1] * 4 // ROWS
    return model(
        hidden_states=tokens,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=t,
        img_ids=image_ids(columns),
        txt_ids=torch.zeros(states.shape[1], 3),
        guidance=torch.ones(len(tokens), dtype=tokens.dtype) if guidance is None else guidance,
        return_dict=False,
    )[0]


def sigmas(steps: int) -> torch.Tensor:
    """Return the noise levels of an Euler sampler, shifted, with a final zero."""
    linear = torch.linspace(1, 1 / steps, steps)
    shifted = SHIFT / (SHIFT + (1 / linear - 1))
    return torch.cat([shifted, torch.zeros(1)])


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
    """Draw latents_BCHW; ``guidance`` is the number fed to the model, ``true_cfg_scale`` a second pass
    without words.
    """
    columns, batch = COLUMNS * panels, len(prompts)
    noises = [torch.Generator().manual_seed(seed + index) for index in range(batch)]
    x = pack(torch.stack([torch.randn(CHANNELS, ROWS, columns, generator=one) for one in noises]))
    length = SINGLE_LENGTH if panels == 1 else TRIPTYCH_LENGTH
    with autocast():
        text, empty = encoders(prompts, length), encoders([""] * batch, length)
    levels, fed = sigmas(steps), torch.full((batch,), guidance)
    for index in range(steps):
        t = levels[index].expand(batch)
        with autocast():
            step = velocity(model, x, t, text, fed).float()
            if true_cfg_scale != 1:
                without = velocity(model, x, t, empty, fed).float()
                step = without + true_cfg_scale * (step - without)
        x = x + (levels[index + 1] - levels[index]) * step
    return unpack(x, columns)
