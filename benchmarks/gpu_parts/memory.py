"""What makes a large model fit: quantised weights and swapped blocks, measured beside what `plan` says."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from gpu_parts.bench import GIB, Bench, Figures
from gpu_parts.model import (
    FULL,
    TINY,
    Random,
    Shop,
    largest,
    one_velocity,
    quantise,
    random_model,
    with_blocks,
)
from gpu_parts.plans import question
from gpu_parts.sampling import CLEAN, EXACT, PART
from gpu_parts.training import with_checkpointing
from train import OurStep, write_records
from triptych.backbones.contract import Backbone
from triptych.compute.quantize import FORMATS
from triptych.compute.swap import place


def quantised(bench: Bench) -> None:
    """Each format of the weights: seconds to quantise, memory, a try-on of 8 steps and a training step."""
    made = random_model(bench, largest(bench))
    write_records(made.models(), made.size, bench.work / "quantised")
    for format in ("none", *FORMATS):
        bench.row(format, lambda format=format: _quantised(bench, made, format))


def _quantised(bench: Bench, made: Random, format: str) -> Figures:
    figures: Figures = {}
    transformer = made.transformer()
    if format != "none":
        figures["quantise_s"] = bench.seconds(lambda: quantise(made.backbone(), transformer, format))
    bench.ask(figures, "planned weights_gib", question(made, "weights", quantize=format))
    if bench.card:
        torch.cuda.empty_cache()
        figures["weights_gib"] = torch.cuda.memory_allocated() / GIB
    models = made.models(transformer)
    shop = Shop(made, models)
    for name, sampling, share in (("exact", EXACT, 1.0), ("clean 36 %", CLEAN, PART)):
        run = partial(shop.ours, sampling, share)
        figures[f"{name}_gib"] = bench.memory(run).get("peak_gib")
        figures[f"{name}_s"] = bench.seconds(run)
    del shop, run
    step = with_checkpointing(OurStep(models, bench.work / "quantised"), transformer, True)
    figures["train_gib"] = bench.memory(step).get("peak_gib")
    figures["train_s"] = bench.seconds(step)
    if format == "nf4":
        bench.ask(figures, "planned exact_gib", question(made, "sampling", EXACT, quantize=format))
        bench.ask(figures, "planned train_gib", question(made, "training", quantize=format))
    return figures


def swapping(bench: Bench) -> None:
    """One pass over the whole canvas with blocks in RAM: the same bits, less memory, more time."""
    size = TINY if bench.tiny else with_blocks(FULL, 4, 8)
    made, results = random_model(bench, size), list[torch.Tensor]()
    for blocks in (0, 1, 2) if bench.tiny else (0, 2, 4, 12):
        bench.row(f"{blocks} blocks in RAM", lambda blocks=blocks: _swapped(bench, made, blocks, results))


def first_blocks(backbone: Backbone, transformer: nn.Module, count: int) -> list[nn.Module]:
    return [*backbone.blocks(transformer).values()][:count]


def _swapped(bench: Bench, made: Random, blocks: int, results: list[torch.Tensor]) -> Figures:
    models = made.models()  # a new one each time: a swapped one cannot be taken back
    run = one_velocity(models, made.layout)
    if blocks:
        place(
            models.transformer.cpu(), bench.device, first_blocks(models.backbone, models.transformer, blocks)
        )
        if bench.card:
            torch.cuda.empty_cache()
    figures = bench.memory(lambda: results.append(run()))
    bench.ask(figures, "planned weights_gib", question(made, "weights", blocks_to_swap=blocks))
    figures["s"] = min(bench.seconds(run) for _ in range(1 if bench.tiny else 3))
    return {**figures, "equal": torch.equal(results[0], results[-1])}
