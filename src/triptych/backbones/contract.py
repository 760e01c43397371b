"""The contract of a model family. All code outside `backbones/` uses a family through this interface alone.

Latents are (B, C, H, W) in the space that the transformer works in, t is in [0, 1] with 1 = noise, and
velocity = noise − data. Packing to tokens, position ids, the scaling of t by 1000, pooled vectors and
guidance embeddings stay inside a family's folder. Other code does not know the names of a family's blocks,
text tensors or text encoders; it asks `blocks`, `text_tokens`, `text_shapes` and `TextEncoder.parts`.

Legend: B batch, C latent channels, H and W latent rows and columns, T steps, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from triptych.backbones.checkpoint import (
    check_autoencoder,
    check_encoder,
    check_transformer,
    fingerprint,
    opening,
    transformer_folder,
)
from triptych.backbones.context import Context, Reference, Window
from triptych.backbones.families import Family
from triptych.backbones.settings import ModelSettings, model_settings
from triptych.compute import cpu
from triptych.compute.blocks import blocks_of, linear_layers
from triptych.compute.modulation import PremodulatedTransformer
from triptych.compute.quantize import load_quantized
from triptych.compute.sending import sent
from triptych.compute.swap import place
from triptych.config.stage import Quantize
from triptych.errors import ModelError

Text = dict[str, Tensor]
"""Text embeddings of a batch, one tensor per name, batch first. Each family chooses the names. Floating-point
tensors are cast to the model's dtype; others (a mask, token numbers) keep their dtype.
"""


@dataclass(frozen=True)
class EncoderPart:
    """One text encoder in a model's folder."""

    model_class: Any
    """transformers' class."""
    tokens: int | None = None
    """Number of tokens that every prompt is padded or cut to; None: `max_sequence_length`."""
    planned: Callable[[int], Mapping[str, Any]] = lambda tokens: {}
    """Its further inputs for a prompt of so many tokens, without data: `plan` runs it so."""


class TextEncoder(ABC):
    """Turns prompts into embeddings. `parts`: the encoders by their subfolder in the model."""

    parts: ClassVar[Mapping[str, EncoderPart]]

    @abstractmethod
    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None: ...

    @abstractmethod
    def encode(self, prompts: Sequence[str], max_sequence_length: int) -> Text:
        """Embeddings of a batch of prompts. Prompts are cut at `max_sequence_length` tokens."""

    @abstractmethod
    def count_tokens(self, prompt: str) -> int:
        """Length of a prompt in the tokens that `max_sequence_length` counts, end token included.
        `captioning.prompt_tokens` counts the same without weights, by `Family.prompt_tokenizer`.
        """


class Autoencoder(ABC):
    """Turns pixels into latents and back. `model_class`: diffusers' class. `stride`: side of a cell in
    pixels.
    """

    model_class: ClassVar[Any]
    stride: int
    vae: Any
    """The autoencoder itself, of class `model_class`."""

    @abstractmethod
    def __init__(self, vae: Any) -> None: ...

    @classmethod
    def load(cls, model: str, device: torch.device, dtype: torch.dtype) -> Self:
        """The autoencoder of a model, on the device.

        Raises:
            ModelError: the checkpoint lacks tensors of the model that its config describes.
        """
        check_autoencoder(cls.model_class, model)
        vae = cls.model_class.from_pretrained(model, subfolder="vae", torch_dtype=dtype, use_safetensors=True)
        return cls(vae.to(device).eval())

    @abstractmethod
    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H·stride, W·stride) in [−1, 1] → mean and standard deviation, each (B, C, H, W),
        float32.
        """

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents (B, C, H, W) → pixels (B, 3, H·stride, W·stride) in [−1, 1], float32."""


