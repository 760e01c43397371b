"""The settings shared by all verbs that make pictures, and their conversion to a `Sampling`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from triptych.backbones.families import Family
from triptych.backbones.settings import (
    ContextMode,
    ContextPlacement,
    ContextReading,
    ModelSettings,
    family_of,
    model_class,
    model_settings,
    no_model,
)
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
from triptych.config.stage import PhotoConfig, Seed, StageConfig, TransformerConfig, expanded, seeds_from
from triptych.errors import ConfigError, InputError
from triptych.pocket.known_worlds import check_pictures
from triptych.sampling import idle_options
from triptych.wording.hub import HUB_NAME

if TYPE_CHECKING:  # they import numpy, which `--help` can do without
    from PIL import Image

    from triptych.pictures.panels import PanelLayout


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters. guidance_scale: the number fed to a guidance-distilled model; None if the
    model takes none. true_cfg_scale: classifier-free guidance by a second pass with the empty prompt; 1 is
    off.
    """

    num_inference_steps: int = 28
    guidance_scale: float | None = 3.5
    true_cfg_scale: float = 1.0
    strength: float = 1.0
    time_shift: Literal["panel", "canvas"] = "panel"
    """Tokens that the time shift counts, if it depends on them: those of one panel, or of the whole canvas as
    in diffusers. The latter leaves a triptych few steps at low noise, where texture is decided.
    """
    context: ContextMode = "noisy"
    """How known panels are shown to the model. noisy: noised like the rest and restored after every step, as
    in the paper and in diffusers. clean: read once without noise and attended to, which needs a LoRA or a
    model trained that way. native: run at every step without noise, as FLUX.2 was trained to see references.
    """
    context_placement: ContextPlacement = "canvas"
    """Where known panels stand. canvas: beside the made panels, as in the paper. reference: in pictures of
    their own, each encoded alone and at its own size; for models that know references.
    """
    active_tokens: Literal["panel", "polygon"] = "panel"
    """Reference placement: which tokens of a panel that is repainted in part are run. panel: all, and the
    known ones are restored after every step. polygon: those to repaint, which is faster and needs a LoRA. In
    both, the rest of the panel is a reference as well. (On the canvas clean context runs those to repaint.)
    """
    context_lora: bool = False
    """Clean context: whether the LoRA also adapts how known tokens are read."""
    context_reading: ContextReading = "joint"
    """Clean context: which known tokens the known tokens attend to, see `clean_context`."""
    drop_background: bool = False
    """Clean context: leave out tokens of the product panels that show plain background."""
    token_bucket: int = 1
    """Clean context: round the number of active tokens up to a multiple of this."""
    step_cache: float = 0.0
    """Threshold of diffusers' FirstBlockCache: if the output of the first block changes by less, the step
    reuses the other blocks' result of the step before. An approximation; 0 is off.
    """
    context_guidance_scale: float = 1.0
    """Clean context: guidance by a second pass without words and product panels; 1 is off. It replaces both
    other guidances: the model is then fed 1, what the LoRA saw in training.
    """
    guidance_stop: float = 1.0
    """Share of the steps after which guidance with a second pass is off."""

    def __post_init__(self) -> None:
        # Noised panels are part of the canvas, and native ones are never noised.
        fixed = {"noisy": "canvas", "native": "reference"}.get(self.context, self.context_placement)
        object.__setattr__(self, "context_placement", fixed)

    @property
    def needs_empty_prompt(self) -> bool:
        return self.true_cfg_scale != 1.0 or self.context != "noisy"


MAX_PANEL = 8192
"""Largest side of a panel in pixels; a whole canvas has at most `images.MAX_PIXELS`."""
MAX_PROMPT = 20_000
"""Limit of characters in a prompt: about ten times the length that any text encoder here reads."""


