"""Try-on against diffusers' pipeline on the same weights and kernels, end to end; and compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from safetensors.torch import load_file

from gpu_parts.bench import Bench, Figures, Variant
from gpu_parts.model import Random, Shop, largest, one_velocity, random_lora, random_model, with_panels
from gpu_parts.plans import question
from triptych.lora.adapter import load_lora
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
        "clean, 36 %": Variant(
            lambda: shop.ours(CLEAN, PART), plan=question(made, "sampling", CLEAN, repainted=PART)
        ),
        "exact": Variant(lambda: shop.ours(EXACT, 1.0), plan=question(made, "sampling", EXACT)),
    }
    bench.compare("pipeline", variants, 1 if bench.tiny else 4, sharing=2)


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
    file = random_lora(bench.work / "lora", models, made.family)
    stock: Any = shop.pipeline.transformer
    load_lora(models.transformer, file)
    stock.load_lora_adapter(load_file(file), prefix="transformer")
    adapted = {
        "pipeline with LoRA": Variant(lambda: shop.stock(8, 1.0)),
        "exact with LoRA": Variant(
            lambda: shop.ours(EXACT, 1.0), plan=question(made, "sampling", EXACT, rank=16)
        ),
        "clean, 36 %, with LoRA": Variant(lambda: shop.ours(CLEAN, PART)),
    }
    bench.compare("pipeline with LoRA", adapted, 1 if bench.tiny else 4, sharing=2)


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
