"""Sample latents of canvases: noise levels, guidance, restoring known latents after every step, and clean
context.

Legend: B batch, C channels, H and W latent rows and columns of the whole canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor, nn

from triptych import flow, progress
from triptych.backbones.context import Reference, Window
from triptych.backbones.contract import Backbone, Text
from triptych.errors import ModelError
from triptych.pictures.panels import PanelLayout
from triptych.sampling import token_sets
from triptych.sampling.clean_context import (
    ContextCache,
    Groups,
    apart,
    groups_of_canvas,
    groups_of_references,
    kept_window,
)
from triptych.sampling.options import Sampling

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Known:
    """The known content of the canvases.

    latents_BCHW: clean latents of the edited canvases. repaint: (H, W) or (B, H, W), 1 = repaint. left_out:
    (rows, columns) bool on the token grid; known tokens that no token attends to (clean context only).
    """

    latents_BCHW: Tensor
    repaint: Tensor
    left_out: Tensor | None = None


@dataclass(frozen=True)
class Canvases:
    """B canvases to sample, with one seed each.

    latent_shape: (C, H, W) of a canvas. text: embeddings of B prompts. empty: embeddings of the empty prompt,
    B times; guidance and clean context need them. known: None if nothing on the canvases is known.
    references: the given panels as pictures of their own, which are then not on the canvas (reference
    placement).
    """

    layout: PanelLayout
    latent_shape: Sequence[int]
    text: Text
    seeds: Sequence[int]
    empty: Text | None = None
    known: Known | None = None
    references: tuple[Reference, ...] = ()

    def noise(self) -> Tensor:
        """Noise (B, C, H, W) on the CPU, per canvas from a generator with its own seed."""
        return torch.cat(
            [
                torch.randn((1, *self.latent_shape), generator=torch.Generator("cpu").manual_seed(seed))
                for seed in self.seeds
            ]
        )


@torch.no_grad()
def sample_latents(
    backbone: Backbone,
    transformer: nn.Module,
    canvases: Canvases,
    sampling: Sampling,
    *,
    contexts: ContextCache | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample the canvases. Returns clean latents, (B, C, H, W) float32.

    With known canvases the run starts from them, noised to `strength`, and latents that are not repainted are
    restored after every step (as in diffusers' inpainting pipelines).

    Args:
        contexts: cache of keys and values for this transformer (clean context only).

    Raises:
        ModelError: the sampling asks for a step cache, and the family supports none.
    """
    if sampling.step_cache and not backbone.step_cache:
        raise ModelError(
            "Steps of this model cannot be cached: diffusers' FirstBlockCache does not fit its blocks.",
            "Give --step-cache 0.",
        )
    noise = canvases.noise().to(backbone.device)
    levels = noise_levels(backbone, canvases.layout, sampling)
    clamp = None
    if known := canvases.known:
        clamp = flow.Clamp(known.latents_BCHW.to(noise), noise, known.repaint.to(noise).unsqueeze(-3))
    run = _Run(backbone, transformer, canvases, sampling, levels)
    velocity = run.velocity(None if clamp is None else clamp.known_BCHW, contexts)
    start = noise if clamp is None else clamp.start(levels[0])

    def stepped(done: int, of: int) -> None:
        progress.step("step", done, of)
        if on_step is not None:
            on_step(done, of)

    with _steps_cached(transformer, sampling.step_cache):
        return flow.sample(velocity, start, levels, clamp, stepped)


