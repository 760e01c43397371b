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
from triptych.backbones.context import Window
from triptych.backbones.contract import Backbone, Text
from triptych.errors import ModelError
from triptych.pictures.panels import PanelLayout
from triptych.sampling import token_sets
from triptych.sampling.clean_context import ContextCache, kept_window, product_tokens
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
    B times; guidance and clean context need them. known: None if the canvases come from their prompts alone.
    """

    layout: PanelLayout
    latent_shape: Sequence[int]
    text: Text
    seeds: Sequence[int]
    empty: Text | None = None
    known: Known | None = None

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
        if known_BCHW is not None and sampling.context == "clean":
            assert empty is not None
            reader = self._reader(known_BCHW, empty, contexts)
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

    def _reader(self, known_BCHW: Tensor, empty: Text, contexts: ContextCache | None) -> _Reader:
        backbone, canvases, sampling = self.backbone, self.canvases, self.sampling
        known, layout, stride = canvases.known, canvases.layout, backbone.settings.stride
        assert known is not None
        made = layout.mask(layout.made, stride)
        sets = active_tokens(known.repaint, layout, stride).numpy()
        rows = sets.reshape(-1, *sets.shape[-2:])
        sets = token_sets.rounded_up(rows, made, sampling.token_bucket).reshape(sets.shape)
        active = torch.from_numpy(sets).to(backbone.device)
        reads_products_first = sampling.context_reading == "products"
        return _Reader(
            backbone,
            self.transformer,
            known_BCHW,
            empty,
            active,
            made=torch.from_numpy(made).to(backbone.device),
            within=None if known.left_out is None else ~known.left_out.to(backbone.device),
            first=product_tokens(layout, stride).to(backbone.device) if reads_products_first else None,
            with_lora=sampling.context_lora,
            room=int(active.sum()) // (len(active) if active.ndim == 3 else 1)
            + max(map(backbone.text_tokens, (canvases.text, empty))),
            contexts=contexts,
        )


@dataclass(frozen=True)
class _Reader:
    """Reads the known tokens of the canvases for clean context, see `clean_context.kept_window`."""

    backbone: Backbone
    transformer: nn.Module
    known_BCHW: Tensor
    empty: Text
    active: Tensor
    made: Tensor
    within: Tensor | None
    first: Tensor | None
    with_lora: bool
    room: int
    contexts: ContextCache | None

    def everything(self) -> Window:
        """The window in which active tokens attend to all known tokens."""
        return self._read(self.within)

    def without_products(self) -> Window:
        """The window without the given panels, for guidance on them."""
        return self._read(self.made)

    def _read(self, within: Tensor | None) -> Window:
        return kept_window(
            self.backbone,
            self.transformer,
            self.known_BCHW,
            self.active,
            self.empty,
            self.with_lora,
            within,
            self.first,
            room=self.room,
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
