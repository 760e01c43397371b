"""A random model with FLUX.1's proportions, and what a benchmark measures it against."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from torch.profiler import ProfilerActivity, profile

from triptych.backbones.registry import load_backbone
from triptych.compute.cpu import REPLACEMENTS, install
from triptych.lora.layers import ShortLinear
from triptych.sampling.opened import OpenedModel

PROMPT = "p"
"""Its embeddings are random, as everything else."""


@dataclass(frozen=True)
class Size:
    """A model and its panels. Its width is heads × 64, with FLUX.2 heads × 128."""

    heads: int
    double: int
    single: int
    width: int
    height: int
    words: int


FULL = Size(heads=12, double=4, single=8, width=288, height=384, words=128)
QUICK = Size(heads=2, double=1, single=2, width=96, height=128, words=16)


def flux_like(size: Size, dtype: torch.dtype, folder: Path) -> OpenedModel:
    """A FLUX.1-shaped model with random weights, and a small f8 autoencoder with 16 latent channels."""
    torch.manual_seed(0)
    dim = 64 * size.heads
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=size.double,
        num_single_layers=size.single,
        attention_head_dim=64,
        num_attention_heads=size.heads,
        joint_attention_dim=dim,
        pooled_projection_dim=dim,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    # The pipeline samples the posterior, triptych takes its mean: without variance they start from the same
    # latents.
    with torch.no_grad():
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = -30
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(
        folder / "scheduler"
    )
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    backbone = load_backbone(str(folder), "cpu", "bf16" if dtype == torch.bfloat16 else "fp32")
    texts = {}
    for name in (PROMPT, ""):
        texts[name] = {
            "prompt_embeds": torch.randn(size.words, dim),
            "pooled_prompt_embeds": torch.randn(dim),
        }
    install(transformer.to(dtype).eval().requires_grad_(False))  # as Backbone.load_transformer leaves it
    return OpenedModel(backbone, transformer, backbone.load_autoencoder(), texts)


def as_diffusers_has_it(transformer: nn.Module) -> Any:
    """The same weights, no copies, in a model without triptych's layers:
    what a user of diffusers alone has.
    """
    shared = {id(one): one for one in (*transformer.parameters(), *transformer.buffers())}
    stock = copy.deepcopy(transformer, shared)
    for module in stock.modules():
        if hasattr(module, "_default_processor_cls"):  # an attention layer of diffusers
            module.set_processor(module._default_processor_cls())
        if type(module) in (*REPLACEMENTS, ShortLinear):
            module.__class__ = type(module).__base__
    return stock


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def matmul_peak(side: int = 2048, times: int = 3, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a square matrix product: the fastest of a few."""
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    torch.mm(a, b)
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds) / 1e9


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes that torch's allocator holds at most while `run` runs, above what it held before (kernels'
    temporaries included).
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
        run()
    peak = live = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
