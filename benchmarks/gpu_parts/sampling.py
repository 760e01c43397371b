"""Try-on against diffusers' pipeline on the same weights and kernels, end to end; where its time goes; and
compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gpu_parts.bench import Bench, Figures, Skip, Variant
from gpu_parts.model import Random, Shop, largest, one_velocity, random_model, with_panels
from triptych.backbones.flux.model import Flux
from triptych.lora.adapter import load_lora, save_lora
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling

PART = 0.36
"""Of the worn panel, active."""
EXACT, CLEAN = Sampling(8, time_shift="canvas"), Sampling(8, time_shift="canvas", context="clean")
PRODUCTS = replace(CLEAN, context_reading="products")


def sampling(bench: Bench) -> None:
    """One picture in 8 steps, pixels to pixels, against FluxInpaintPipeline of the same moment; panels of
    576 × 768, or as the row says."""
    made = random_model(bench, largest(bench))
    models = made.models()
    shop = Shop(made, models)
    bench.row("the model", lambda: _about(made, models))
    bench.row("exact against the pipeline, 2 steps", lambda: {"of 255": shop.difference()})
    variants = {
        "pipeline": Variant(lambda: shop.stock(8, 1.0)),
        "clean, 36 %": Variant(lambda: shop.ours(CLEAN, PART)),
        "exact": Variant(lambda: shop.ours(EXACT, 1.0), planned=lambda: made.planned_sampling(EXACT)),
        "clean, whole panel": Variant(
            lambda: shop.ours(CLEAN, 1.0), planned=lambda: made.planned_sampling(CLEAN)
        ),
        "clean, 36 %, no background": Variant(lambda: shop.ours(replace(CLEAN, drop_background=True), PART)),
    }
    bench.compare("pipeline", variants, 1 if bench.tiny else 4)


def waiting(bench: Bench) -> None:
    """Where 4 steps spend their time: the share in which kernels run, the lines that wait for the card,
    the kernels that take longest."""
    made = random_model(bench, largest(bench))
    shop = Shop(made, made.models())
    runs = {
        "pipeline": lambda: shop.stock(4, 1.0),
        "exact": lambda: shop.ours(replace(EXACT, num_inference_steps=4), 1.0),
        "clean, 36 %": lambda: shop.ours(replace(CLEAN, num_inference_steps=4), PART),
    }
    for name, run in runs.items():
        bench.row(name, lambda run=run: _profiled(bench, run))


def more_sampling(bench: Bench) -> None:
    """As above, with several persons at once, with smaller panels, in 28 steps."""
    made = random_model(bench, largest(bench))
    models = made.models()
    shop, rounds, long = Shop(made, models), 1 if bench.tiny else 3, 2 if bench.tiny else 28
    many = {"pipeline": Variant(lambda: shop.stock(8, 1.0))}
    many["4 persons, one product, 36 %, a picture"] = Variant(
        lambda: shop.ours(PRODUCTS, PART, 4, 4.0), units=4
    )
    bench.compare("pipeline", many, rounds)
    if not bench.tiny:
        small = Shop(Random(made.folder, with_panels(made.size, 384, 512), made.device, made.dtype), models)
        panels = {
            "pipeline, 384 × 512": Variant(lambda: small.stock(8, 1.0)),
            "exact, 384 × 512": Variant(lambda: small.ours(EXACT, 1.0)),
            "clean, 36 %, 384 × 512": Variant(lambda: small.ours(CLEAN, PART)),
        }
        bench.compare("pipeline, 384 × 512", panels, rounds)
    steps = {
        "pipeline, 28 steps": Variant(lambda: shop.stock(long, 1.0)),
        "clean, 36 %, 28 steps": Variant(lambda: shop.ours(replace(CLEAN, num_inference_steps=long), PART)),
        "exact, 28 steps": Variant(lambda: shop.ours(replace(EXACT, num_inference_steps=long), 1.0)),
    }
    bench.compare("pipeline, 28 steps", steps, 1)


def with_lora(bench: Bench) -> None:
    """As above, in 8 steps with a LoRA of rank 16; the pipeline has it by diffusers' load_lora_adapter."""
    made = random_model(bench, largest(bench))
    models = made.models()
    shop = Shop(made, models)
    file = random_lora(bench.work / "lora", models.transformer)
    stock: Any = shop.pipeline.transformer
    load_lora(models.transformer, file)
    stock.load_lora_adapter(load_file(file), prefix="transformer")
    adapted = {
        "pipeline with LoRA": Variant(lambda: shop.stock(8, 1.0)),
        "exact with LoRA": Variant(
            lambda: shop.ours(EXACT, 1.0), planned=lambda: made.planned_sampling(EXACT, rank=16)
        ),
        "clean, 36 %, with LoRA": Variant(lambda: shop.ours(CLEAN, PART)),
    }
    bench.compare("pipeline with LoRA", adapted, 1 if bench.tiny else 3)


