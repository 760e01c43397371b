"""Run the product's own code on tensors without data: a training step, sampling, the autoencoder, the text
encoders.

Legend: B batch, C channels, H and W latent rows and columns.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from triptych.config.marks import TRACED, marked
from triptych.lora.adapter import add_lora
from triptych.pictures.panels import PanelLayout
from triptych.planning.shapes import ModelShapes
from triptych.planning.trace import Profile, backward, profile, thinned, traced
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.training.config import TrainConfig
from triptych.training.data import Batch
from triptych.training.loss import losses_of


def training_pass(
    shapes: ModelShapes,
    config: TrainConfig,
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    part: bool = False,
) -> Profile:
    """One forward and one backward pass as `verbs/train.py` runs them.

    length: number of T5 tokens in a caption. part: with clean context, learn only a part of the generated
    panels, of the mean size that `draw_active` draws: for a single panel a box of two thirds of its sides.
    """
    return _training_pass(
        shapes,
        tuple((name, getattr(config, name)) for name in sorted(marked(TrainConfig, TRACED))),
        layout,
        length,
        dtype,
        part,
    )


@cache
def _training_pass(
    shapes: ModelShapes,
    settings: tuple[tuple[str, Any], ...],
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    part: bool,
) -> Profile:
    config = TrainConfig(**dict(settings))
    backbone = shapes.backbone(dtype)
    transformer = shapes.build("transformer", dtype)
    times = thinned(transformer, backbone.blocks(transformer))
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    for parameter in add_lora(
        transformer, backbone.lora_layers(transformer), config.rank, config.alpha, config.lora_dropout, 0
    ):
        if config.gradient_accumulation_steps > 1:  # all passes but the first add to existing gradients
            parameter.grad = torch.zeros_like(parameter)
    b = config.batch_size * config.noise_levels
    clean_BCHW = shapes.latents(layout, b)
    active = torch.from_numpy(layout.mask(layout.made, shapes.settings.stride))
    if part and len(layout.made) > 1:  # `draw_active` draws 1 to all of them; the others are given
        active = torch.from_numpy(
            layout.mask(layout.made[: (len(layout.made) + 1) // 2], shapes.settings.stride)
        )
    elif part:
        left, top, right, bottom = layout.box(layout.made[-1], shapes.settings.stride)
        active[top + (bottom - top) * 2 // 3 :] = False
        active[:, left + (right - left) * 2 // 3 :] = False
    batch = Batch(
        layout=layout,
        clean_BCHW=clean_BCHW,
        noise_BCHW=torch.empty_like(clean_BCHW),
        t_B=torch.empty(b, device="meta"),
        text=shapes.text(length, b, dtype),
        empty=shapes.text(length, 1, dtype),
        learned_BHW=torch.empty_like(clean_BCHW[:, 0]),
        active=active if config.context == "clean" else None,
        levels=config.noise_levels,
    )
    transformer.train()
    with traced(transformer, times, dtype) as trace:
        losses = losses_of(config, backbone, transformer, batch)
        backward(losses.sample_B.mean())
        del losses
    return profile(trace.segments)


@cache
def sampling_run(
    shapes: ModelShapes,
    sampling: Sampling,
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    known: bool,
    rank: int,
) -> Profile:
    """Denoise one canvas, as `generate` does with product photos (`known`) or without. rank: the LoRA's rank;
    0 without a LoRA.

    All steps are alike, so two are run, and the arithmetic of the second counts for every later step.
    """
    backbone = shapes.backbone(dtype)
    transformer = shapes.build("transformer", dtype)
    times = thinned(transformer, backbone.blocks(transformer))
    if rank:
        add_lora(transformer, backbone.lora_layers(transformer), rank, rank, 0.0, 0)
        torch.nn.Module.to(transformer, dtype).requires_grad_(False)
    latents_BCHW = shapes.latents(layout, 1)
    shape, unit = latents_BCHW.shape[1:], shapes.latent_stride
    mask = torch.from_numpy(layout.mask(layout.made, unit)).float()
    shown = Known(latents_BCHW, mask) if known else None

    def steps(number: int) -> Profile:
        with traced(transformer, times) as trace:
            text = shapes.text(length, 1, dtype)
            short = replace(sampling, num_inference_steps=number)
            canvas = Canvases(layout, shape, text, [0], text, shown)
            sample_latents(backbone, transformer, canvas, short)
        return profile(trace.segments)

    one, two = steps(1), steps(2)
    return replace(two, flops=one.flops + (sampling.num_inference_steps - 1) * (two.flops - one.flops))


@cache
def autoencoding(
    shapes: ModelShapes, layout: PanelLayout, batch: int, dtype: torch.dtype, *, decode: bool
) -> Profile:
    """Encode canvases to latents, or with `decode` the reverse."""
    vae = shapes.build("vae", dtype)
    with torch.no_grad(), traced(vae) as trace:
        if decode:
            vae.decode(shapes.latents(layout, batch).to(dtype)).sample.float().clamp(-1, 1)  # type: ignore[operator]
        else:
            posterior = vae.encode(
                torch.empty(batch, 3, layout.size[1], layout.size[0], device="meta", dtype=dtype)
            ).latent_dist  # type: ignore[operator]
            del posterior
    return profile(trace.segments)


@cache
def text_encoding(shapes: ModelShapes, length: int, dtype: torch.dtype) -> Profile:
    """Run one caption through the text encoders one after another, with all of them in memory."""
    profiles = []
    for part, about in shapes.family.text_encoder_class.parts.items():
        encoder = shapes.build(part, dtype)
        tokens = about.tokens or length
        with torch.no_grad(), traced(encoder) as trace:
            encoder(torch.empty(1, tokens, dtype=torch.long, device="meta"), output_hidden_states=True)
        profiles.append(profile(trace.segments))
    return Profile(max(one.peak for one in profiles), 0, sum(one.flops for one in profiles))
