"""Refuse options that were given but have no effect, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triptych.backbones.settings import ModelSettings, part_config
from triptych.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """The facts that decide whether an option has an effect."""

    model: str
    settings: ModelSettings
    has_lora: bool
    context: str
    """`noisy`, `clean` or `native`, as used in sampling."""
    context_placement: str
    context_guidance_scale: float
    true_cfg_scale: float
    shows_products: bool
    """Whether product photos are shown to the model."""
    clean_only: frozenset[str]
    """Options that have an effect with clean context only."""

    @property
    def reads_products(self) -> bool:
        return self.context != "noisy" and self.shows_products

    @property
    def guides_by_products(self) -> bool:
        return self.reads_products and self.context_guidance_scale != 1


_OFF: dict[str, Callable[[ModelSettings], tuple[Any, ...]]] = {
    "active_tokens": lambda _: ("panel",),
    "drop_background": lambda _: (False,),
    "token_bucket": lambda _: (1,),
    "context_reading": lambda _: ("auto", "joint"),
    "context_cache_gib": lambda _: (0.0, 4.0),
    "context_guidance_scale": lambda settings: (None, 1.0, settings.context_guidance_scale),
    "time_shift": lambda _: ("panel",),
    "guidance_scale": lambda settings: (None, settings.guidance_scale),
    "true_cfg_scale": lambda settings: (None, 1.0, settings.true_cfg_scale),
    "guidance_stop": lambda _: (1.0,),
    "lora_scale": lambda _: (1.0,),
}
"""By option: values that request no effect. They include the model's recommended value, because `reproduce`
gives every setting.
"""


def asks_for_something(name: str, value: Any, settings: ModelSettings) -> bool:
    """Whether a value of an option asks for an effect, or leaves everything as it is without the option."""
    return value not in _OFF.get(name, lambda _: (None, "auto"))(settings)


def check_effects(given: dict[str, Any], run: Run) -> None:
    """
    Args:
        given: the options that were set, with their values.

    Raises:
        ConfigError: an option has no effect in this run.
    """
    for name, value in given.items():
        if name in _OFF and asks_for_something(name, value, run.settings):
            reason = _reason(name, run)
            if reason:
                why, hint = reason
                raise ConfigError(f"--{name.replace('_', '-')} {value} has no effect here: {why}.", hint)


def check_references(model: str, known: bool, context: str, placement: str) -> None:
    """Raise ConfigError if further references would not be seen. known: whether the model knows references.
    context, placement: fields of `Sampling`.
    """
    if not known:
        raise ConfigError(
            f"{model} does not know reference pictures.",
            "Leave --reference out, or use a FLUX.2-klein model.",
        )
    if placement != "reference":
        raise ConfigError(
            f"A --reference is not seen here: in {context} context all photos are panels on the canvas.",
            "Leave it out, or give --context native as well.",
        )


def _reason(name: str, run: Run) -> tuple[str, str] | None:
    """Why an option has no effect, and a hint; None if it has one."""
    if name == "lora_scale" and not run.has_lora:
        return "there is no LoRA", "Give one with --lora, or leave the option out."
    if name in run.clean_only and run.context == "noisy":
        return (
            "it is for clean context, and this is noisy context",
            "Give a LoRA that was trained with --context clean, or leave it out.",
        )
    if name in ("context_reading", "context_cache_gib") and run.context == "native":
        return (
            "it is about reading known panels once, and here they are run at every step",
            "Give --context clean as well, or leave it out.",
        )
    if name == "active_tokens" and run.context_placement != "reference":
        return (
            "it is for known panels that are references, and here they are on the canvas",
            "Leave it out: on the canvas clean context always runs the tokens of the polygon alone.",
        )
    if name in run.clean_only and not run.shows_products:
        return (
            "it is about product photos, and none is given",
            "Give one with --front, or leave the option out.",
        )
    if name in ("guidance_scale", "true_cfg_scale") and run.guides_by_products:
        return (
            "guidance on the product photos takes its place",
            "Give --context-guidance-scale 1 as well, or leave the option out.",
        )
    if name == "guidance_scale" and not _takes_guidance(run):
        return (
            f"{run.model} takes no distilled guidance",
            "Give --true-cfg-scale; diffusers calls it guidance_scale here.",
        )
    if name == "guidance_stop" and not run.guides_by_products and run.true_cfg_scale == 1:
        return "no guidance runs a second pass", "Give --true-cfg-scale as well, or leave the option out."
    if (
        name == "time_shift"
        and part_config(run.model, "scheduler/scheduler_config.json").get("use_dynamic_shifting", True)
        is False
    ):
        return f"the time shift of {run.model} is fixed", "Leave the option out."
    return None


def _takes_guidance(run: Run) -> bool:
    about = part_config(run.model, "transformer/config.json")
    return run.settings.guidance_scale is not None and about.get("guidance_embeds", True) is not False
