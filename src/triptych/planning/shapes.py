"""A model's parts from its configs alone: each part as a module on the meta device, and its exact counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.backbones.contract import Autoencoder, Backbone, Text
from triptych.backbones.known import known_index, known_models
from triptych.backbones.registry import BACKBONES
from triptych.backbones.settings import (
    ModelSettings,
    model_class,
    model_index,
    model_settings,
    recommended_settings,
    resolve_model,
)
from triptych.compute.blocks import linear_layers
from triptych.errors import ModelError
from triptych.pictures.panels import PanelLayout


@dataclass(frozen=True)
class Weights:
    """Counts of numbers in a transformer. total: all, including position tables (which are no parameters).
    linear: those in the blocks' linear layers, which can be quantised. largest: those in the largest of these
    layers. blocks: those in each block, in running order.
    """

    total: int
    linear: int
    largest: int
    blocks: tuple[int, ...]


@dataclass(eq=False)
class ModelShapes:
    """A model as its configs describe it. configs: by subfolder (`transformer`, `vae`, `text_encoder` …)."""

    model: str
    family: type[Backbone]
    configs: dict[str, dict[str, Any]]
    settings: ModelSettings
    distilled: bool = False
    """Whether the model is distilled to few steps, see `Family.distilled`."""

    def backbone(self, dtype: torch.dtype) -> Backbone:
        """The family's own code on the meta device, which reads no file of the model. Without the scheduler's
        config the noise levels differ, but memory and arithmetic are the same.
        """
        return self.family.without_files(self.model, dtype, self.settings)

    def build(self, part: str, dtype: torch.dtype) -> nn.Module:
        """One part on the meta device, frozen, in eval mode.

        Raises:
            ModelError: the config does not describe such a part.
        """
        config = self.configs[part]
        try:
            with torch.device("meta"):
                if part == "transformer":
                    module = self.family.transformer_class.from_config(config)
                elif part == "vae":
                    module = self.family.autoencoder_class.model_class.from_config(config)
                else:
                    kind = self.family.text_encoder_class.parts[part].model_class
                    module = kind(kind.config_class(**config))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The config of {part} of {self.model} cannot be used: {error!r}.", "Is the folder complete?"
            ) from error
        return nn.Module.to(module, dtype).eval().requires_grad_(False)

    def autoencoder(self, dtype: torch.dtype) -> Autoencoder:
        """The family's own autoencoder around a module on the meta device."""
        return self.family.autoencoder_class(self.build("vae", dtype))

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Count of parameters in each part."""
        return {
            part: sum(p.numel() for p in self.build(part, torch.float32).parameters())
            for part in self.configs
        }

    @property
    def text_encoders(self) -> list[str]:
        return [*self.family.text_encoder_class.parts]

    @cached_property
    def weights(self) -> Weights:
        transformer = self._transformer
        blocks = self.family.blocks(transformer)
        linear = [layer.weight.numel() for layer in linear_layers(blocks).values()]
        return Weights(
            total=self.parameters["transformer"] + sum(buffer.numel() for buffer in transformer.buffers()),
            linear=sum(linear),
            largest=max(linear),
            blocks=tuple(sum(p.numel() for p in block.parameters()) for block in blocks.values()),
        )

    def lora_parameters(self, rank: int) -> int:
        """Count of parameters in a LoRA: the sum of rank × (inputs + outputs) over the layers it adapts."""
        return rank * self._sides

    @cached_property
    def _sides(self) -> int:
        transformer = self._transformer
        layers = [transformer.get_submodule(name) for name in self.family.lora_layers(transformer)]
        return sum(int(layer.in_features) + int(layer.out_features) for layer in layers)  # type: ignore[arg-type,misc]

    @property
    def latent_stride(self) -> int:
        """Side of a latent cell in pixels."""
        return self.family.family.latent_stride(self.configs["vae"])

    def image_tokens(self, layout: PanelLayout) -> int:
        """Number of image tokens of the whole canvas."""
        return (layout.size[0] // self.settings.stride) * (layout.size[1] // self.settings.stride)

    def text_tokens(self, length: int) -> int:
        """Number of text tokens that the transformer gets for captions of `length` tokens."""
        return self.family.text_tokens(self.text(length, 1, torch.float32))

    def latents(self, layout: PanelLayout, batch: int) -> Tensor:
        """(B, C, H, W) of the canvas, on the meta device."""
        width, height = (side // self.latent_stride for side in layout.size)
        return torch.empty(batch, self._latent_channels, height, width, device="meta")

    @cached_property
    def _latent_channels(self) -> int:
        return self.backbone(torch.float32).latent_channels(self._transformer)

    @cached_property
    def _transformer(self) -> nn.Module:
        """A shared transformer to read from; callers that change one must build their own."""
        return self.build("transformer", torch.float32)

    def text(self, length: int, batch: int, dtype: torch.dtype) -> Text:
        """Embeddings of a batch of captions, on the meta device."""
        return {
            name: torch.empty(batch, *shape, device="meta", dtype=dtype)
            for name, shape in self.family.text_shapes(self._transformer, length).items()
        }


@cache
def model_shapes(model: str) -> ModelShapes:
    """The shapes of `pocket`, of a diffusers folder (its configs suffice), or of a hub model in
    `known_models`.

    Raises:
        ModelError: the model is unknown, its family has no backbone, or a config is missing or damaged.
    """
    known = known_models()
    folder = Path(resolve_model(model))
    if folder.is_dir():
        pipeline = model_class(model)
        family = _family(model, pipeline)
        configs = {part: _read(folder / part / "config.json") for part in _parts(family)}
        distilled = family.family.distilled(model_index(model))
        return ModelShapes(model, family, configs, model_settings(model), distilled)
    if model not in known:
        raise ModelError(
            f"The shapes of {model} are unknown, and `plan` downloads nothing.",
            f"Give a folder with its configs, or one of {', '.join(known)}.",
        )
    pipeline = known[model]["pipeline"]
    family = _family(model, pipeline)
    configs = {part: known[model]["parts"][part] for part in _parts(family)}
    index = known_index(model)
    settings = recommended_settings(family.family, index)
    return ModelShapes(model, family, configs, settings, family.family.distilled(index))


def _parts(family: type[Backbone]) -> list[str]:
    """Subfolders of a model that have weights."""
    return ["transformer", "vae", *family.text_encoder_class.parts]


def _family(model: str, pipeline: str) -> type[Backbone]:
    if pipeline not in BACKBONES:
        raise ModelError(
            f"{model} is a {pipeline}, which has no backbone here.", f"Known: {', '.join(sorted(BACKBONES))}."
        )
    return BACKBONES[pipeline]


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("it is no object with keys")
        return about
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}.", "A model folder has a config.json in every part."
        ) from error