class LoadedConfig(TransformerConfig):
    """The settings of loading a model, as `Session` takes them."""

    lora: Annotated[Path | None, INPUT] = None
    """LoRA file, or a folder that holds one. Without it the base model is used."""
    lora_scale: Annotated[float, RESULT] = Field(default=1.0, ge=-100, le=100)
    """Strength of the LoRA."""
    context_cache_gib: Annotated[float, RUNNING, RARE, CLEAN_ONLY] = Field(default=4.0, ge=0, le=1e6)
    """Clean context only: device memory, in GiB, that keeps the keys and values of known panels for the next
    pictures.
    """

    def model_source(self) -> dict[str, Any]:
        """The settings that `Session` takes."""
        return {name: getattr(self, name) for name in LOADED}

    def check_model(self) -> None:
        """Raise ModelError if no model is named, or if a hub model is not available.

        The base model named in a LoRA file only appears in the hint; it is never used by itself.
        """
        if not self.model.strip():
            raise no_model(self._base_model())
        if HUB_NAME.fullmatch(self.model) and not Path(self.model).exists():
            # Otherwise its settings would only be assumed, and loading would fail later.
            model_class(self.model)

    def _base_model(self) -> str | None:
        """The base model that the LoRA's file names; None without one."""
        if self.lora is None:
            return None
        from triptych.lora.file import read_about

        return read_about(self.lora).get("base_model")


LOADED = frozenset(LoadedConfig.model_fields) - frozenset(StageConfig.model_fields)
"""The settings that decide only what is loaded."""


