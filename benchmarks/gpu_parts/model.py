"""A FLUX.1-shaped model with random weights, made on the card: a diffusers folder without weights of
transformer and text encoders.

Random weights: of time, memory and equality they tell what real ones would; of pictures nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
)
from torch import nn

from flux_like import PROMPT, Size, as_diffusers_has_it
from gpu_parts.bench import Bench, Skip
from rehearse_12b import FLUX_DEV, write_model
from triptych.backbones.contract import Backbone
from triptych.backbones.known import known_models
from triptych.backbones.registry import load_backbone
from triptych.compute.blocks import linear_layers
from triptych.compute.cpu import install
from triptych.compute.quantize import FORMATS
from triptych.lora.adapter import save_lora
from triptych.pictures.panels import PanelLayout
from triptych.pocket import checkpoint_path
from triptych.sampling.opened import OpenedModel
from triptych.store.files import write_json
from triptych.tasks.tryon import TRY_ON
from tryon_flux import Bench as Dressing
from tryon_parts import product

TINY = Size(heads=2, double=1, single=2, width=64, height=96, words=16)
SMALL = Size(heads=8, double=2, single=4, width=192, height=256, words=64)
"""For what equality is looked at: float32 too computes it at once."""
FULL = Size(heads=24, double=19, single=38, width=576, height=768, words=512)
"""FLUX.1-dev."""
DEPTHS = ((19, 38, 34.0), (10, 19, 19.0), (5, 10, 11.0), (2, 4, 6.0))
"""Double and single blocks of FLUX.1-dev's width, and the free GiB that sampling and training with them
want in bf16."""


def largest(bench: Bench) -> Size:
    """FLUX.1-dev, or as many of its blocks as the card has room for.

    Raises:
        Skip: not even a few.
    """
    if bench.tiny:
        return TINY
    for double, single, wanted in DEPTHS:
        if bench.free_gib() >= wanted:
            return with_blocks(FULL, double, single)
    raise Skip(
        f"{bench.free_gib():.1f} GiB are free, and a few blocks of FLUX.1-dev want {DEPTHS[-1][2]:.0f}"
    )


def with_blocks(size: Size, double: int, single: int) -> Size:
    return Size(size.heads, double, single, size.width, size.height, size.words)


def with_panels(size: Size, width: int, height: int) -> Size:
    return Size(size.heads, size.double, size.single, width, height, size.words)


def config_of(size: Size) -> dict[str, Any]:
    """The transformer's config.json: FLUX.1-dev's, but narrower where there are fewer heads."""
    config = FLUX_DEV | {"num_layers": size.double, "num_single_layers": size.single}
    if size.heads == FULL.heads:
        return config
    narrow = {"attention_head_dim": 64, "axes_dims_rope": (8, 28, 28), "joint_attention_dim": 64 * size.heads}
    return config | narrow | {"num_attention_heads": size.heads, "pooled_projection_dim": 64}


def on_device(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module without data gets random weights that leave a layer's outputs about as large as its inputs."""
    module = nn.Module.to(module, dtype).to_empty(device=device)  # diffusers' own `to` would warn
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Random:
    """A folder and its size; the parts are made when asked for."""

    folder: Path
    size: Size
    device: torch.device
    dtype: torch.dtype
    family: ClassVar[str] = "flux"

    @property
    def layout(self) -> PanelLayout:
        return TRY_ON.layout(self.size.width, self.size.height)

    def transformer(self) -> nn.Module:
        """As `Backbone.load_transformer` leaves it."""
        torch.manual_seed(0)
        with torch.device("meta"):
            transformer = FluxTransformer2DModel(**config_of(self.size))
        made = on_device(transformer, self.device, self.dtype)
        if self.device.type == "cpu":
            install(made)
        return made

    def backbone(self) -> Backbone:
        return load_backbone(
            str(self.folder), str(self.device), "bf16" if self.dtype == torch.bfloat16 else "fp32"
        )

    def models(self, transformer: nn.Module | None = None) -> OpenedModel:
        backbone = self.backbone()
        config, generator = config_of(self.size), torch.Generator().manual_seed(0)
        texts = {}
        for prompt in (PROMPT, ""):
            states = torch.randn(self.size.words, config["joint_attention_dim"], generator=generator) * 0.2
            pooled = torch.randn(config["pooled_projection_dim"], generator=generator)
            texts[prompt] = {"prompt_embeds": states, "pooled_prompt_embeds": pooled}
        made = self.transformer() if transformer is None else transformer
        return OpenedModel(backbone, made, backbone.load_autoencoder(), texts)


