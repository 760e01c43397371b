"""One model with its LoRA, opened: its parts on their device, its prompts, and what both recommend.

Everything is read once: the LoRA's header and hash when they are first asked for, the weights when the first
picture is made.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from triptych import progress
from triptych.backbones.contract import Autoencoder, Backbone, Text, TextEncoder
from triptych.backbones.settings import ModelSettings
from triptych.data.captions import where_cut
from triptych.data.embeddings import stack_text
from triptych.errors import ModelError
from triptych.lora.adapter import load_lora
from triptych.lora.file import LoraHeader
from triptych.pictures.panels import PanelLayout
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.options import Sampling, SamplingConfig, panels_of, unusual
from triptych.sampling.prompts import encode_texts
from triptych.store.files import sha256_file
from triptych.tasks import DEFAULT

log = logging.getLogger(__name__)


class OpenedModel:
    """A model and its LoRA. Parts that are not given are loaded when they are first needed.

    Functions that make pictures with it take its `lock` while they work: a LoRA is switched off on the shared
    layers while known panels are read, so two pictures at once would spoil each other.
    """

    def __init__(
        self,
        backbone: Backbone | Callable[[], Backbone],
        transformer: nn.Module | None = None,
        autoencoder: Autoencoder | None = None,
        texts: Mapping[str, Text] | None = None,
        *,
        settings: ModelSettings | None = None,
        lora: LoraHeader | None = None,
        lora_scale: float = 1.0,
        trained: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        context_cache_gib: float = 0.0,
        keep_text_encoder: bool = False,
    ) -> None:
        """
        Args:
            backbone: the model, or what opens it when it is first needed.
            texts: embeddings by prompt that are there already.
            settings: what the model recommends, by default what its backbone says.
            lora: is put into the transformer when that is loaded; one that is given has its LoRA.
            trained: what is known of the LoRA's training: layout, context …; by default what its file says.
            options: the model's name and other options of it that a picture carries.
            context_cache_gib: memory on the device, in GiB, for keys and values of known panels from one
                picture to the next.
            keep_text_encoder: whether the text encoder stays loaded after it was used.
        """
        self._backbone = backbone
        self.settings = settings or self.backbone.settings
        self.texts = dict(texts or {})
        self.lora = lora
        self.lora_scale = lora_scale
        self.trained = dict(trained if trained is not None else lora.about if lora else {})
        self.contexts = ContextCache(int(context_cache_gib * 2**30))
        self.warnings: dict[str, str] = {}
        """By prompt, for those that the text encoder cuts: where."""
        self.lock = threading.RLock()
        self.options = {"lora_scale": lora_scale, **(options or {"model": self.backbone.model})}
        """What a picture says about the model."""
        self._transformer, self._autoencoder = transformer, autoencoder
        self._keeps_encoder = keep_text_encoder
        self._encoder: TextEncoder | None = None
        self._said: set[str] = set()

    @cached_property
    def backbone(self) -> Backbone:
        """The model's family at work. Raises ModelError, see `load_backbone`."""
        return self._backbone() if callable(self._backbone) else self._backbone

    def load(self) -> None:
        """Load what is missing of transformer (with its LoRA) and autoencoder.

        Raises:
            ModelError: see `Backbone.load_transformer` and `load_lora`.
        """
        with self.lock:
            if self._transformer is None:
                progress.doing("loading the model")
                transformer = self.backbone.load_transformer()
                if self.lora is not None:
                    load_lora(transformer, self.lora.path, self.lora_scale)
                self._transformer = transformer
            if self._autoencoder is None:
                self._autoencoder = self.backbone.load_autoencoder()

    @property
    def transformer(self) -> nn.Module:
        self.load()
        assert self._transformer is not None
        return self._transformer

    @property
    def autoencoder(self) -> Autoencoder:
        self.load()
        assert self._autoencoder is not None
        return self._autoencoder

    def encode(self, prompts: Sequence[str]) -> None:
        """Make the embeddings of those prompts that are new, and of the empty prompt.

        The text encoder (9.5 GB for FLUX.1-dev) is loaded for it, and gone again afterwards unless it is to
        be kept. Before the first picture it is alone on the device: encode what is known by then.

        Raises:
            ModelError: it cannot be loaded.
        """
        with self.lock:
            new = [prompt for prompt in dict.fromkeys(["", *prompts]) if prompt not in self.texts]
            if not new:
                return
            encoder = self._encoder or self.backbone.load_text_encoder()
            limit = self.settings.max_sequence_length
            self.texts |= encode_texts(encoder, new, limit)
            cut = {prompt: where_cut(prompt, limit, encoder.count_tokens) for prompt in new}
            self.warnings |= {prompt: words for prompt, words in cut.items() if words}
            self._encoder = encoder if self._keeps_encoder else None
            del encoder
            if self.backbone.device.type == "cuda":
                torch.cuda.empty_cache()

    def text(self, prompts: Sequence[str]) -> Text:
        """Embeddings of a batch of prompts, on the device. Raises ModelError, see `encode`."""
        self.encode(prompts)
        return self.backbone.to_device(stack_text([self.texts[prompt] for prompt in prompts]))

    def layout(self, width: int | None = None, height: int | None = None) -> PanelLayout:
        """The panels the LoRA was trained on, else those the model works best with; of another width or
        height in pixels, if given.

        Raises:
            InputError: sides that do not fall on the model's grid, or a canvas that is too large.
        """
        stored, own = self.trained.get("layout"), self.settings
        usual = DEFAULT.layout(own.panel_width, own.panel_height)
        base = PanelLayout.from_dict(stored) if stored else usual
        return panels_of(base, width, height, own.stride)

    def sampling(self, **changes: Any) -> Sampling:
        """How to sample as the model and the LoRA recommend it, with `changes`: fields of `Sampling`."""
        own, trained = self.settings, self.trained
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

    def resolved(self, config: SamplingConfig, strength: float = 1.0) -> Sampling:
        """How to sample by the options of a config, which belong to this model; what is odd is logged once.

        Raises:
            ConfigError: an option that was given and has no effect.
        """
        sampling, warnings = config.resolve(self.settings, strength, self.trained)
        for warning in warnings:
            self.warn(warning)
        return sampling

    def warn_of(self, sampling: Sampling) -> None:
        """Say it once if known panels are shown otherwise than the LoRA has learned."""
        for warning in unusual(sampling, self.trained):
            self.warn(warning)

    def warn(self, message: str) -> None:
        """Log a warning, if it was not logged before."""
        if message not in self._said:
            self._said.add(message)
            log.warning("%s", message)

    @cached_property
    def lora_sha256(self) -> str:
        """Hash of the LoRA's file, hex."""
        assert self.lora is not None
        return sha256_file(self.lora.path)

    def finite(self, values: Tensor) -> Tensor:
        """`values`, latents or pixels.

        Raises:
            ModelError: some are not finite numbers, and would become black.
        """
        if not torch.isfinite(values).all():
            if self.lora is not None:
                raise ModelError(
                    f"With the LoRA {self.lora.path} the model makes numbers that are not finite, and no "
                    "picture.",
                    "Lower --lora-scale, or use another LoRA.",
                )
            raise ModelError(
                "The model makes numbers that are not finite, and no picture.",
                "Try --dtype fp32, or less guidance.",
            )
        return values