@dataclass
class Backbone(ABC):
    """One model of a family: its location and settings, how each part is loaded, and how each is run."""

    model: str
    """Folder or hub id."""
    device: torch.device
    dtype: torch.dtype
    """Type of the weights and of the matrix products."""
    quantize: Quantize = "none"
    """Format of the transformer's weights; `none` keeps `dtype`; see `compute/quantize.py`."""
    blocks_to_swap: int = 0
    """Number of the transformer's blocks that stay in RAM and are on the device only while they run; see
    `compute/swap.py`.
    """

    family: ClassVar[Family]
    name: ClassVar[str]
    """The family's name."""
    block_lists: ClassVar[tuple[str, ...]]
    """Paths of the transformer's module lists that hold its blocks, in running order. The lists of larger
    blocks come first, so that these are swapped first.
    """
    time_embedding: ClassVar[str]
    """Path of the transformer's module whose output `conditioning` returns."""
    shared_modulation: ClassVar[tuple[str, ...]] = ()
    """Paths of modules outside the blocks that turn the output of `time_embedding` into scales, shifts and
    gates for many blocks at once.
    """
    lora_targets: ClassVar[tuple[str, ...]]
    """Path endings, inside a block, of the linear layers that a LoRA adapts."""

    step_cache: ClassVar[bool] = False
    """Whether diffusers' FirstBlockCache works with the transformer."""
    encoders: ClassVar[tuple[str, ...]]
    """Subfolders of the parts that compute embeddings of pictures and prompts: autoencoder, text encoders,
    tokenizers.
    """
    text_encoder_class: ClassVar[type[TextEncoder]]
    autoencoder_class: ClassVar[type[Autoencoder]]
    transformer_class: ClassVar[Any]
    """diffusers' class."""

    @classmethod
    def without_files(cls, model: str, dtype: torch.dtype, settings: ModelSettings) -> Self:
        """The family's code on the meta device, for tensors without data. It reads no file: the caller gives
        the settings, and the time is not shifted.
        """
        backbone = cls(model, torch.device("meta"), dtype)
        backbone.settings, backbone.scheduler_config = settings, {}
        return backbone

    @cached_property
    def encoder_fingerprint(self) -> str:
        """A hash that changes when embeddings must be recomputed."""
        return fingerprint(self.model, self.encoders)

    @cached_property
    def settings(self) -> ModelSettings:
        """The settings that the model recommends. Cached: every training step asks for them, and for a hub id
        the answer comes over the network.
        """
        return model_settings(self.model)

    def load_text_encoder(self) -> TextEncoder:
        with opening(self.model):
            for part in self.text_encoder_class.parts:
                check_encoder(self.model, part, self.device)
            return self.text_encoder_class(self.model, self.device, self.dtype)

    def load_autoencoder(self) -> Autoencoder:
        with opening(self.model):
            check_encoder(self.model, "vae", self.device)
            return self.autoencoder_class.load(self.model, self.device, self.dtype)

    def load_transformer(self) -> nn.Module:
        """The transformer: frozen, in eval mode, on the device except for swapped blocks."""
        load = {"torch_dtype": self.dtype, "use_safetensors": True}
        with opening(self.model):
            check_transformer(self.transformer_class, self.model)
            if self.quantize == "none":
                # Without `device_map`: diffusers maps the files into memory, so that weights in their own
                # dtype go to a card from the file's pages; accelerate would add its hooks.
                transformer: nn.Module = self.transformer_class.from_pretrained(
                    self.model, subfolder="transformer", **load
                )
            else:
                folder = transformer_folder(self.model)
                with torch.device("meta"):
                    empty = self.transformer_class.from_config(self.transformer_class.load_config(folder))
                transformer = load_quantized(
                    empty, self.blocks(empty), folder, self.quantize, self.device, self.dtype
                )
            if self.device.type == "cpu":
                cpu.install(transformer)
            swapped = [*self.blocks(transformer).values()][: self.blocks_to_swap]
            return place(transformer.eval().requires_grad_(False), self.device, swapped)

    @classmethod
    def blocks(cls, transformer: nn.Module) -> dict[str, nn.Module]:
        """The transformer's blocks by path, in running order. These are the modules that get quantised,
        swapped, sharded, adapted by a LoRA and premodulated.

        Raises:
            ModelError: `block_lists` does not name the blocks.
        """
        try:
            return blocks_of(transformer, cls.block_lists)
        except ValueError as error:
            raise ModelError(
                f"The blocks of the family {cls.name} are not found: {error}.",
                "Is diffusers of the version that triptych asks for? Else `block_lists` of the family is "
                "wrong.",
            ) from error

    @classmethod
    def lora_layers(cls, transformer: nn.Module) -> list[str]:
        """Paths of the linear layers that a LoRA adapts."""
        return [path for path in linear_layers(cls.blocks(transformer)) if cls.is_lora_layer(path)]

    @classmethod
    def is_lora_layer(cls, path: str) -> bool:
        """Whether a LoRA adapts the linear layer at this path of the transformer."""
        in_block = path.startswith(tuple(f"{blocks}." for blocks in cls.block_lists))
        return in_block and path.endswith(tuple(f".{target}" for target in cls.lora_targets))

    @abstractmethod
    def latent_channels(self, transformer: nn.Module) -> int:
        """Number of channels C of the latents outside the transformer."""

    @classmethod
    @abstractmethod
    def text_shapes(cls, transformer: nn.Module, max_sequence_length: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one prompt's embeddings by name, without batch dimension,
        from the transformer's config.
        """

    @staticmethod
    @abstractmethod
    def text_tokens(text: Text) -> int:
        """Number of text tokens that the transformer runs in addition to the image tokens."""

    @abstractmethod
    def velocity(
        self,
        transformer: nn.Module,
        latents_BCHW: Tensor,
        t_B: Tensor,
        text: Text,
        guidance_scale: float | None,
        window: Window | None = None,
    ) -> Tensor:
        """The transformer's velocity (B, C, H, W) at times t (B,) in [0, 1]; if a window is given, 0 outside
        its active tokens.

        guidance_scale: the number fed to a guidance-distilled model; other models ignore it. Only families
        with `Family.references` run references `beside` the active tokens.

        Raises:
            ModelError: the canvas is too large for the model.
        """

    def premodulated(
        self, transformer: nn.Module, times: Sequence[float], text: Text, guidance_scale: float | None
    ) -> PremodulatedTransformer:
        """The transformer with its modulation computed in advance for each step of a run over these times.
        The modulation depends on time, text and guidance alone.
        """
        conditioning = self.conditioning(transformer, torch.tensor(times), text, guidance_scale)
        return PremodulatedTransformer(
            transformer,
            self.blocks(transformer),
            self.time_embedding,
            times,
            conditioning,
            self.shared_modulation,
        )

    @abstractmethod
    def conditioning(
        self, transformer: nn.Module, t_T: Tensor, text: Text, guidance_scale: float | None
    ) -> Tensor:
        """The output of the transformer's `time_embedding` at each of these times, equal to its value inside
        `velocity` for this text and guidance: (T, B, D).
        """

    @abstractmethod
    def read(
        self,
        transformer: nn.Module,
        references: Sequence[Reference],
        empty: Text,
        before: Context | None = None,
    ) -> Context:
        """Run the known tokens of references once, at t = 0 and without words, for `Window.context`.

        They attend to each other and to the tokens of `before`, which were read earlier. Returns the keys and
        values of the known tokens alone.

        references: one of frame 0, which is the canvas; or for a family with `Family.references`, any.
        empty: embeddings of the empty prompt. A family takes its other inputs (a pooled vector) from these,
        so that a context does not depend on any prompt.
        """

    @abstractmethod
    def sigmas(self, num_inference_steps: int, tokens: int) -> list[float]:
        """The noise levels of a sampling run, as the family's pipeline sets them: `num_inference_steps` + 1
        numbers from 1 to 0.

        tokens: number of image tokens that the time shift is computed for.
        """

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        with opening(self.model):
            return dict(FlowMatchEulerDiscreteScheduler.load_config(self.model, subfolder="scheduler"))

    def mu(self, tokens: int, num_inference_steps: int) -> float:
        """The time shift's mu for a picture of `tokens` tokens, sampled in `num_inference_steps` steps.

        Here mu is constant or linear in the number of tokens (diffusers' `calculate_shift`), and does not
        depend on the steps.
        """
        config = self.scheduler_config
        if not config.get("use_dynamic_shifting", False):
            return math.log(config.get("shift", 1.0))
        base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        return base + (tokens - few) * (most - base) / (many - few)

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast of matrix products to `dtype`, for float32 LoRA layers on a bf16 model. The meta device
        has no autocast.
        """
        if self.device.type == "meta":
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to_device(self, text: Text) -> Text:
        """The embeddings on the device, floating-point tensors in `dtype`."""
        return {
            name: sent(value, self.device, self.dtype if value.is_floating_point() else None)
            for name, value in text.items()
        }