def describe(folder: Path, size: Size) -> dict[str, Any]:
    """Write what of a model's folder says its shapes; the autoencoder's config."""
    write_model(folder, config_of(size), size.words)
    for part in ("text_encoder", "text_encoder_2"):  # `plan` wants to know of some
        (folder / part).mkdir()
        shutil.copy(checkpoint_path() / part / "config.json", folder / part)
    config = dict(known_models()["black-forest-labs/FLUX.1-dev"]["parts"]["vae"])
    if size.heads != FULL.heads:
        config |= {"block_out_channels": [8, 16, 32, 32], "layers_per_block": 1, "norm_num_groups": 4}
    config |= {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKL", **config})
    write_json(folder / "triptych.json", {"max_sequence_length": size.words})
    return config


def random_model(
    bench: Bench, size: Size, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Random:
    """The folder of a model, with the autoencoder of FLUX.1 (a small one for narrower models), which has
    no variance."""
    made = Random(
        bench.work / f"{size.heads}-{size.double}-{size.single}-{size.words}-{dtype}",
        size,
        bench.device,
        dtype or bench.dtype,
    )
    made = made if device is None else Random(made.folder, size, device, made.dtype)
    if made.folder.exists():
        return made
    config = describe(made.folder, size)
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    on_device(vae, made.device, made.dtype)
    with torch.no_grad():  # the pipeline samples the posterior, triptych takes its mean
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = -30
    vae.save_pretrained(made.folder / "vae")
    return made


class Shop(Dressing):
    """The pictures of `tryon.py`, and diffusers' pipeline around the same weights, for a model on any
    device."""

    def __init__(self, made: Random, models: OpenedModel) -> None:
        self.size, self.layout, self.models = made.size, made.layout, models
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(models.backbone.scheduler_config)
        vae = models.autoencoder.vae  # type: ignore[attr-defined]
        self.pipeline = FluxInpaintPipeline(
            scheduler, vae, None, None, None, None, as_diffusers_has_it(models.transformer)
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.front, self.back = product(self.size, 0), product(self.size, 1)
        self.words = models.text([PROMPT])


def quantise(backbone: Backbone, transformer: nn.Module, format: str) -> nn.Module:
    """The layers in the format, one after another, as `Backbone.load_transformer` leaves them."""
    kind = FORMATS[format]
    for name, module in linear_layers(backbone.blocks(transformer)).items():
        codes, scale = kind.pack(module.weight.data.float())
        transformer.set_submodule(name, kind(codes, scale, module.weight.shape, module.bias))
        module.weight = None  # type: ignore[assignment]
    return transformer


def random_lora(folder: Path, models: OpenedModel, family: str, rank: int = 16) -> Path:
    """A file as `train` leaves it."""
    generator, state = torch.Generator().manual_seed(5), {}
    for name in models.backbone.lora_layers(models.transformer):
        layer: Any = models.transformer.get_submodule(name)
        state[f"{name}.lora_A.weight"] = (
            torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5
        )
        state[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) * 0.01
    save_lora(folder / "lora.safetensors", state, rank, rank, {"family": family, "base_model": "random"})
    return folder / "lora.safetensors"


def one_velocity(models: OpenedModel, layout: PanelLayout) -> Any:
    """A function that runs the transformer once over the whole canvas."""
    backbone, (width, height) = models.backbone, layout.size
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, height // 8, width // 8, generator=generator).to(backbone.device)
    at, words = torch.tensor([0.5], device=backbone.device), models.text([PROMPT])

    @torch.no_grad()
    def run() -> torch.Tensor:
        return backbone.velocity(models.transformer, latents, at, words, 3.5)

    return run
