"""One model with its LoRA, opened: its parts on their device, and what it and the LoRA recommend."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych import progress
from triptych.backbones.contract import Autoencoder, Backbone, Text
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import Quantize
from triptych.data.captions import where_cut
from triptych.data.embeddings import stack_text
from triptych.errors import InputError, ModelError
from triptych.lora.adapter import load_lora
from triptych.lora.match import check_lora_fits
from triptych.pictures.panels import PanelLayout
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.options import Sampling
from triptych.sampling.prompts import encode_texts
from triptych.tasks import DEFAULT

log = logging.getLogger(__name__)


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
        return PanelLayout.from_dict(stored) if stored else DEFAULT.layout(own.panel_width, own.panel_height)

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