class SamplingConfig(LoadedConfig):
    """How to sample: model, LoRA, and the settings that change a picture."""

    how = "sampled"

    num_inference_steps: Annotated[int | None, RESULT] = Field(default=None, ge=1, le=1000)
    """Denoising steps; by default those that the model recommends."""
    guidance_scale: Annotated[float | None, RESULT] = Field(default=None, ge=0, le=1000)
    """Distilled guidance, fed to models that take it; by default the model's recommendation."""
    true_cfg_scale: Annotated[float | None, RESULT] = Field(default=None, ge=0, le=1000)
    """Classifier-free guidance with the empty prompt (1 is off); by default the model's recommendation."""
    time_shift: Annotated[Literal["panel", "canvas"], RESULT, RARE] = "panel"
    """Tokens that the time shift counts, if the model's shift depends on them: those of one panel, or of the
    whole canvas as in diffusers.
    """
    context: Annotated[Literal["auto", "noisy", "clean", "native"], RESULT] = "auto"
    """How known panels are shown to the model: noisy, noised with the canvas; clean, read once; native, at
    every step, for models that know references. auto: as in the LoRA's training, without a LoRA as the model
    recommends.
    """
    context_placement: Annotated[Literal["auto", "canvas", "reference"], RESULT, RARE] = "auto"
    """Where known panels stand: beside the made ones on the canvas, or in reference pictures of their own;
    auto: as in the LoRA's training, without a LoRA as the model recommends.
    """
    active_tokens: Annotated[Literal["panel", "polygon"], RESULT, RARE] = "panel"
    """With references: run all tokens of the worn panel, or only those of the polygon. The latter is faster
    and needs a LoRA.
    """
    context_reading: Annotated[Literal["auto", ContextReading], RESULT, RARE, CLEAN_ONLY] = "auto"
    """Clean context only: joint: all clean tokens attend to each other; products: the product panels attend
    only to each other, so they are read once for many persons; each: every picture only to itself, so that a
    garment is read once for many outfits; auto: as in the LoRA's training, joint without a LoRA.
    """
    drop_background: Annotated[bool, RESULT, RARE, CLEAN_ONLY] = False
    """Clean context only: leave out the plain background of the product photos. Faster; an approximation."""
    token_bucket: Annotated[int, RESULT, RARE, CLEAN_ONLY] = Field(default=1, ge=1, le=4096)
    """Clean context only: round the number of tokens that are run up to a multiple of this, so that compiled
    models see few sizes.
    """
    step_cache: Annotated[float, RESULT, RARE] = Field(default=0.0, ge=0, le=1)
    """Threshold of diffusers' FirstBlockCache (FLUX only; 0 is off): a step that changes less reuses the
    result of the step before. An approximation.
    """
    context_guidance_scale: Annotated[float | None, RESULT, RARE, CLEAN_ONLY] = Field(
        default=None, ge=0, le=1000
    )
    """Clean context only: guidance on the product photos, which replaces the two others (1 is off); by
    default the model's recommendation.
    """
    guidance_stop: Annotated[float, RESULT, RARE] = Field(default=1.0, ge=0, le=1)
    """Share of the steps after which guidance with a second pass (true_cfg_scale, context_guidance_scale) is
    off: 0.5 saves a quarter of all passes.
    """
    panel_width: Annotated[int | None, RESULT] = Field(default=None, ge=8, le=MAX_PANEL)
    """Panel width in pixels; by default the LoRA's, else the model's recommendation."""
    panel_height: Annotated[int | None, RESULT] = Field(default=None, ge=8, le=MAX_PANEL)
    """Panel height in pixels; by default the LoRA's, else the model's recommendation."""
    seed: Annotated[Seed, RESULT, EACH, SHARED] = 0
    """Seed of the first picture; it rises by 1 with each further picture."""

    @property
    def shows_products(self) -> bool:
        """Whether product photos are shown to the model."""
        return True

    def without_lora(self) -> Self:
        """The config for the base model alone, without settings that need a LoRA. A model that sees known
        panels clean without one keeps those about their use, but not those about reading them once.
        """
        left_out = {"lora", "lora_scale", "context", "context_placement", "active_tokens"}
        if model_settings(self.model).context == "noisy":
            left_out |= marked(type(self), CLEAN_ONLY)
        else:
            left_out |= {"context_reading", "context_cache_gib"}
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set - left_out})

    @property
    def describes_panels(self) -> bool:
        """Whether a prompt has to describe all panels, one by one. A model that knows references takes any
        sentence as long as no LoRA has taught it the captions of triptychs.
        """
        return self.lora is not None or not family_of(self.model).references

    def resolve(
        self,
        settings: ModelSettings,
        strength: float,
        trained: Mapping[str, Any],
        family: Family | None = None,
    ) -> tuple[Sampling, list[str]]:
        """Fill in every number: from this config, else from the LoRA, else from the model. Also returns
        warnings about settings that differ from the LoRA's training.

        Args:
            trained: the LoRA's metadata about its training; empty without a LoRA.
            family: the model's family; by default it is looked up, for a hub id over the network.

        Raises:
            ConfigError: a given option has no effect.
        """

        asked = {field.name: getattr(self, field.name, None) for field in fields(Sampling)}
        given = {name: value for name, value in asked.items() if value not in (None, "auto")}
        sampling = replace(recommended(settings, trained), **{**given, "strength": strength})
        self._check_placement(sampling, family)
        if getattr(self, "reference", ()):
            known = (family or family_of(self.model)).references
            idle_options.check_references(self.model, known, sampling.context, sampling.context_placement)
        run = idle_options.Run(
            self.model,
            settings,
            self.lora is not None,
            sampling.context,
            sampling.context_placement,
            sampling.context_guidance_scale,
            sampling.true_cfg_scale,
            self.shows_products,
            marked(type(self), CLEAN_ONLY),
        )
        idle_options.check_effects({name: getattr(self, name) for name in self.model_fields_set}, run)
        return sampling, unusual(sampling, trained, settings)

    def _check_placement(self, sampling: Sampling, family: Family | None) -> None:
        """Raise ConfigError for a placement that does not go with the context or the model."""
        if self.context_placement not in ("auto", sampling.context_placement):
            raise ConfigError(
                f"--context {sampling.context} has its known panels on "
                f"{'the canvas' if sampling.context_placement == 'canvas' else 'reference pictures'}.",
                f"Leave --context-placement {self.context_placement} out, or give another --context.",
            )
        if sampling.context_placement != "reference":
            return
        if not (family or family_of(self.model)).references:
            raise ConfigError(
                f"{self.model} does not know reference pictures.",
                "Leave --context native and --context-placement reference out, or use a FLUX.2-klein model.",
            )


