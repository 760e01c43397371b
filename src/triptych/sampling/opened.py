"""An open model with its LoRA: its loaded parts, its encoded prompts, and the recommended settings.

Everything is read once: the LoRA's header and hash on first request, the weights for the first picture.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from triptych import progress
from triptych.backbones.contract import Autoencoder, Backbone, Text, TextEncoder
from triptych.backbones.settings import ModelSettings
from triptych.compute.devices import give_back
from triptych.compute.swap import aside
from triptych.data.captions import where_cut
from triptych.data.embeddings import stack_text
from triptych.errors import ModelError
from triptych.lora.adapter import load_lora
from triptych.lora.file import LoraHeader
from triptych.pictures.panels import PanelLayout
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.idle_options import check_references
from triptych.sampling.options import Sampling, SamplingConfig, panels_of, recommended, unusual
from triptych.sampling.prompts import encode_texts
from triptych.store.files import sha256_file
from triptych.tasks import DEFAULT, layout_with

log = logging.getLogger(__name__)


class OpenedModel:
    """A model and its LoRA. Parts that are not given are loaded at first use.

    A function that makes pictures holds the `lock` while it works: the LoRA is switched off on the shared
    layers while known panels are read, so two pictures at the same time would corrupt each other.
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
            backbone: the model, or a function that opens it at first use.
            texts: embeddings that exist already, by prompt.
            settings: the model's recommended settings; by default those of its backbone.
            lora: the LoRA to add to the transformer when it is loaded. A `transformer` that is given must
                have its LoRA already.
            trained: metadata of the LoRA's training (layout, context …); by default that of its file.
            options: the model's name and its other options, as recorded in pictures.
            context_cache_gib: device memory, in GiB, that keeps the keys and values of known panels for the
                next pictures.
            keep_text_encoder: whether the text encoder stays loaded after use.
        """
        self._backbone = backbone
        self.settings = settings or self.backbone.settings
        self.texts = dict(texts or {})
        self.lora = lora
        self.lora_scale = lora_scale
        self.trained = dict(trained if trained is not None else lora.about if lora else {})
        self.contexts = ContextCache(int(context_cache_gib * 2**30))
        self.warnings: dict[str, str] = {}
        """For each prompt that the text encoder cuts, a warning that says where."""
        self.lock = threading.RLock()
        self.options = {"lora_scale": lora_scale, **(options or {"model": self.backbone.model})}
        """The model's part of a picture's settings."""
        self._transformer, self._autoencoder = transformer, autoencoder
        self._keeps_encoder = keep_text_encoder
        self._encoder: TextEncoder | None = None
        self._said: set[str] = set()

    @cached_property
    def backbone(self) -> Backbone:
        """The model's backbone. Raises ModelError, see `load_backbone`."""
        return self._backbone() if callable(self._backbone) else self._backbone

    @property
    def describes_panels(self) -> bool:
        """Whether prompts describe all panels, see `SamplingConfig.describes_panels`."""
        return self.lora is not None or not self.backbone.family.references

    def load(self) -> None:
        """Load the transformer (with its LoRA) and the autoencoder, if they are not loaded yet.

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

    def give_back(self) -> None:
        """Give memory of the device that nothing uses back to it."""
        give_back(self.backbone.device)

    @property
    def loaded(self) -> bool:
        """Whether the transformer's weights are in memory."""
        return self._transformer is not None

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
        """Encode the prompts that are new, and the empty prompt.

        This loads the text encoder (9.5 GB for FLUX.1-dev), and unloads it afterwards unless it is to be
        kept. Before the first picture it is alone on the device, so encode the prompts known by then early;
        later the transformer waits in RAM meanwhile.

        Raises:
            ModelError: the text encoder cannot be loaded.
        """
        with self.lock:
            new = [prompt for prompt in dict.fromkeys(["", *prompts]) if prompt not in self.texts]
            if not new:
                return
            waits = self._transformer if not self._keeps_encoder else None
            with aside(waits) if waits is not None else nullcontext():
                encoder = self._encoder or self.backbone.load_text_encoder()
                limit = self.settings.max_sequence_length
                self.texts |= encode_texts(encoder, new, limit)
                cut = {prompt: where_cut(prompt, limit, encoder.count_tokens) for prompt in new}
                self.warnings |= {prompt: words for prompt, words in cut.items() if words}
                self._encoder = encoder if self._keeps_encoder else None
                del encoder
                self.give_back()

    def forget_texts(self, keep: int) -> None:
        """Forget the embeddings of all but the last `keep` prompts, 4 MB each for FLUX.1-dev; the empty
        prompt's stay.
        """
        with self.lock:
            for prompt in [prompt for prompt in self.texts if prompt][: -keep or None]:
                del self.texts[prompt]
                self.warnings.pop(prompt, None)

    def text(self, prompts: Sequence[str]) -> Text:
        """Embeddings of a batch of prompts, on the device. Raises ModelError, see `encode`."""
        self.encode(prompts)
        return self.backbone.to_device(stack_text([self.texts[prompt] for prompt in prompts]))

    def layout(
        self, width: int | None = None, height: int | None = None, photos: Collection[str] = ()
    ) -> PanelLayout:
        """The panels that the LoRA was trained on, else those that the model recommends; with another width
        or height in pixels, if given. photos: roles of photos that are given; a task that can do without some
        panels then leaves the others out.

        Raises:
            InputError: a side is not on the model's grid, or the canvas is too large.
        """
        stored, own = self.trained.get("layout"), self.settings
        usual = DEFAULT.layout(own.panel_width, own.panel_height)
        base = PanelLayout.from_dict(stored) if stored else usual
        return panels_of(layout_with(base, photos, trained=bool(stored)), width, height, own.stride)

    def sampling(self, **changes: Any) -> Sampling:
        """The sampling that the model and the LoRA recommend, with `changes` to fields of `Sampling`."""
        return replace(recommended(self.settings, self.trained), **changes)

    def resolved(self, config: SamplingConfig, strength: float = 1.0) -> Sampling:
        """The sampling for the options of a config for this model. Unusual values are logged once.

        Raises:
            ConfigError: a given option has no effect.
        """
        sampling, warnings = config.resolve(self.settings, strength, self.trained)
        for warning in warnings:
            self.warn(warning)
        return sampling

    def warn_of(self, sampling: Sampling) -> None:
        """Warn once if known panels are shown in another way than in the LoRA's training."""
        for warning in unusual(sampling, self.trained, self.settings):
            self.warn(warning)

    def check_references(self, sampling: Sampling) -> None:
        """Raise ConfigError if further references would not be seen."""
        known = self.backbone.family.references
        check_references(self.backbone.model, known, sampling.context, sampling.context_placement)

    def warn(self, message: str) -> None:
        """Log a warning, unless it was logged before."""
        if message not in self._said:
            self._said.add(message)
            log.warning("%s", message)

    @cached_property
    def lora_sha256(self) -> str:
        """The sha256 of the LoRA's file, in hex."""
        assert self.lora is not None
        return sha256_file(self.lora.path)

    def finite(self, values: Tensor) -> Tensor:
        """Return `values` (latents or pixels) if all are finite.

        Raises:
            ModelError: some values are not finite, and would become black pixels.
        """
        if not torch.isfinite(values).all():
            if self.lora is not None:
                raise ModelError(
                    f"With the LoRA {self.lora.path} the model's output is not finite, so there is no "
                    "picture.",
                    "Lower --lora-scale, or use another LoRA.",
                )
            raise ModelError(
                "The model's output is not finite, so there is no picture.",
                "Try --dtype fp32, or less guidance.",
            )
        return values
