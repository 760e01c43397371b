"""Do the presets fit their card? A training step, pictures and text encoders in as much memory as it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

import triptych
from gpu_parts import klein
from gpu_parts.bench import GIB, Bench, Figures
from gpu_parts.memory import first_blocks
from gpu_parts.model import (
    FULL,
    TINY,
    Random,
    on_device,
    quantise,
    random_model,
    with_blocks,
    with_panels,
)
from gpu_parts.plans import question
from gpu_parts.training import with_checkpointing
from train import OurStep, write_records
from triptych.backbones.contract import Text, TextEncoder
from triptych.backbones.known import known_models
from triptych.compute.swap import place
from triptych.planning.memory import CARD_OVERHEAD
from triptych.sampling.prompts import encode_texts
from triptych.tasks.tryon import TRY_ON
from tryon_flux2 import SHARE, once

PRESETS = Path(triptych.__file__).parent / "presets"
CAPTIONS = 128
Settings = dict[str, Any]


def presets(bench: Bench) -> None:
    """FLUX.1-dev with its presets, within their card's memory (0.8 GiB of it left to CUDA): does a training
    step, does T5-XXL, does the autoencoder fit?"""
    measures = {"train": partial(_step, random_model, TINY, FULL), "autoencoder": _pictures}
    for gib, settings in _small_presets(bench, "").items():
        own = measures if gib > 12 else {**measures, "text encoder": _text}
        for name, measure in own.items():
            _row(bench, f"{gib} GB, {name}", gib, settings, measure)


def klein_presets(bench: Bench) -> None:
    """The same for FLUX.2-klein-4B: does a training step with clean context fit, does a try-on of 4 steps?"""
    step = partial(_step, klein.random_klein, klein.TINY, klein.FULL, context="clean")
    for gib, settings in _small_presets(bench, "klein-").items():
        for name, measure in {"train": step, "tryon": _tryon}.items():
            _row(bench, f"klein, {gib} GB, {name}", gib, settings, measure)


def _small_presets(bench: Bench, prefix: str) -> dict[int, Settings]:
    """By the card's GiB: the files `<prefix><number>gb.yaml` that are for smaller cards than this."""
    files = {
        int(file.stem.removeprefix(prefix).removesuffix("gb")): file
        for file in PRESETS.glob(f"{prefix}[0-9]*gb.yaml")
    }
    most = torch.cuda.get_device_properties(0).total_memory if bench.card else 1024 * GIB
    fitting = [gib for gib in sorted(files) if gib * GIB <= most][: 1 if bench.tiny else None]
    return {gib: yaml.safe_load(files[gib].read_text(encoding="utf-8")) for gib in fitting}


def _row(
    bench: Bench, name: str, gib: int, settings: Settings, measure: Callable[[Bench, Settings, int], Figures]
) -> None:
    def fitted() -> Figures:
        try:
            return {**measure(bench, settings, gib), "fits": True, "equal": True}
        except torch.OutOfMemoryError as error:
            return {"fits": False, "equal": False, "error": [str(error)[:400]]}

    bench.row(name, fitted)


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


def _held(bench: Bench, made: Random, quantize: str, swap: int) -> Any:
    """A transformer as a preset holds it."""
    transformer, backbone = made.transformer(), made.backbone()
    if quantize != "none":
        quantise(backbone, transformer, quantize)
    if swap:
        place(transformer.cpu(), bench.device, first_blocks(backbone, transformer, swap))
    return transformer


def _step(
    make: Callable[..., Random],
    tiny: Any,
    whole: Any,
    bench: Bench,
    settings: Settings,
    gib: int,
    **more: Any,
) -> Figures:
    panels, options = settings.get("concat", {}), {**settings.get("train", {}), **more}
    quantize = options.pop("quantize", settings.get("quantize", "none"))
    swap = options.pop("blocks_to_swap", settings.get("blocks_to_swap", 0))
    passes = options.pop("gradient_accumulation_steps", 1)
    size = tiny if bench.tiny else with_panels(whole, panels["panel_width"], panels["panel_height"])
    made = make(bench, size)
    transformer = _held(bench, made, quantize, swap)
    models, work = made.models(transformer), bench.work / f"preset-{made.family}-{gib}"
    write_records(models, size, work)
    # The autoencoder is not there while a step runs; what stands in its place keeps it from being loaded.
    models._autoencoder = object()  # type: ignore[assignment]
    share = 1.0 if options.get("context") == "clean" else None
    with capped(bench, gib):
        own = {name: value for name, value in options.items() if name != "context"}
        checkpointing = options.get("gradient_checkpointing", True)
        step = with_checkpointing(OurStep(models, work, share, **own), transformer, checkpointing)
        step()
        figures = bench.memory(step)
        figures["s"] = bench.seconds(step)
    figures["passes to a step"] = passes
    asked = {"quantize": quantize, "blocks_to_swap": swap, "gradient_accumulation_steps": 1, **options}
    return bench.ask(figures, "planned_gib", question(made, "training", **asked))


def _tryon(bench: Bench, settings: Settings, gib: int) -> Figures:
    """One person, whose panel is repainted in part; the distilled model's 4 steps."""
    options = settings.get("tryon", {})
    quantize = options.get("quantize", settings.get("quantize", "none"))
    swap = options.get("blocks_to_swap", settings.get("blocks_to_swap", 0))
    cache, panels = options.get("context_cache_gib", 4.0), settings.get("concat", {})
    size = (
        klein.TINY if bench.tiny else with_panels(klein.FULL, panels["panel_width"], panels["panel_height"])
    )
    made = klein.random_klein(bench, size)
    models, sampling = made.models(_held(bench, made, quantize, swap)), once(4, 1.0)
    shop = klein.KleinShop(made, models)
    del shop.pipeline
    with capped(bench, gib):
        figures = bench.memory(lambda: shop.ours(sampling, 1, cache))
        figures["s"] = bench.seconds(lambda: shop.ours(sampling, 1, cache))
    asked = {"quantize": quantize, "blocks_to_swap": swap, "context_cache_gib": cache, "repainted": SHARE}
    return bench.ask(figures, "planned_gib", question(made, "sampling", sampling, **asked))


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


def _text(bench: Bench, settings: Settings, gib: int) -> Figures:
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


def _pictures(bench: Bench, settings: Settings, gib: int) -> Figures:
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
    rounded = Random(made.folder, size, made.device, torch.bfloat16)
    return bench.ask(figures, "planned_gib", question(rounded, "autoencoder", batch=batch))
