"""The second model of validation pictures: one that the LoRA will be used on, such as the distilled twin of
the base model that is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoTokenizer

from triptych import progress
from triptych.backbones.checkpoint import same_weights, shapes_of
from triptych.backbones.contract import Backbone
from triptych.backbones.registry import load_backbone
from triptych.backbones.settings import part_config
from triptych.compute.devices import give_back
from triptych.compute.swap import aside
from triptych.errors import ModelError
from triptych.lora.adapter import add_lora, set_lora
from triptych.training.config import TrainConfig

PROBE = "This <Brand> jacket is <IMAGE 1> ein Prüfsatz, 123 <IMAGE 2> 上衣 <IMAGE 3>\n"
"""A text whose tokens tell whether two tokenizers and their templates are the same."""


@dataclass(frozen=True)
class Twin:
    """A model that is loaded only while validation pictures are made."""

    backbone: Backbone
    rank: int
    alpha: float

    @property
    def name(self) -> str:
        return Path(self.backbone.model).name

    @contextmanager
    def opened(self, lora: Mapping[str, Tensor], trained: nn.Module) -> Iterator[nn.Module]:
        """The model's transformer with a LoRA. On a card `trained`, the transformer in training, waits in RAM
        meanwhile.

        lora: its tensors by diffusers name, without alpha, as in a training's state.
        """
        with aside(trained):
            progress.doing(f"loading {self.name}")
            transformer = self.backbone.load_transformer()
            add_lora(transformer, self.backbone.lora_layers(transformer), self.rank, self.alpha, 0.0, 0)
            set_lora(transformer, lora)
            yield transformer.requires_grad_(False).eval()
            del transformer
            give_back(self.backbone.device)


def open_twin(config: TrainConfig, backbone: Backbone) -> Twin | None:
    """The model of `validation_model`, without its weights; None if none is given.

    Raises:
        ModelError: it cannot be opened, is of another family or size, or has another text encoder, so that
            LoRA or embeddings of this training are not for it.
    """
    if config.validation_model is None:
        return None
    other = load_backbone(
        config.validation_model, str(backbone.device), config.dtype, config.quantize, config.blocks_to_swap
    )
    problem = _difference(backbone, other)
    if problem:
        raise ModelError(
            f"{config.validation_model} cannot show a LoRA of {config.model}: {problem}.",
            "Give --validation-model the distilled model of this very base, or leave it out.",
        )
    return Twin(other, config.rank, config.alpha)


def _difference(ours: Backbone, other: Backbone) -> str:
    """What keeps a LoRA and embeddings made with one model from the other; empty if nothing does."""
    if other.name != ours.name:
        return f"it is a model of {other.family.title}, not of {ours.family.title}"
    configs = [part_config(one.model, "transformer/config.json") for one in (ours, other)]
    sizes = [shapes_of(ours.transformer_class, config) for config in configs]
    if sizes[0] != sizes[1]:
        return "its transformer has layers of other sizes"
    if ours.model == other.model:
        return ""
    encoders = [*ours.text_encoder_class.parts]
    tokens = [_tokens(one) for one in (ours, other)]
    if tokens[0] != tokens[1] or not same_weights(ours.model, other.model, encoders):
        return "its text encoder is another one"
    return ""


def _tokens(backbone: Backbone) -> list[int]:
    family = backbone.family
    tokenizer = AutoTokenizer.from_pretrained(
        backbone.model, subfolder=family.prompt_tokenizer, trust_remote_code=False
    )
    return list(tokenizer(family.prompt_text(tokenizer, PROBE)).input_ids)
