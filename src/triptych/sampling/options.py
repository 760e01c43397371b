"""The settings that every verb which makes pictures shares, and how they become a `Sampling`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from triptych.backbones.settings import ModelSettings, model_class, model_settings, no_model
from triptych.config.marks import (
    AMOUNT,
    CLEAN_ONLY,
    EACH,
    GIVEN,
    INPUT,
    RARE,
    RESULT,
    RUNNING,
    SHARED,
    marked,
)
from triptych.config.stage import PhotoConfig, Seed, StageConfig, TransformerConfig, seeds_from
from triptych.errors import InputError
from triptych.pocket.known_worlds import check_pictures
from triptych.sampling import idle_options
from triptych.wording.hub import HUB_NAME

if TYPE_CHECKING:  # they import numpy, which `--help` can do without
    from PIL import Image

    from triptych.pictures.panels import PanelLayout

log = logging.getLogger(__name__)

ContextReading = Literal["joint", "products"]


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


MAX_PANEL = 8192
"""Largest side of a panel in pixels; a whole canvas has at most `images.MAX_PIXELS`."""
MAX_PROMPT = 20_000
"""Characters of the longest prompt: some ten times what any text encoder here reads."""


class LoadedConfig(TransformerConfig):
    """What decides which model is loaded, and how: what `Session` takes."""

    lora: Annotated[Path | None, INPUT] = None
    """LoRA file, or a folder that holds one. Without it the base model is used."""
    lora_scale: Annotated[float, RESULT] = Field(default=1.0, ge=-100, le=100)
    """Strength of the LoRA."""
    context_cache_gib: Annotated[float, RUNNING, RARE, CLEAN_ONLY] = Field(default=4.0, ge=0, le=1e6)
    """Clean context only: GiB of memory, on the device, for what was read of known panels, from one picture
    to the next.
    """


LOADED = frozenset(LoadedConfig.model_fields) - frozenset(StageConfig.model_fields)
"""The settings that decide what is loaded, and not what is made with it."""


class SamplingConfig(LoadedConfig):
    """How to sample: model, LoRA, and the settings that change a picture."""

    how = "sampled"

    num_inference_steps: Annotated[int | None, RESULT] = Field(default=None, ge=1, le=1000)
    """Denoising steps; by default what the model recommends."""
    guidance_scale: Annotated[float | None, RESULT] = Field(default=None, ge=0, le=1000)
    """Distilled guidance fed to the model, for models that take it; by default what the model recommends."""
    true_cfg_scale: Annotated[float | None, RESULT] = Field(default=None, ge=0, le=1000)
    """Classifier-free guidance on the empty prompt (1 is off); by default what the model recommends."""
    time_shift: Annotated[Literal["panel", "canvas"], RESULT, RARE] = "panel"
    """Which tokens the time shift counts, if the model's depends on them: of one panel, or of the whole
    canvas as diffusers does.
    """
    context: Annotated[Literal["auto", "noisy", "clean"], RESULT] = "auto"
    """How known panels are shown to the model; auto is what the LoRA was trained for, and noisy without one.
    """
    context_reading: Annotated[Literal["auto", "joint", "products"], RESULT, RARE, CLEAN_ONLY] = "auto"
    """Clean context only: what is shown clean attends to all that is (joint), or the product panels attend to
    each other only (products), so that they are read once for many persons; auto is what the LoRA was trained
    for, and joint without one.
    """
    drop_background: Annotated[bool, RESULT, RARE, CLEAN_ONLY] = False
    """Clean context only: leave out the plain background of the product photos. Faster; an approximation."""
    token_bucket: Annotated[int, RESULT, RARE, CLEAN_ONLY] = Field(default=1, ge=1, le=4096)
    """Clean context only: the number of tokens that are run is rounded up to a multiple of this; compiled
    models then meet few sizes.
    """
    step_cache: Annotated[float, RESULT, RARE] = Field(default=0.0, ge=0, le=1)
    """Threshold of diffusers' FirstBlockCache (FLUX only; 0 is off): steps that change less reuse the one
    before. An approximation.
    """
    context_guidance_scale: Annotated[float | None, RESULT, RARE, CLEAN_ONLY] = Field(
        default=None, ge=0, le=1000
    )
    """Clean context only: guidance on the product photos, in place of the two others (1 is off); by default
    what the model recommends.
    """
    guidance_stop: Annotated[float, RESULT, RARE] = Field(default=1.0, ge=0, le=1)
    """Part of the steps after which guidance that runs a second pass (true_cfg_scale, context_guidance_scale)
    is left off: 0.5 saves a quarter of all passes.
    """
    panel_width: Annotated[int | None, RESULT] = Field(default=None, ge=8, le=MAX_PANEL)
    """Panel width in pixels; by default the LoRA's, else what the model recommends."""
    panel_height: Annotated[int | None, RESULT] = Field(default=None, ge=8, le=MAX_PANEL)
    """Panel height in pixels; likewise."""
    seed: Annotated[Seed, RESULT, EACH, SHARED] = 0
    """Seed of the first picture; the next ones count up."""

    @property
    def shows_products(self) -> bool:
        """Whether product photos are shown to the model."""
        return True

    def without_lora(self) -> Self:
        """The same for the base model alone: what only works with a LoRA is left out."""
        left_out = {"lora", "lora_scale", "context", *marked(type(self), CLEAN_ONLY)}
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set - left_out})

    def model_source(self) -> dict[str, Any]:
        """The settings that `Session` takes."""
        return {name: getattr(self, name) for name in LOADED}

    def check_model(self) -> None:
        """Raises ModelError if no model is named, or one of the hub that is not to be had.

        What a LoRA's file names as its base is a hint, never the choice.
        """
        if not self.model.strip():
            raise no_model(_trained(self.lora).get("base_model"))
        if HUB_NAME.fullmatch(self.model) and not Path(self.model).exists():
            model_class(self.model)  # its settings would only be assumed, and the picture refused in the end

    def layout(self) -> PanelLayout:
        """The panels asked for, else those the LoRA was trained on, else the model's own.

        Raises:
            InputError: panels that do not fall on the model's grid. ModelError: a LoRA that cannot be read,
                or is for another model.
        """
        from triptych.pictures.panels import PanelLayout
        from triptych.tasks import DEFAULT

        if self.lora is not None:  # before panels that are another model's are looked at
            from triptych.lora.match import check_lora_fits

            check_lora_fits(self.model, self.lora)
        settings = model_settings(self.model)
        stored = _trained(self.lora).get("layout")
        own = DEFAULT.layout(settings.panel_width, settings.panel_height)
        base = PanelLayout.from_dict(stored) if stored else own
        return panels_of(base, self.panel_width, self.panel_height, settings.stride)

    def sampling(
        self, settings: ModelSettings, strength: float = 1.0, trained: Mapping[str, Any] | None = None
    ) -> Sampling:
        """As `resolve`, with the warnings logged. `trained` is by default what the LoRA's file says."""
        sampling, warnings = self.resolve(
            settings, strength, _trained(self.lora) if trained is None else trained
        )
        for warning in warnings:
            log.warning("%s", warning)
        return sampling

    def resolve(
        self, settings: ModelSettings, strength: float, trained: Mapping[str, Any]
    ) -> tuple[Sampling, list[str]]:
        """Every number put in: the settings asked for, else those of the LoRA and of the model. Beside them,
        warnings of what the LoRA was not trained for.

        Args:
            trained: what the LoRA says about its training; empty without one.

        Raises:
            ConfigError: an option that was given and has no effect.
        """

        def choose(own: float | None, recommended: float) -> float:
            return recommended if own is None else own

        context = trained.get("context", "noisy") if self.context == "auto" else self.context
        scale = choose(self.context_guidance_scale, settings.context_guidance_scale)
        true_cfg_scale = choose(self.true_cfg_scale, settings.true_cfg_scale)
        run = idle_options.Run(
            self.model,
            settings,
            self.lora is not None,
            context,
            scale,
            true_cfg_scale,
            self.shows_products,
            marked(type(self), CLEAN_ONLY),
        )
        idle_options.check_effects({name: getattr(self, name) for name in self.model_fields_set}, run)
        recorded = trained.get("context_reading", "joint")
        reading = recorded if self.context_reading == "auto" else self.context_reading
        sampling = Sampling(
            num_inference_steps=self.num_inference_steps or settings.num_inference_steps,
            guidance_scale=settings.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            true_cfg_scale=true_cfg_scale,
            strength=strength,
            time_shift=self.time_shift,
            context=context,
            context_lora=bool(trained.get("context_lora", False)),
            context_reading=reading,
            drop_background=self.drop_background,
            token_bucket=self.token_bucket,
            step_cache=self.step_cache,
            context_guidance_scale=scale,
            guidance_stop=self.guidance_stop,
        )
        return sampling, unusual(sampling, trained)