def recommended(settings: ModelSettings, trained: Mapping[str, Any]) -> Sampling:
    """The sampling that the model's settings and the LoRA's metadata (empty without a LoRA) recommend."""
    return Sampling(
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        context_guidance_scale=settings.context_guidance_scale,
        context=trained.get("context", settings.context),
        context_placement=trained.get("context_placement", _placement_of(settings, trained)),
        context_lora=bool(trained.get("context_lora", False)),
        context_reading=trained.get("context_reading", "joint"),
    )


def _placement_of(settings: ModelSettings, trained: Mapping[str, Any]) -> ContextPlacement:
    """The placement for a LoRA that does not name one, or for no LoRA."""
    return "canvas" if "context" in trained else settings.context_placement


def unusual(sampling: Sampling, trained: Mapping[str, Any], settings: ModelSettings) -> list[str]:
    """Warnings about ways of showing known panels that differ from the LoRA's training, or without a LoRA,
    from those that the model knows.
    """
    learned = trained.get("context", settings.context)
    if not trained and sampling.context_placement == "reference" and sampling.active_tokens == "polygon":
        return ["Without a LoRA the model has never seen the polygon's tokens alone; expect worse pictures."]
    if sampling.context != learned:
        if not trained and sampling.context == "clean":
            return ["Clean context without a LoRA trained for it is an approximation; expect worse pictures."]
        if trained or learned != "noisy":
            what = "The LoRA was trained" if trained else "The model works best"
            return [f"{what} with {learned} context; with {sampling.context} context expect worse pictures."]
    placement = trained.get("context_placement", _placement_of(settings, trained))
    if sampling.context == "clean" and sampling.context_placement != placement:
        where = {"canvas": "on the canvas", "reference": "as references"}
        return [f"The LoRA was trained with known panels {where[placement]}; else expect worse pictures."]
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
    """The panels of `base`, with another width or height in pixels, if given.

    Raises:
        InputError: a side is not a multiple of `stride`, or the canvas is too large.
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


REFERENCE = "reference "
"""Prefix of a further reference's number among the hashes in a picture."""


class PictureConfig(SamplingConfig, PhotoConfig):
    """The settings of every verb that makes pictures from a prompt."""

    prompt: Annotated[str, RESULT, GIVEN, EACH] = Field(default="", max_length=MAX_PROMPT)
    """The caption of the whole triptych: a summary, then <IMAGE 1> …, <IMAGE 2> …, <IMAGE 3> …"""
    num_images_per_prompt: Annotated[int, AMOUNT] = Field(default=1, ge=1, le=64)
    """Number of pictures to make."""
    reference: Annotated[list[Path], INPUT] = []
    """Any further picture that a model of reference pictures (FLUX.2) sees after the panels' photos: the
    person once more, a texture. May be repeated; the prompt says what it is for.
    """

    @field_validator("reference", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """One path or several, with `~` expanded."""
        given = value if isinstance(value, list) else [value]
        return [expanded(path) if isinstance(path, str) else path for path in given]

    def named_references(self) -> dict[str, Path]:
        """The further references, by the names that their hashes have in a picture: `reference 1` …"""
        return {f"{REFERENCE}{number}": path for number, path in enumerate(self.reference, 1)}

    @property
    def seeds(self) -> list[int]:
        """One seed per picture. Raises ConfigError if a seed exceeds 64 bits."""
        return seeds_from(self.seed, self.num_images_per_prompt)

    def check_known(self, pictures: Mapping[Path, Image.Image]) -> None:
        """Raise InputError if the model knows only one world and a picture, by its file, is from outside it;
        with `anyway`, only warn.
        """
        named = [(path.name, image) for path, image in pictures.items()]
        check_pictures(model_settings(self.model).knows, named, "model", self.model, self.anyway)
