"""Are a training step's gradients right? Ours and the script's of diffusers on the same latents, noise and
level; and attention's alone, by each of PyTorch's kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts import klein, model
from gpu_parts.bench import Bench, Figures, Skip
from gpu_parts.model import Random, random_model
from train import OurStep, ScriptStep, lora_of, write_records
from train_flux2 import KleinScriptStep
from triptych.backbones.contract import Backbone
from triptych.training.data import Batch
from triptych.training.loss import losses_of

FLOAT32 = 1e-4
"""Relative difference in float32 that kernels which add in another order may make."""
WORSE = 2.0
"""In bfloat16 both round, each in its own order: ours may be farther from float32 than diffusers' by no
more than this factor. (FLUX.2's noise levels alone make 1.5 of it on a tiny model: the pipeline rounds a
thousandfold level once, triptych the level and then the thousandfold.)"""
ROUNDING = 0.05
"""Relative error of gradients in bfloat16, attention's or a single training step's, that rounding explains (a
CPU's are at 0.003 and 0.011)."""
SHAPES = {"640 tokens": (640, 640, 8, 64), "5,696 tokens": (5696, 5696, 4, 128)}
SHAPES |= {"1,117 tokens to 5,696": (1117, 5696, 4, 128)}
"""Queries, keys, heads and their width: the small model's, FLUX.1-dev's, and its with clean context."""
KERNELS = {
    "as PyTorch chooses": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def gradients(bench: Bench) -> None:
    """Attention's gradients in bfloat16, by kernel, and a training step's of small FLUX.1 and FLUX.2-klein
    models beside the scripts'; "apart" is relative, in bfloat16 the distance to float32."""
    attention_rows(bench)
    for dtype in (torch.float32, torch.bfloat16):
        flux = random_model(bench, model.TINY if bench.tiny else model.SMALL, dtype)
        step_rows(bench, flux, ScriptStep, "FLUX.1, training step")
        flux2 = klein.random_klein(bench, klein.TINY if bench.tiny else klein.SMALL, dtype)
        step_rows(bench, flux2, KleinScriptStep, "klein, training step")


def apart(one: Tensor, other: Tensor) -> float:
    other = other.to(one.device)
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / other.norm())


def step_rows(bench: Bench, made: Random, script: type[ScriptStep], name: str) -> None:
    """A row for the loss and the LoRA's gradients of one training step; in bfloat16 both are compared with
    float32's on the same weights."""
    kind = str(made.dtype).removeprefix("torch.")
    bench.row(f"{name}, {kind}", lambda: _step(bench, made, script))
    if bench.card and made.dtype == torch.bfloat16:
        for kernel, backend in list(KERNELS.items())[1:]:
            bench.row(
                f"{name}, {kind}, attention by {kernel}",
                lambda backend=backend: _step(bench, made, script, backend),
            )


def _step(bench: Bench, made: Random, kind: type[ScriptStep], backend: SDPBackend | None = None) -> Figures:
    """backend: whose attention is taken in bfloat16; float32 keeps what PyTorch chooses."""
    models, work = made.models(), bench.work / f"{made.folder.name}-step"
    write_records(models, made.size, work)
    parameters = lora_of(models)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # with B = 0 no gradient reaches A
        for parameter in parameters:
            parameter += torch.randn(parameter.shape, generator=generator).to(parameter) * 0.02
    ours = OurStep(models, work)
    script = kind(models, work, True) if kind is ScriptStep else kind(models, work)  # type: ignore[call-arg]
    batch = ours.data.draw(ours.backbone, 0, 0, 1)
    text = {name: value[None] for name, value in ours.data.records[ours.data.ids[0]].text.items()}
    level = torch.tensor([0.6], device=made.device)
    batch = replace(batch, t_B=level, text=ours.backbone.to_device(text))
    try:
        with _only(backend):
            loss, mine = _ours(ours, batch, parameters)
            other_loss, theirs = _theirs(script, ours.backbone, batch, parameters)
    except RuntimeError as error:
        if backend is None:
            raise
        raise Skip(str(error).splitlines()[0]) from error
    figures = {"loss apart": abs(loss - other_loss) / other_loss}
    if made.dtype == torch.float32:
        far = apart(mine, theirs)
        return {"apart": far, "equal": far <= FLOAT32, **figures}
    full = replace(ours.backbone, dtype=torch.float32)
    for transformer in (ours.transformer, script.transformer):
        nn.Module.float(transformer)  # diffusers' own would warn
    _, truth = _theirs(script, full, batch, parameters)
    far, stock = apart(mine, truth), apart(theirs, truth)
    if backend is None:
        figures["equal"] = far <= WORSE * stock + FLOAT32 and far <= ROUNDING
    return {
        "apart": far,
        "diffusers apart": stock,
        "from each other": apart(mine, theirs),
    } | figures


def _ours(ours: OurStep, batch: Batch, parameters: list[nn.Parameter]) -> tuple[float, Tensor]:
    loss = losses_of(ours.config, ours.backbone, ours.transformer, batch).sample_B.mean()
    return loss.item(), _gradients(loss, parameters)


def _theirs(
    script: Any, backbone: Backbone, batch: Batch, parameters: list[nn.Parameter]
) -> tuple[float, Tensor]:
    script.backbone, dtype = backbone, backbone.dtype
    script.latents, script.text = batch.clean_BCHW.to(dtype), backbone.to_device(batch.text)
    loss = script.loss(batch.noise_BCHW.to(dtype), batch.t_B)
    return loss.item(), _gradients(loss, parameters)


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    made = torch.autograd.grad(loss, parameters)
    return torch.cat([one.float().flatten() for one in made])


def attention_rows(bench: Bench) -> None:
    """Rows for attention in bfloat16, forwards and backwards, by kernel; what PyTorch chooses by itself must
    be right."""
    shapes = {"40 tokens": (40, 40, 2, 64)} if bench.tiny else SHAPES
    kernels = KERNELS if bench.card else {"as PyTorch chooses": None}
    for name, shape in shapes.items():
        for kernel, backend in kernels.items():
            bench.row(
                f"attention, {name}, {kernel}",
                lambda shape=shape, backend=backend: _attention(bench, shape, backend),
            )
    if bench.card:
        torch.cuda.empty_cache()


def _attention(bench: Bench, shape: tuple[int, int, int, int], backend: SDPBackend | None) -> Figures:
    queries, keys, heads, width = shape
    generator = torch.Generator().manual_seed(6)
    lengths = (queries, keys, keys, queries)
    states = [torch.randn(1, length, heads, width, generator=generator) for length in lengths]
    rounded = [one.to(bench.device, torch.bfloat16) for one in states]
    try:
        made = _back(rounded, _only(backend))
    except RuntimeError as error:  # "No available kernel"
        raise Skip(str(error).splitlines()[0]) from error
    truth = _back([one.float() for one in rounded], nullcontext())
    out, *gradients = (apart(one, other) for one, other in zip(made, truth, strict=True))
    figures: Figures = {"apart": max(gradients), "forwards": out}
    figures["s"] = min(bench.seconds(lambda: _back(rounded, _only(backend))) for _ in range(3))
    if backend is not None:
        return figures
    inputs = [one.detach().transpose(1, 2).requires_grad_() for one in rounded[:3]]
    chosen = torch._fused_sdp_choice(*inputs)
    return figures | {"equal": max(gradients) <= ROUNDING, "kernel": SDPBackend(chosen).name}


def _only(backend: SDPBackend | None) -> AbstractContextManager[Any]:
    return nullcontext() if backend is None else sdpa_kernel(backend)


def _back(states: list[Tensor], kernel: AbstractContextManager[Any]) -> list[Tensor]:
    """What attention makes of queries, keys and values (B, S, H, D), and their gradients."""
    *inputs, weights = states
    inputs = [one.detach().requires_grad_() for one in inputs]
    with kernel:
        out = dispatch_attention_fn(*inputs).flatten(2, 3)
        loss = (out.float() * weights.flatten(2, 3).float()).sum()
        return [out, *torch.autograd.grad(loss, inputs)]