def unusual(sampling: Sampling, trained: Mapping[str, Any]) -> list[str]:
    """How known panels are shown otherwise than the LoRA has learned, in words."""
    learned = trained.get("context", "noisy")
    if sampling.context == "clean" and learned != "clean":
        return ["Clean context without a LoRA trained for it is an approximation; expect worse pictures."]
    if sampling.context == "noisy" and learned == "clean":
        return ["The LoRA was trained with clean context; with noisy context expect worse pictures."]
    reading = trained.get("context_reading", "joint")
    if sampling.context == "clean" and sampling.context_reading != reading:
        return [
            f"The LoRA was trained with the context reading '{reading}'; '{sampling.context_reading}' is an "
            "approximation."
        ]
    read = bool(trained.get("context_lora", False))
    if sampling.context == "clean" and sampling.context_lora != read:
        return [f"The LoRA was trained with context_lora={read}; the other way expect worse pictures."]
    return []


def panels_of(base: PanelLayout, width: int | None, height: int | None, stride: int) -> PanelLayout:
    """The panels of `base`, of another width or height in pixels if given.

    Raises:
        InputError: sides that are no multiples of `stride`, or a canvas that is too large.
    """
    from triptych.pictures.images import MAX_PIXELS

    layout = replace(base, width=width or base.width, height=height or base.height)
    across, down = layout.size
    if across * down > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS / 1e6:g} megapixels"
        raise InputError(
            f"Panels of {layout.width}×{layout.height} px make a canvas of {across}×{down} px; {limit}.",
            "Make them smaller.",
        )
    return layout.check(stride)


def _trained(lora: Path | None) -> Mapping[str, Any]:
    """What a LoRA file says about its training; nothing without one."""
    if lora is None:
        return {}
    from triptych.lora.adapter import read_about

    return read_about(lora)


class PictureConfig(SamplingConfig, PhotoConfig):
    """What every verb that makes pictures from a prompt takes."""

    prompt: Annotated[str, RESULT, GIVEN, EACH] = Field(default="", max_length=MAX_PROMPT)
    """The caption of the whole triptych: a summary, then <IMAGE 1> …, <IMAGE 2> …, <IMAGE 3> …"""
    num_images_per_prompt: Annotated[int, AMOUNT] = Field(default=1, ge=1, le=64)
    """How many pictures to make."""

    @property
    def seeds(self) -> list[int]:
        """One for each picture. Raises ConfigError if they go beyond 64 bits."""
        return seeds_from(self.seed, self.num_images_per_prompt)

    def check_known(self, pictures: Mapping[Path, Image.Image]) -> None:
        """Raises InputError if the model knows a world that a picture, by its file, is not of; with `anyway`
        only warns.
        """
        named = [(path.name, image) for path, image in pictures.items()]
        check_pictures(model_settings(self.model).knows, named, "model", self.model, self.anyway)
