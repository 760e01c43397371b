"""A FLUX.2-klein-shaped model with random weights, made on the card, and what it is measured against; see
`model` for FLUX.1's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import nn

from flux_like import PROMPT, Size, as_diffusers_has_it
from gpu_parts.bench import Bench, Skip
from gpu_parts.model import Random, on_device
from rehearsal import SCHEDULER
from triptych.backbones.known import known_models
from triptych.compute.cpu import install
from triptych.pocket import checkpoint_path
from triptych.sampling.opened import OpenedModel
from triptych.store.files import write_json
from tryon_flux2 import Bench as Dressing
from tryon_parts import product

MODEL = "black-forest-labs/FLUX.2-klein-base-4B"
TINY = Size(heads=1, double=1, single=2, width=64, height=96, words=16)
SMALL = Size(heads=4, double=2, single=4, width=192, height=256, words=64)
"""For what equality is looked at: float32 too computes it at once."""
FULL = Size(heads=24, double=5, single=20, width=576, height=768, words=512)
"""FLUX.2-klein-4B."""
WANTED_GIB = 18.0
"""Free memory that sampling and training it with gradient checkpointing want in bf16."""


def full(bench: Bench) -> Size:
    """
    Raises:
        Skip: the card has no room for it.
    """
    if bench.free_gib() < WANTED_GIB:
        raise Skip(f"{bench.free_gib():.1f} GiB are free, and FLUX.2-klein-4B wants {WANTED_GIB:.0f}")
    return TINY if bench.tiny else FULL


def config_of(size: Size) -> dict[str, Any]:
    """The transformer's config.json: klein-4B's, but narrower where there are fewer heads."""
    config = dict(known_models()[MODEL]["parts"]["transformer"])
    config |= {"num_layers": size.double, "num_single_layers": size.single}
    joint = config["joint_attention_dim"] * size.heads // FULL.heads
    return config | {"num_attention_heads": size.heads, "joint_attention_dim": joint}


def describe(folder: Path, size: Size) -> dict[str, Any]:
    """Write what of a model's folder says its shapes; the autoencoder's config. It is a base model: the
    caller chooses steps and guidance."""
    write_json(folder / "model_index.json", {"_class_name": "Flux2KleinPipeline", "is_distilled": False})
    transformer = {"_class_name": "Flux2Transformer2DModel", **config_of(size)}
    write_json(folder / "transformer" / "config.json", transformer)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "triptych.json", {"max_sequence_length": size.words})
    (folder / "text_encoder").mkdir()  # `plan` wants to know of one
    shutil.copy(
        checkpoint_path("pocket-klein") / "text_encoder" / "config.json",
        folder / "text_encoder" / "config.json",
    )
    config = dict(known_models()[MODEL]["parts"]["vae"])
    if size.heads != FULL.heads:
        config |= {"block_out_channels": [8, 16, 32, 32], "layers_per_block": 1, "norm_num_groups": 4}
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKLFlux2", **config})
    return config


@dataclass(frozen=True)
class Klein(Random):
    family: ClassVar[str] = "flux2"

    def transformer(self) -> nn.Module:
        torch.manual_seed(0)
        with torch.device("meta"):
            transformer = Flux2Transformer2DModel(**config_of(self.size))
        made = on_device(transformer, self.device, self.dtype)
        return install(made) if self.device.type == "cpu" else made

    def models(self, transformer: nn.Module | None = None) -> OpenedModel:
        backbone, generator = self.backbone(), torch.Generator().manual_seed(0)
        shape = self.size.words, config_of(self.size)["joint_attention_dim"]
        texts = {
            prompt: {"prompt_embeds": torch.randn(shape, generator=generator) * 0.2}
            for prompt in (PROMPT, "")
        }
        made = self.transformer() if transformer is None else transformer
        return OpenedModel(backbone, made, backbone.load_autoencoder(), texts)


def random_klein(
    bench: Bench, size: Size, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Klein:
    """The folder of a model, with an autoencoder whose batch norm does something."""
    kind = dtype or bench.dtype
    folder = bench.work / f"klein-{size.heads}-{size.double}-{size.single}-{size.words}-{dtype}"
    made = Klein(folder, size, device or bench.device, kind)
    if folder.exists():
        return made
    config = describe(folder, size)
    with torch.device("meta"):
        vae = AutoencoderKLFlux2(**config)
    on_device(vae, made.device, made.dtype)
    with torch.no_grad():
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        vae.bn.num_batches_tracked.zero_()
    vae.save_pretrained(folder / "vae")
    return made


class KleinShop(Dressing):
    """The pictures of `tryon.py --family flux2`, and diffusers' pipeline around the same weights, for a model
    on any device."""

    def __init__(self, made: Klein, models: OpenedModel) -> None:
        self.size, self.layout, self.models = made.size, made.layout, models
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(models.backbone.scheduler_config)
        vae = models.autoencoder.vae  # type: ignore[attr-defined]
        stock = as_diffusers_has_it(models.transformer)
        self.pipeline = Flux2KleinPipeline(scheduler, vae, None, None, stock)
        self.pipeline.set_progress_bar_config(disable=True)
        self.front, self.back = product(made.size, 0), product(made.size, 1)