def noise_levels(backbone: Backbone, layout: PanelLayout, sampling: Sampling) -> list[float]:
    """The noise levels of a run, from the first one by `strength` down to 0."""
    stride = backbone.settings.stride
    sides = (layout.width, layout.height) if sampling.time_shift == "panel" else layout.size
    count = (sides[0] // stride) * (sides[1] // stride)
    return flow.from_strength(backbone.sigmas(sampling.num_inference_steps, count), sampling.strength)


def active_tokens(repaint_mask: Tensor, layout: PanelLayout, stride: int) -> Tensor:
    """(rows, columns) bool on the token grid: tokens with any latent to repaint. repaint_mask: (H, W), 1 =
    repaint. A batch (B, H, W) gives a batch.
    """
    cells = repaint_mask.shape[-2] // (layout.size[1] // stride)
    return torch.from_numpy(token_sets.latent_mask(repaint_mask.cpu().numpy(), cells))


@dataclass(frozen=True)
class _Run:
    """The velocity of one sampling run."""

    backbone: Backbone
    transformer: nn.Module
    canvases: Canvases
    sampling: Sampling
    levels: Sequence[float]

    def velocity(self, known_BCHW: Tensor | None, contexts: ContextCache | None) -> flow.Velocity:
        """The velocity, with guidance. known_BCHW: clean latents on the device, if any are known."""
        text, empty, sampling = self.canvases.text, self.canvases.empty, self.sampling
        fed = sampling.guidance_scale
        until = self.levels[math.ceil(sampling.guidance_stop * (len(self.levels) - 1))]
        window = alone = None
        if reader := self._reader(known_BCHW, contexts):
            window = reader.everything()
            if sampling.context_guidance_scale != 1.0:
                fed, alone = 1.0, reader.without_products()
        guided = self._unguided(text, "cond", fed, window)
        if alone is not None and empty is not None:
            without = self._unguided(empty, "uncond", fed, alone)
            return flow.guided(guided, without, sampling.context_guidance_scale, until)
        if sampling.true_cfg_scale != 1.0:
            assert empty is not None
            silent = self._unguided(empty, "uncond", fed, window)
            return flow.guided(guided, silent, sampling.true_cfg_scale, until)
        return guided

    def _unguided(
        self, text: Text, branch: str, guidance_scale: float | None, window: Window | None
    ) -> flow.Velocity:
        """The transformer's own velocity. branch: name under which a step cache stores this pass."""
        backbone, transformer, levels = self.backbone, self.transformer, self.levels
        run = None
        if not self.sampling.step_cache:  # a step cache needs the blocks themselves
            run = backbone.premodulated(transformer, levels[:-1], text, guidance_scale)

        def velocity(latents_BCHW: Tensor, t: float) -> Tensor:
            times = torch.full((len(latents_BCHW),), t, device=latents_BCHW.device)
            shown = transformer if run is None else run.at(t)
            with transformer.cache_context(branch) if run is None else nullcontext():  # type: ignore[operator]
                return backbone.velocity(shown, latents_BCHW, times, text, guidance_scale, window)

        return velocity

    def _reader(self, known_BCHW: Tensor | None, contexts: ContextCache | None) -> _Reader | None:
        """How known tokens are shown; None if they are noised with the canvas, or if there are none."""
        canvases, sampling = self.canvases, self.sampling
        if sampling.context == "noisy" or (known_BCHW is None and not canvases.references):
            return None
        layout, stride = canvases.layout, self.backbone.settings.stride
        made = torch.from_numpy(layout.mask(layout.made, stride))
        repainted = made if canvases.known is None else self._repainted(made)
        reading = sampling.context_reading
        if sampling.context_placement == "canvas":
            assert known_BCHW is not None and canvases.known is not None
            left_out = canvases.known.left_out
            active = repainted
            parts = apart(layout, stride, reading)
            within = None if left_out is None else ~left_out.cpu()
            groups = groups_of_canvas(known_BCHW, active, within, parts)
            alone = groups_of_canvas(known_BCHW, active, made, parts)
        else:
            # The known part of the made panels is a picture of its own as well.
            person = (
                ()
                if known_BCHW is None or bool(repainted.all())
                else (Reference(known_BCHW, ~repainted, len(canvases.references) + 1),)
            )
            groups = groups_of_references(canvases.references, person, reading)
            alone = groups_of_references((), person, reading)
            active = repainted if sampling.active_tokens == "polygon" else torch.ones_like(made)
        return _Reader(self.backbone, self.transformer, canvases, sampling, active, groups, alone, contexts)

    def _repainted(self, made: Tensor) -> Tensor:
        """The tokens to repaint, of equal number for all canvases: (rows, columns) or (B, rows, columns)
        bool.
        """
        known, layout, stride = self.canvases.known, self.canvases.layout, self.backbone.settings.stride
        assert known is not None
        sets = active_tokens(known.repaint, layout, stride).numpy()
        rows = sets.reshape(-1, *sets.shape[-2:])
        sets = token_sets.rounded_up(rows, made.numpy(), self.sampling.token_bucket).reshape(sets.shape)
        return torch.from_numpy(sets)


@dataclass(frozen=True)
class _Reader:
    """Shows known tokens to the model: read once, or run beside the active tokens at every step.

    active: the tokens that are run, as in `Window`. groups: all known tokens; alone: those without the given
    panels, for guidance on them.
    """

    backbone: Backbone
    transformer: nn.Module
    canvases: Canvases
    sampling: Sampling
    active: Tensor
    groups: Groups
    alone: Groups
    contexts: ContextCache | None

    def everything(self) -> Window:
        """The window in which active tokens attend to all known tokens."""
        return self._window(self.groups)

    def without_products(self) -> Window:
        """The window without the given panels."""
        return self._window(self.alone)

    def _window(self, groups: Groups) -> Window:
        if self.sampling.context == "native":
            return Window(
                self.active, beside=tuple(reference for group in groups for reference in group.references)
            )
        canvases, backbone = self.canvases, self.backbone
        assert canvases.empty is not None
        count = int(self.active.sum()) // (len(self.active) if self.active.ndim == 3 else 1)
        return kept_window(
            backbone,
            self.transformer,
            self.active,
            groups,
            canvases.empty,
            self.sampling.context_lora,
            batch=len(canvases.seeds),
            room=count + max(map(backbone.text_tokens, (canvases.text, canvases.empty))),
            cache=self.contexts,
        )


@contextmanager
def _steps_cached(transformer: Any, threshold: float) -> Iterator[None]:
    """Use diffusers' FirstBlockCache on the transformer during one sampling run; with threshold 0, do
    nothing.
    """
    if threshold:
        transformer.enable_cache(FirstBlockCacheConfig(threshold))
    try:
        yield
    finally:
        if threshold:
            transformer.disable_cache()
