"""Run the product's own code on tensors without data: a training step, sampling, the autoencoder, the text
encoders.

Legend: B batch, C channels, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.backbones.context import Reference
from triptych.config.marks import TRACED, marked
from triptych.lora.adapter import add_lora
from triptych.pictures.panels import PanelLayout
from triptych.planning.shapes import ModelShapes
from triptych.planning.trace import Profile, backward, profile, thinned, traced
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.training.config import TrainConfig
from triptych.training.data import Batch
from triptych.training.loss import losses_of


class Learned(NamedTuple):
    """What a batch with clean or native context learns. box: side of the learned box as a share of the
    panel's, or if several panels are made and it is below 1, half of them. run_known: with references,
    whether the rest of the panel is run as well, as in half of the batches.
    """

    box: float = 1.0
    run_known: bool = False


def training_pass(
    shapes: ModelShapes,
    config: TrainConfig,
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    learned: Learned = Learned(),
) -> Profile:
    """One forward and one backward pass as `verbs/train.py` runs them.

    length: number of tokens in a caption.
    """
    return _training_pass(
        shapes,
        tuple((name, getattr(config, name)) for name in sorted(marked(TrainConfig, TRACED))),
        layout,
        length,
        dtype,
        learned,
    )


@cache
def _training_pass(
    shapes: ModelShapes,
    settings: tuple[tuple[str, Any], ...],
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    learned: Learned,
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
    shown, active = cells_learned(layout, shapes.settings.stride, learned.box)
    batch = Batch(
        layout=layout if config.context == "noisy" else shown,
        clean_BCHW=clean_BCHW,
        noise_BCHW=torch.empty_like(clean_BCHW),
        t_B=torch.empty(b, device="meta"),
        text=shapes.text(length, b, dtype),
        empty=shapes.text(length, 1, dtype),
        learned_BHW=torch.empty_like(clean_BCHW[:, 0]),
        active=None if config.context == "noisy" else active,
        run_known=learned.run_known,
        levels=config.noise_levels,
    )
    transformer.train()
    with traced(transformer, times, dtype) as trace:
        losses = losses_of(config, backbone, transformer, batch)
        backward(losses.sample_B.mean())
        del losses
    return profile(trace.segments)


def cells_learned(layout: PanelLayout, unit: int, box: float) -> tuple[PanelLayout, Tensor]:
    """The layout and the cells of `unit` pixels, (rows, columns) bool, that `draw_active` may draw: all made
    panels; with `box` below 1 the first half of them, or a box in a single one.
    """
    if box < 1 and len(layout.made) > 1:  # 1 to all of them are drawn; the others are given
        layout = replace(layout, made=layout.made[: (len(layout.made) + 1) // 2])
    active = torch.from_numpy(layout.mask(layout.made, unit))
    if box < 1 and len(layout.made) == 1:
        left, top, right, bottom = layout.box(layout.made[0], unit)
        active[top + _part(bottom - top, box) :] = False
        active[:, left + _part(right - left, box) :] = False
    return layout, active


def _part(side: int, share: float) -> int:
    return max(1, int(side * share + 1e-6))


class _Kept(ContextCache):
    """A cache that keeps what is read while there is room, without keys: tensors of `plan` have no data to
    hash.
    """

    def __init__(self, room: float) -> None:
        super().__init__(0)
        self.room, self.taken = room, 0
        self._values: list[Any] = []

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        value = make()
        if self.taken + value.nbytes <= self.room:
            self._values.append(value)
            self.taken += value.nbytes
        return value


class Sampled(NamedTuple):
    """A sampling run. profile: its memory and arithmetic. kept: bytes of keys and values among them that are
    kept for the next pictures.
    """

    profile: Profile
    kept: int


@cache
def sampling_run(
    shapes: ModelShapes,
    sampling: Sampling,
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    rank: int,
    *,
    repainted: float = 1.0,
    further: int = 0,
    cache_bytes: float = 0.0,
) -> Sampled:
    """Denoise one canvas, with product photos for the given panels.

    All steps are alike, so two are run, and the arithmetic of the second counts for every later step.

    Args:
        rank: the LoRA's rank; 0 without a LoRA.
        repainted: the share of the made panel's area inside a polygon; the rest of it is known. 1: nothing of
            it is known, as in `generate`.
        further: number of references besides the given panels, each of a panel's area.
        cache_bytes: room for what is read of known panels.
    """
    backbone = shapes.backbone(dtype)
    transformer = shapes.build("transformer", dtype)
    blocks = backbone.blocks(transformer)
    # Buffers of clean context have a part for each block, and are not made while a block runs.
    reads = sampling.context == "clean"
    times = dict.fromkeys(blocks.values(), 1) if reads else thinned(transformer, blocks)
    if rank:
        add_lora(transformer, backbone.lora_layers(transformer), rank, rank, 0.0, 0)
        nn.Module.to(transformer, dtype).requires_grad_(False)
    kept, blank = 0, _canvases(shapes, sampling, layout, repainted, further)

    def steps(number: int) -> Profile:
        nonlocal kept
        contexts = _Kept(cache_bytes)
        with traced(transformer, times) as trace:
            text = shapes.text(length, 1, dtype)
            short = replace(sampling, num_inference_steps=number)
            canvases = replace(blank, text=text, empty=text)
            sample_latents(backbone, transformer, canvases, short, contexts=contexts)
        kept = contexts.taken
        return profile(trace.segments)

    one, two = steps(1), steps(2)
    flops = one.flops + (sampling.num_inference_steps - 1) * (two.flops - one.flops)
    return Sampled(replace(two, flops=flops), kept)


def _canvases(
    shapes: ModelShapes, sampling: Sampling, layout: PanelLayout, repainted: float, further: int
) -> Canvases:
    """What is sampled, but for its text: the whole canvas, or only the made panels if the given ones are
    references.
    """
    sampled, references = layout, tuple[Reference, ...]()
    if sampling.context_placement == "reference":
        sampled = layout.only(layout.made)
        panel = PanelLayout(layout.width, layout.height, layout.given[:1], 1)
        references = tuple(
            Reference(shapes.latents(panel, 1), None, number)
            for number in range(1, len(layout.given) + further + 1)
        )
    known = None
    if not references or repainted < 1:
        _, repaint = cells_learned(sampled, shapes.latent_stride, repainted**0.5)
        known = Known(shapes.latents(sampled, 1), repaint.float())
    shape = shapes.latents(sampled, 1).shape[1:]
    return Canvases(sampled, shape, {}, [0], {}, known, references)


def at_once(shapes: ModelShapes, layout: PanelLayout) -> tuple[PanelLayout, int]:
    """What of a canvas is encoded at a time, and how often: the canvas, or for families with references each
    of its panels.
    """
    if not shapes.family.family.references:
        return layout, 1
    return PanelLayout(layout.width, layout.height, layout.roles[:1], 1), len(layout.roles)


@cache
def autoencoding(
    shapes: ModelShapes, layout: PanelLayout, batch: int, dtype: torch.dtype, *, decode: bool
) -> Profile:
    """Encode pictures of the layout's size to latents, or with `decode` the reverse."""
    autoencoder = shapes.autoencoder(dtype)
    with traced(autoencoder.vae) as trace:
        if decode:
            autoencoder.decode(shapes.latents(layout, batch))
        else:
            width, height = layout.size
            autoencoder.encode(torch.empty(batch, 3, height, width, device="meta"))
    return profile(trace.segments)


@cache
def text_encoding(shapes: ModelShapes, length: int, dtype: torch.dtype) -> Profile:
    """Run one caption through the text encoders one after another, with all of them in memory."""
    profiles = []
    for part, about in shapes.family.text_encoder_class.parts.items():
        encoder = shapes.build(part, dtype)
        tokens = about.tokens or length
        ids = torch.empty(1, tokens, dtype=torch.long, device="meta")
        with torch.no_grad(), traced(encoder) as trace:
            encoder(ids, output_hidden_states=True, **about.planned(tokens))
        profiles.append(profile(trace.segments))
    return Profile(max(one.peak for one in profiles), 0, sum(one.flops for one in profiles))
