"""SamplingConfig: the settings that every verb which makes pictures shares, and how they become a `Sampling`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Literal

from pydantic import Field

from triptych.backbones.settings import ModelSettings, model_settings
from triptych.config import StageConfig
from triptych.inference import Sampling
from triptych.lora import lora_file, read_lora
from triptych.panels import PanelLayout
from triptych.store import sha256_file

log = logging.getLogger(__name__)


class SamplingConfig(StageConfig):
    """What every verb that makes pictures takes."""

    prompt: str = ""
    """The caption of the whole triptych: a summary, then <IMAGE 1> …, <IMAGE 2> …, <IMAGE 3> …"""
    lora: Path | None = None
    """LoRA file, or a folder that holds one. Without it the base model is used."""
    lora_scale: float = 1.0
    """Strength of the LoRA."""
    model: str = "pocket"
    """`pocket`, a diffusers folder, or a hub id such as black-forest-labs/FLUX.1-dev."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps; by default what the model recommends."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Distilled guidance fed to the model; by default what the model recommends."""
    true_cfg_scale: float | None = Field(default=None, ge=0)
    """Classifier-free guidance on the empty prompt (1 is off); by default what the model recommends."""
    time_shift: Literal["panel", "canvas"] = "panel"
    """Which tokens the time shift counts: of one panel, or of the whole canvas as diffusers does."""
    context: Literal["auto", "noisy", "clean"] = "auto"
    """How known panels are shown to the model; auto is what the LoRA was trained for, and noisy without one."""
    context_guidance_scale: float | None = Field(default=None, ge=0)
    """Clean context only: guidance on the product photos instead of the words (1 is off); by default what the model recommends."""
    panel_width: int | None = Field(default=None, ge=8)
    """Panel width in pixels; by default the LoRA's, else what the model recommends."""
    panel_height: int | None = Field(default=None, ge=8)
    """Panel height in pixels; likewise."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first picture; the next ones count up."""
    num_images_per_prompt: int = Field(default=1, ge=1, le=64)
    """How many pictures to make."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the model."""

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_images_per_prompt))

    def layout(self) -> PanelLayout:
        """The panels asked for, else those the LoRA was trained on, else the model's own.

        Raises:
            InputError: panels that do not fall on the model's grid. ModelError: a LoRA that cannot be read.
        """
        settings = model_settings(self.model)
        stored = read_lora(self.lora)[1].get("layout") if self.lora else None
        base = PanelLayout.from_dict(stored) if stored else PanelLayout(settings.panel_width, settings.panel_height)
        return PanelLayout(self.panel_width or base.width, self.panel_height or base.height, base.roles, base.columns).check(
            settings.stride
        )

    def sampling(self, settings: ModelSettings, strength: float = 1.0) -> Sampling:
        def choose(own: float | None, recommended: float) -> float:
            return recommended if own is None else own

        trained = read_lora(self.lora)[1] if self.lora else {}
        context = trained.get("context", "noisy") if self.context == "auto" else self.context
        if context == "clean" and trained.get("context") != "clean":
            log.warning("Clean context without a LoRA trained for it is an approximation; expect worse pictures.")
        return Sampling(
            num_inference_steps=self.num_inference_steps or settings.num_inference_steps,
            guidance_scale=choose(self.guidance_scale, settings.guidance_scale),
            true_cfg_scale=choose(self.true_cfg_scale, settings.true_cfg_scale),
            strength=strength,
            time_shift=self.time_shift,
            context=context,
            context_lora=bool(trained.get("context_lora", False)),
            context_guidance_scale=choose(self.context_guidance_scale, settings.context_guidance_scale),
        )

    def provenance(self, verb: str, seed: int, photos: dict[str, Path | None]) -> dict[str, str]:
        """Text chunks for the PNG: every setting, and hashes (not paths) of what went in."""
        hidden = {*StageConfig.model_fields, *photos, "lora", "out", "device"}
        settings = {k: v for k, v in self.model_dump(mode="json").items() if k not in hidden}
        sources = {name: sha256_file(path) for name, path in photos.items() if path is not None}
        if self.lora is not None:
            sources["lora"] = sha256_file(lora_file(self.lora))
        settings["model"] = Path(self.model).name if Path(self.model).exists() else self.model
        about = {"verb": verb, **settings, "seed": seed, "sha256": sources}
        return {"Software": "triptych", "triptych": json.dumps(about, sort_keys=True)}
