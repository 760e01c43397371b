"""What makes a large model fit: quantised weights, swapped blocks, the presets; measured
beside what `plan` says."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import nn

import triptych
from gpu_parts.bench import GIB, Bench, Figures
from gpu_parts.model import (
    FULL,
    TINY,
    Random,
    Shop,
    largest,
    on_device,
    one_velocity,
    quantise,
    random_model,
    with_blocks,
    with_panels,
)
from gpu_parts.sampling import CLEAN, EXACT, PART
from train import OurStep, write_records
from triptych.backbones.contract import Text, TextEncoder
from triptych.backbones.flux.model import Flux
from triptych.backbones.known import known_models
from triptych.compute.quantize import FORMATS
from triptych.compute.swap import place
from triptych.planning.memory import CARD_OVERHEAD, Machine, embed_memory, held_weights
from triptych.planning.shapes import model_shapes
from triptych.sampling.prompts import encode_texts
from triptych.tasks.tryon import TRY_ON

PRESETS = Path(triptych.__file__).parent / "presets"
CAPTIONS = 128


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
        figures["quantise_s"] = bench.seconds(lambda: quantise(transformer, format))
    figures["planned weights_gib"] = (
        held_weights(made.shapes, Machine(made.dtype, bench.card), format).device / GIB
    )
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
    transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    step = OurStep(models, bench.work / "quantised", gradient_checkpointing=True)
    figures["train_gib"] = bench.memory(step).get("peak_gib")
    figures["train_s"] = bench.seconds(step)
    if format == "nf4":
        bench.plan(figures, "planned exact_gib", lambda: made.planned_sampling(EXACT, quantize=format))
        bench.plan(figures, "planned train_gib", lambda: made.planned_training(quantize=format))
    return figures


def swapping(bench: Bench) -> None:
    """One pass over the whole canvas with blocks in RAM: the same bits, less memory, more time."""
    size = TINY if bench.tiny else with_blocks(FULL, 4, 8)
    made, results = random_model(bench, size), list[torch.Tensor]()
    for blocks in (0, 1, 2) if bench.tiny else (0, 2, 4, 12):
        bench.row(f"{blocks} blocks in RAM", lambda blocks=blocks: _swapped(bench, made, blocks, results))


def _first(transformer: nn.Module, count: int) -> list[nn.Module]:
    return [*Flux.blocks(transformer).values()][:count]


def _swapped(bench: Bench, made: Random, blocks: int, results: list[torch.Tensor]) -> Figures:
    models = made.models()  # a new one each time: a swapped one cannot be taken back
    run = one_velocity(models, made.layout)
    if blocks:
        place(models.transformer.cpu(), bench.device, _first(models.transformer, blocks))
        if bench.card:
            torch.cuda.empty_cache()
    figures = bench.memory(lambda: results.append(run()))
    figures["weights_gib"] = (
        held_weights(made.shapes, Machine(made.dtype, bench.card), "none", blocks).device / GIB
    )
    figures["s"] = min(bench.seconds(run) for _ in range(1 if bench.tiny else 3))
    return {**figures, "equal": torch.equal(results[0], results[-1])}


def presets(bench: Bench) -> None:
    """The presets within their card's memory (0.8 GiB of it left to CUDA): does a training step, does
    T5-XXL, does the autoencoder fit?"""
    files = {int(file.stem.removesuffix("gb")): file for file in PRESETS.glob("[0-9]*gb.yaml")}
    for gib in sorted(files)[: 1 if bench.tiny else None]:
        if bench.card and gib * GIB > torch.cuda.get_device_properties(0).total_memory:
            continue
        settings = yaml.safe_load(files[gib].read_text(encoding="utf-8"))
        measures = {"train": _preset_step, "autoencoder": _preset_pictures}
        if gib == min(files):
            measures["text encoder"] = _preset_text
        for name, measure in measures.items():
            bench.row(
                f"{gib} GB, {name}",
                lambda gib=gib, settings=settings, measure=measure: measure(bench, settings, gib),
            )


@contextmanager
def capped(bench: Bench, gib: float) -> Iterator[None]:
    """A card on which the allocator gets no more than this, less what `plan` assumes for CUDA."""
    total = torch.cuda.get_device_properties(0).total_memory if bench.card else 0
    if bench.card:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gib * GIB - CARD_OVERHEAD) / total))
    try:
        yield
    finally:
        if bench.card:
            torch.cuda.set_per_process_memory_fraction(1.0)


def _preset_step(bench: Bench, settings: dict[str, Any], gib: int) -> Figures:
    panels, options = settings.get("concat", {}), dict(settings.get("train", {}))
    quantize, swap = (
        settings.get(name, default) for name, default in (("quantize", "none"), ("blocks_to_swap", 0))
    )
    quantize, swap = options.pop("quantize", quantize), options.pop("blocks_to_swap", swap)
    passes = options.pop("gradient_accumulation_steps", 1)
    size = TINY if bench.tiny else with_panels(FULL, panels["panel_width"], panels["panel_height"])
    made = random_model(bench, size)
    transformer = made.transformer()
    if quantize != "none":
        quantise(transformer, quantize)
    if swap:
        place(transformer.cpu(), bench.device, _first(transformer, swap))
    models, work = made.models(transformer), bench.work / f"preset-{gib}"
    write_records(models, size, work)
    # The autoencoder is not there while a step runs; what stands in its place keeps it from being loaded.
    models._autoencoder = object()  # type: ignore[assignment]
    if options.get("gradient_checkpointing", True):
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    with capped(bench, gib):
        step = OurStep(models, work, **{"gradient_checkpointing": True, **options})
        step()
        figures = bench.memory(step)
        figures["s"] = bench.seconds(step)
    settings = {"quantize": quantize, "blocks_to_swap": swap, "gradient_accumulation_steps": 1, **options}
    figures["passes to a step"] = passes
    return bench.plan(figures, "planned_gib", lambda: made.planned_training(**settings))


class _Words(TextEncoder):
    """A T5 with random weights; prompts are numbers."""

    def __init__(self, t5: Any, vocabulary: int) -> None:
        self.t5, self.vocabulary = t5, vocabulary

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_sequence_length: int) -> Text:
        tokens = torch.randint(0, self.vocabulary, (len(prompts), max_sequence_length), device=self.t5.device)
        return {"prompt_embeds": self.t5(tokens)[0]}

    def count_tokens(self, prompt: str) -> int:
        return 1


def _preset_text(bench: Bench, settings: dict[str, Any], gib: int) -> Figures:
    config = dict(known_models()["black-forest-labs/FLUX.1-dev"]["parts"]["text_encoder_2"])
    if bench.tiny:
        config |= {"d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 8}
    with torch.device("meta"):
        t5 = transformers.T5EncoderModel(
            transformers.T5Config(**{k: v for k, v in config.items() if k != "architectures"})
        )
    with capped(bench, gib):
        encoder = _Words(on_device(t5, bench.device, bench.dtype), config["vocab_size"])
        words, count = (8, 2) if bench.tiny else (512, CAPTIONS)
        begun = time.monotonic()
        figures = bench.memory(lambda: encode_texts(encoder, [str(number) for number in range(count)], words))
    return {**figures, "s": time.monotonic() - begun}


def _preset_pictures(bench: Bench, settings: dict[str, Any], gib: int) -> Figures:
    """As many canvases at once as `embed` takes, in float32."""
    panels, batch = settings.get("concat", {}), settings.get("embed", {}).get("batch_size", 4)
    size = (
        TINY
        if bench.tiny
        else with_panels(with_blocks(FULL, 1, 1), panels["panel_width"], panels["panel_height"])
    )
    made = random_model(bench, size, torch.float32)
    layout = TRY_ON.layout(size.width, size.height)
    autoencoder = made.backbone().load_autoencoder()
    pixels = torch.rand(batch, 3, layout.size[1], layout.size[0]) * 2 - 1
    with capped(bench, gib):
        figures = bench.memory(lambda: autoencoder.encode(pixels))
        figures["s"] = bench.seconds(lambda: autoencoder.encode(pixels))
    if not bench.tiny:
        shapes = model_shapes("black-forest-labs/FLUX.1-dev")
        planned = embed_memory(shapes, batch, layout, 512, Machine(torch.bfloat16, bench.card))
        figures["planned_gib"] = made.planned(planned) if planned.moment == "autoencoder" else None
    return figures