def compiled(bench: Bench) -> None:
    """The transformer over the whole canvas, as it is and with its blocks compiled."""
    made = random_model(bench, largest(bench))
    models = made.models()
    run = one_velocity(models, made.layout)
    bench.compare("eager", {"eager": Variant(run)}, 1 if bench.tiny else 5)
    before = run()
    transformer: Any = models.transformer
    bench.row("compiling", lambda: {"s": bench.seconds(lambda: _compile(transformer, run, bench.tiny))})
    bench.compare("compiled", {"compiled": Variant(run)}, 1 if bench.tiny else 5)
    bench.row("compiled and eager", lambda: {"apart": float((run() - before).norm() / before.norm())})


def _compile(transformer: Any, run: Any, tiny: bool) -> None:
    transformer.compile_repeated_blocks(fullgraph=True, **({"backend": "eager"} if tiny else {}))
    run()


def _about(made: Random, models: OpenedModel) -> Figures:
    size, numbers = made.size, sum(parameter.numel() for parameter in models.transformer.parameters())
    blocks = (
        f"{size.double} + {size.single} blocks, {size.width} × {size.height}, {size.words} text tokens, "
        f"{made.dtype}"
    )
    return {"model": blocks, "parameters": numbers}


def random_lora(folder: Path, transformer: nn.Module, rank: int = 16) -> Path:
    """A file as `train` leaves it."""
    generator, state = torch.Generator().manual_seed(5), {}
    for name in Flux.lora_layers(transformer):
        layer: Any = transformer.get_submodule(name)
        state[f"{name}.lora_A.weight"] = (
            torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5
        )
        state[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) * 0.01
    save_lora(folder / "lora.safetensors", state, rank, rank, {"family": "flux", "base_model": "random"})
    return folder / "lora.safetensors"


def _profiled(bench: Bench, run: Any) -> Figures:
    run()
    waits = bench.waits(run)
    wall = bench.seconds(run)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.card else [])]
    with profile(activities=kinds, acc_events=False) as recorded:
        run()
        bench.wait()
    events = recorded.key_averages()
    if not bench.card:
        top = sorted(events, key=lambda event: -event.self_cpu_time_total)[:12]
        return {
            "s": wall,
            "first": top[0].key,
            "top_ms": {event.key: event.self_cpu_time_total / 1e3 for event in top},
        }
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    if not busy:
        raise Skip("the profiler saw no kernels")
    top = sorted(kernels, key=lambda event: -event.self_device_time_total)[:12]
    attention = [
        event.key
        for event in top
        if any(word in event.key.lower() for word in ("flash", "fmha", "attention", "sdpa"))
    ]
    named = {event.key[:80]: event.self_device_time_total / 1e3 for event in top}
    figures = {
        "s": wall,
        "kernels_s": busy,
        "share": busy / wall,
        "kernels": sum(event.count for event in kernels),
    }
    return {
        **figures,
        "waits": sum(waits.values()),
        "attention": (attention or ["?"])[0][:40],
        "top_ms": named,
        "lines": waits,
    }
