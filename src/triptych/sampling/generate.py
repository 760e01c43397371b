"""Panels in, pictures out, in memory: sampling, and mode (a), `generate_triptych`; mode (b) is in `dressing`.
No files, no config.

Legend: B batch, C channels, H and W latent rows and columns of the whole canvas.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig
from PIL import Image
from torch import Tensor, nn

from triptych import flow, progress
from triptych.backbones.context import Window
from triptych.backbones.contract import Autoencoder, Backbone, Text, TextEncoder
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import Quantize
from triptych.data.captions import where_cut
from triptych.data.embeddings import stack_text
from triptych.errors import InputError, ModelError
from triptych.lora.adapter import load_lora
from triptych.lora.match import check_lora_fits
from triptych.pictures.panels import PanelLayout, concatenate
from triptych.sampling import token_sets
from triptych.sampling.clean_context import ContextCache, ContextReading, kept_window, product_tokens

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """How to sample. `guidance_scale` is the number fed to a guidance-distilled model (None: the model takes
    none), `true_cfg_scale` runs a second pass on the empty prompt and extrapolates; 1 is off.
    """

    num_inference_steps: int = 28
    guidance_scale: float | None = 3.5
    true_cfg_scale: float = 1.0
    strength: float = 1.0
    time_shift: Literal["panel", "canvas"] = "panel"
    """Tokens the time shift counts, where it does: of one panel, or of the whole canvas as diffusers does
    (which leaves a triptych few steps at low noise, where texture is decided).
    """
    context: Literal["noisy", "clean"] = "noisy"
    """How known panels are shown to the model: noised along with the rest and put back after every step (the
    paper's way, and diffusers'), or clean, read once and attended to, which only a LoRA trained that way
    understands.
    """
    context_lora: bool = False
    """Clean context: whether the LoRA also adapts how known tokens are read."""
    context_reading: ContextReading = "joint"
    """Clean context: which known tokens the known tokens attend to, see `clean_context`."""
    drop_background: bool = False
    """Clean context: leave out tokens of the product panels that show plain background."""
    token_bucket: int = 1
    """Clean context: the number of active tokens is rounded up to a multiple of this."""
    step_cache: float = 0.0
    """Threshold of diffusers' FirstBlockCache: a step whose first block changes by less takes the other
    blocks' change from the step before. 0 is off; an approximation.
    """
    context_guidance_scale: float = 1.0
    """Clean context: extrapolate away from a pass without words and without product panels; 1 is off. It
    takes the place of both other guidances: the model is then fed 1, what the LoRA saw in training.
    """
    guidance_stop: float = 1.0
    """Part of the steps after which guidance that takes a second pass is off."""

    @property
    def needs_empty_prompt(self) -> bool:
        return self.true_cfg_scale != 1.0 or self.context == "clean"


@dataclass
class Models:
    """The parts of one model that inference needs, on their device."""

    backbone: Backbone
    transformer: nn.Module
    autoencoder: Autoencoder
    texts: Mapping[str, Text]
    """Embeddings by prompt; the empty prompt is among them."""
    contexts: ContextCache = field(default_factory=lambda: ContextCache(0))
    """What was read of known panels with this transformer and its LoRA as they are."""
    lora: Path | None = None
    """The LoRA's file or folder, for messages."""
    trained: Mapping[str, Any] = field(default_factory=dict)
    """What the LoRA says about its training: layout, context …; empty without one of triptych's."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """By prompt, for those that the text encoder cuts: where."""

    def text(self, prompts: Sequence[str]) -> Text:
        """Embeddings of a batch of the prompts that the models were loaded with.

        Raises:
            InputError: another prompt; the text encoder is gone.
        """
        for prompt in prompts:
            if prompt not in self.texts:
                raise InputError(
                    f"The models were loaded without the prompt {prompt[:60]!r}.",
                    "Give load_models all prompts that are to be used.",
                )
        return self.backbone.to_device(stack_text([self.texts[prompt] for prompt in prompts]))

    def layout(self) -> PanelLayout:
        """The panels the LoRA was trained on, else those the model works best with."""
        stored, own = self.trained.get("layout"), self.backbone.settings
        return PanelLayout.from_dict(stored) if stored else PanelLayout(own.panel_width, own.panel_height)

    def sampling(self, **changes: Any) -> Sampling:
        """How to sample as the model and the LoRA recommend it, with `changes`: fields of `Sampling`."""
        own, trained = self.backbone.settings, self.trained
        recommended: dict[str, Any] = {
            "num_inference_steps": own.num_inference_steps,
            "guidance_scale": own.guidance_scale,
            "true_cfg_scale": own.true_cfg_scale,
            "context_guidance_scale": own.context_guidance_scale,
            "context": trained.get("context", "noisy"),
            "context_lora": bool(trained.get("context_lora", False)),
            "context_reading": trained.get("context_reading", "joint"),
        }
        return Sampling(**{**recommended, **changes})

    def warn_of(self, sampling: Sampling) -> None:
        """Say it if known panels are shown otherwise than the LoRA has learned."""
        for name in (
            ("context", "context_reading", "context_lora") if self.trained.get("context") == "clean" else ()
        ):
            learned, asked = getattr(self.sampling(), name), getattr(sampling, name)
            if learned != asked:
                log.warning(
                    "The LoRA was trained with %s=%r, not %r; models.sampling() has what it was trained for.",
                    name,
                    learned,
                    asked,
                )
                return

    def finite(self, values: Tensor) -> Tensor:
        """`values`, latents or pixels.

        Raises:
            ModelError: some are not finite numbers, and would become black.
        """
        if not torch.isfinite(values).all():
            if self.lora is not None:
                raise ModelError(
                    f"With the LoRA {self.lora} the model makes numbers that are not finite, and no picture.",
                    "Lower --lora-scale, or use another LoRA.",
                )
            raise ModelError(
                "The model makes numbers that are not finite, and no picture.",
                "Try --dtype fp32, or less guidance.",
            )
        return values


def load_models(
    model: str,
    prompts: Sequence[str],
    lora: Path | str | None = None,
    lora_scale: float = 1.0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize = "none",
    blocks_to_swap: int = 0,
    context_cache_gib: float = 0.0,
) -> Models:
    """A model (`pocket`, a diffusers folder, a hub id), with a LoRA if given, ready for the given prompts.

    The text encoders (9.5 GB for FLUX.1-dev) are gone again before the transformer is loaded.
    context_cache_gib: memory for keys and values of known panels from one picture to the next.

    Raises:
        ModelError: see `load_backbone` and `load_lora`.
    """
    progress.doing("opening the model")
    lora = None if lora is None else Path(lora)
    if lora is not None and (warning := check_lora_fits(model, lora)):
        log.warning(warning)
    backbone = load_backbone(model, device, dtype, quantize, blocks_to_swap)
    encoder, limit = backbone.load_text_encoder(), backbone.settings.max_sequence_length
    texts = encode_texts(encoder, prompts, limit)
    cut = {prompt: where_cut(prompt, limit, encoder.count_tokens) for prompt in texts}
    del encoder
    if backbone.device.type == "cuda":
        torch.cuda.empty_cache()
    progress.doing("loading the model")
    transformer = backbone.load_transformer()
    trained = load_lora(transformer, lora, lora_scale) if lora is not None else {}
    cache = ContextCache(int(context_cache_gib * 2**30))
    warnings = {prompt: words for prompt, words in cut.items() if words}
    return Models(backbone, transformer, backbone.load_autoencoder(), texts, cache, lora, trained, warnings)


def encode_texts(encoder: TextEncoder, prompts: Sequence[str], max_sequence_length: int) -> dict[str, Text]:
    """Embeddings by prompt, each encoded once, alone and without a batch dimension; the empty prompt is
    always among them.
    """
    encoded: dict[str, Text] = {}
    distinct = list(dict.fromkeys(["", *prompts]))
    for number, prompt in enumerate(distinct):
        progress.doing("reading prompts", number, len(distinct))
        encoded[prompt] = encoder.encode([prompt], max_sequence_length)
    return {
        prompt: {name: value[0].cpu() for name, value in text.items()} for prompt, text in encoded.items()
    }


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size → (B, 3, H, W) float32 in [−1, 1]."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [−1, 1] → RGB pictures."""
    array = (
        ((pixels_BCHW.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return [Image.fromarray(one) for one in array]


@torch.no_grad()
def sample_latents(
    backbone: Backbone,
    transformer: nn.Module,
    layout: PanelLayout,
    latent_shape: Sequence[int],
    text: Text,
    negative: Text | None,
    seeds: Sequence[int],
    sampling: Sampling,
    known_BCHW: Tensor | None = None,
    repaint_mask: Tensor | None = None,
    on_step: OnStep | None = None,
    left_out: Tensor | None = None,
    contexts: ContextCache | None = None,
) -> Tensor:
    """Latents of B canvases, one seed each, clean: (B, C, H, W) float32.

    Args:
        latent_shape: (C, H, W) of the canvas.
        text: embeddings of B prompts. negative: of the empty prompt, B times; for guidance and clean context.
        known_BCHW: clean latents of the edited canvas. repaint_mask: (H, W), or (B, H, W), 1 = repaint. Both
            or neither. The run starts from the known canvas noised to `strength`, and whatever is not
            repainted is put back after every step (diffusers' inpainting pipelines compute the same).
        left_out: (rows, columns) bool on the token grid; clean context: known tokens that nothing attends to.
        contexts: clean context: keys and values that were kept for this transformer.

    Raises:
        ModelError: a step cache for a family that has none.
    """
    if sampling.step_cache and not backbone.step_cache:
        raise ModelError(
            "Steps of this model cannot be cached: diffusers' FirstBlockCache does not fit its blocks.",
            "Give --step-cache 0.",
        )
    noise = torch.cat(
        [
            torch.randn((1, *latent_shape), generator=torch.Generator("cpu").manual_seed(seed))
            for seed in seeds
        ]
    )
    noise = noise.to(backbone.device)
    stride = backbone.settings.stride
    sides = (layout.width, layout.height) if sampling.time_shift == "panel" else layout.size
    count = (sides[0] // stride) * (sides[1] // stride)
    levels = flow.from_strength(backbone.sigmas(sampling.num_inference_steps, count), sampling.strength)
    until = levels[math.ceil(sampling.guidance_stop * (len(levels) - 1))]

    window = without_products = None
    fed = sampling.guidance_scale

    def velocity_with(embeddings: Text, window: Window | None = None) -> flow.Velocity:
        branch = "cond" if embeddings is text else "uncond"
        # A step cache looks at the blocks themselves.
        steps = None if sampling.step_cache else backbone.steps(transformer, levels[:-1], embeddings, fed)

        def velocity(latents_BCHW: Tensor, t: float) -> Tensor:
            times = torch.full((len(latents_BCHW),), t, device=latents_BCHW.device)
            with transformer.cache_context(branch) if steps is None else nullcontext():  # type: ignore[operator]
                return backbone.velocity(
                    transformer if steps is None else steps.at(t),
                    latents_BCHW,
                    times,
                    embeddings,
                    fed,
                    window,
                )

        return velocity

    clamp = None
    if known_BCHW is not None:
        assert repaint_mask is not None
        clamp = flow.Clamp(known_BCHW.to(noise), noise, repaint_mask.to(noise).unsqueeze(-3))
        if sampling.context == "clean":
            assert negative is not None
            worn = layout.mask(layout.roles[-1:], stride)
            sets = active_tokens(repaint_mask, layout, stride).numpy()
            sets = token_sets.rounded_up(
                sets.reshape(-1, *sets.shape[-2:]), worn, sampling.token_bucket
            ).reshape(sets.shape)
            active = torch.from_numpy(sets).to(backbone.device)
            first = (
                product_tokens(layout, stride).to(backbone.device)
                if sampling.context_reading == "products"
                else None
            )
            within = None if left_out is None else ~left_out.to(backbone.device)
            words = max(
                states.shape[1] for one in (text, negative) for states in one.values() if states.ndim == 3
            )
            room = int(active.sum()) // (len(active) if active.ndim == 3 else 1) + words
            about = (backbone, transformer, clamp.known_BCHW, active, negative, sampling.context_lora)
            window = kept_window(*about, within, first, room=room, cache=contexts)
            if sampling.context_guidance_scale != 1.0:
                fed = 1.0
                kept = torch.from_numpy(worn).to(backbone.device)
                without_products = kept_window(*about, kept, first, room=room, cache=contexts)
    velocity = velocity_with(text, window)
    if without_products is not None and negative is not None:
        velocity = flow.guided(
            velocity, velocity_with(negative, without_products), sampling.context_guidance_scale, until
        )
    elif sampling.true_cfg_scale != 1.0:
        assert negative is not None
        velocity = flow.guided(velocity, velocity_with(negative, window), sampling.true_cfg_scale, until)
    start = noise if clamp is None else clamp.start(levels[0])
    with _steps_cached(transformer, sampling.step_cache):

        def stepped(done: int, of: int) -> None:
            progress.step("step", done, of)
            if on_step is not None:
                on_step(done, of)

        return flow.sample(velocity, start, levels, clamp, stepped)


@contextmanager
def _steps_cached(transformer: Any, threshold: float) -> Iterator[None]:
    """diffusers' FirstBlockCache on the transformer, for one sampling run; with threshold 0 nothing."""
    if threshold:
        transformer.enable_cache(FirstBlockCacheConfig(threshold))
    try:
        yield
    finally:
        if threshold:
            transformer.disable_cache()


def active_tokens(repaint_mask: Tensor, layout: PanelLayout, stride: int) -> Tensor:
    """(rows, columns) bool on the token grid: tokens with any latent to repaint. repaint_mask: (H, W), 1 =
    repaint; or a batch of both.
    """
    rows, columns = layout.size[1] // stride, layout.size[0] // stride
    *batch, height, width = repaint_mask.shape
    return repaint_mask.reshape(*batch, rows, height // rows, columns, width // columns).amax((-3, -1)) > 0


def generate_triptych(
    models: Models,
    prompts: Sequence[str],
    layout: PanelLayout | None = None,
    seeds: Sequence[int] = (0,),
    sampling: Sampling | None = None,
    products: Sequence[Mapping[str, Image.Image]] | None = None,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """Mode (a): canvases for B prompts, one seed each.

    Args:
        layout, sampling: by default what the LoRA was trained for, else what the model recommends.
        products: for each prompt the known panels by role, e.g. {"front": …, "back": …}; the other panels are
            generated beside them and they come back pixel for pixel. None or empty: the whole canvas comes
                from the prompt.

    Raises:
        InputError: a prompt the models were loaded without, or products that are no panels of the layout, or
            all of them.
        ModelError: no finite numbers come out.
    """
    assert len(prompts) == len(seeds)
    layout, sampling = layout or models.layout(), sampling or models.sampling()
    models.warn_of(sampling)
    for panels in products or ():
        if {*panels} - {*layout.roles} or {*panels} == {*layout.roles}:
            raise InputError(
                f"Photos are given of {', '.join(sorted(panels))}; the panels are {', '.join(layout.roles)}.",
                "Give photos of some of the panels, not of all; the LoRA says which there are.",
            )
    text = models.text(prompts)
    negative = models.text([""] * len(prompts)) if sampling.needs_empty_prompt else None
    unit = models.autoencoder.stride
    channels = models.backbone.latent_channels(models.transformer)
    shape = (channels, layout.size[1] // unit, layout.size[0] // unit)
    known = mask = None
    given = products or [{}] * len(prompts)
    unknown = [role for role in layout.roles if role not in given[0]]
    canvases = [
        concatenate([_panel(panels, role, layout) for role in layout.roles], layout) for panels in given
    ]
    if given[0]:
        known, _ = models.autoencoder.encode(to_pixels(canvases))
        mask = torch.from_numpy(layout.mask(unknown, unit)).float()
    # Batched canvases share one set of tokens, so what is left out of one is left out of all: only if each
    # has it as background.
    without = left_out(canvases, layout, models, sampling) if given[0] else None
    about_known = known, mask, on_step, without, models.contexts
    latents = sample_latents(
        models.backbone, models.transformer, layout, shape, text, negative, seeds, sampling, *about_known
    )
    if not given[0]:
        return to_images(models.finite(models.autoencoder.decode(models.finite(latents))))
    for role in unknown:
        for canvas, panel in zip(canvases, decoded_panel(models, latents, layout, role), strict=True):
            canvas.paste(panel, layout.box(role)[:2])
    return canvases


def decoded_panel(models: Models, latents_BCHW: Tensor, layout: PanelLayout, role: str) -> list[Image.Image]:
    """One panel of each canvas, decoded alone: a third of the work, and no colour of a known panel runs in at
    its edge.

    Raises:
        ModelError: latents or pixels that are not finite.
    """
    left, top, right, bottom = layout.box(role, models.autoencoder.stride)
    latents = models.finite(latents_BCHW[:, :, top:bottom, left:right])
    return to_images(models.finite(models.autoencoder.decode(latents)))


def _panel(given: Mapping[str, Image.Image], role: str, layout: PanelLayout) -> Image.Image:
    """A known panel. In place of an unknown one, which no repainted latent keeps, a known one: the
    autoencoder's group norms look at the whole canvas, and a grey panel would change the latents of the
    panels beside it.
    """
    return (
        given.get(role)
        or next(iter(given.values()), None)
        or Image.new("RGB", (layout.width, layout.height), (127, 127, 127))
    )


def left_out(
    canvases: Sequence[Image.Image], layout: PanelLayout, models: Models, sampling: Sampling
) -> Tensor | None:
    """The tokens of product panels that show background on every canvas, if they are to be left out."""
    if not sampling.drop_background:
        return None
    stride = models.backbone.settings.stride
    sets = [token_sets.background_of(canvas, layout, layout.roles[:-1], stride) for canvas in canvases]
    return torch.from_numpy(np.logical_and.reduce(sets))
