"""Memory of each stage at its worst moment, row by row, and the arithmetic of one unit of its work.

Weights, LoRA, moving average and optimizer state are counted from shapes. Activations, gradients and
temporaries are counted by `trace`, while the product's own code runs on tensors without data (`runs`). All
memory is in bytes. The worst moment of a stage is the larger of these:

    embed      the text encoders and one caption; or the autoencoder in float32 and a batch of canvases
    train      transformer, LoRA, moving average and optimizer state, with one forward and backward pass; or
               the same with the autoencoder instead of the pass, during validation pictures
    generate   the text encoders and one caption; or transformer, LoRA and autoencoder, with one denoising
    tryon      step, the encoding or the decoding
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triptych.pictures.panels import PanelLayout
from triptych.planning.runs import (
    Learned,
    at_once,
    autoencoding,
    sampling_run,
    text_encoding,
    training_pass,
)
from triptych.planning.shapes import ModelShapes
from triptych.planning.trace import Profile
from triptych.sampling.options import Sampling, SamplingConfig
from triptych.training.config import TrainConfig

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.04, "prodigy": 16.0}
"""Bytes of optimizer state per number. AdamW: two float32 moments. adamw8bit: two moments of one byte, with a
float32 scale per 256 numbers (arXiv 2110.02861). Prodigy: four float32 numbers.
"""
QUANTIZED_BYTES = {"int8": 1.001, "int8-torchao": 1.0625, "nf4": 0.5625}
"""Bytes of a quantised number, including its share of the float32 scales: one scale per row, or per 64
numbers (arXiv 2305.14314, table 1, without double quantisation). See `compute/quantize.py`.
"""
CARD_OVERHEAD = 0.8 * 2**30
"""Assumed: CUDA context, cuBLAS and cuDNN workspaces, and unused memory held by the allocator."""
KEPT_PANELS = "known panels, kept for the next pictures"
"""The row of keys and values in the context cache (`--context-cache-gib`)."""
PROCESS_RAM = 2.5 * 2**30
"""Assumed: Python, torch and the other libraries in RAM."""


@dataclass(frozen=True)
class Machine:
    """The device that a stage runs on. dtype: type of weights and matrix products. card: whether it is a card
    with its own memory.
    """

    dtype: torch.dtype = torch.bfloat16
    card: bool = True


@dataclass(frozen=True)
class Memory:
    """Memory of a stage at its worst moment. rows: bytes on the device by purpose. ram: bytes of RAM besides
    the device. flops: arithmetic of one unit of work. swapped: bytes copied to the card per unit of work.
    """

    moment: str
    rows: dict[str, float]
    ram: float = 0.0
    flops: float = 0.0
    swapped: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.rows.values())


@dataclass(frozen=True)
class HeldWeights:
    """Memory of a transformer's weights. device, ram: bytes at most. dequantised: bytes of the largest
    layer's dequantised weight. swapped: bytes copied to the card in one pass through the model.
    """

    device: float
    ram: float
    dequantised: float
    swapped: float


def held_weights(
    shapes: ModelShapes, machine: Machine, quantize: str = "none", blocks_to_swap: int = 0
) -> HeldWeights:
    """quantize: puts the blocks' linear layers at 8 or 4 bits; all else is in the machine's dtype.
    blocks_to_swap: this many of the first blocks lie in RAM, and are on the card two at a time: one that runs
    and one that comes.
    """
    weights, size = shapes.weights, machine.dtype.itemsize
    total = weights.total * size - weights.linear * (size - QUANTIZED_BYTES.get(quantize, size))
    swapped = [
        numbers * total / weights.total for numbers in weights.blocks[: blocks_to_swap if machine.card else 0]
    ]
    # A card writes a dequantised weight in one pass. A CPU converts eight bits to float32 first, and the
    # product is float32 there.
    more = 0 if machine.card or quantize in ("none", "nf4") else 4 + (4 if size != 4 else 0)
    copies = 0 if quantize == "none" else size + more
    return HeldWeights(
        device=total - sum(swapped) + sum(sorted(swapped)[-2:]),
        ram=total,  # weights are read into RAM before they go to the card
        dequantised=float(weights.largest * copies),
        swapped=sum(swapped),
    )


def embed_memory(
    shapes: ModelShapes, batch_size: int, layout: PanelLayout, length: int, machine: Machine
) -> Memory:
    """Memory of `embed`. flops: arithmetic of one triptych and its caption."""
    text = _text_memory(shapes, length, machine)
    picture, turns = at_once(shapes, layout)
    profile = autoencoding(shapes, picture, batch_size, torch.float32, decode=False)
    size = shapes.parameters["vae"] * 4
    rows = {
        "autoencoder (float32)": float(size),
        f"pictures, {batch_size} at once": float(profile.peak),
        **_overhead(machine),
    }
    pictures = Memory("autoencoder", rows, _ram(machine, size))
    worst = max(text, pictures, key=lambda memory: memory.total)
    return Memory(
        worst.moment,
        worst.rows,
        max(text.ram, pictures.ram),
        text.flops + turns * profile.flops / batch_size,
    )


def train_memory(
    shapes: ModelShapes, config: TrainConfig, layout: PanelLayout, length: int, machine: Machine
) -> Memory:
    """Memory of `train`. flops: arithmetic of one optimizer step.

    length: number of tokens in a caption.
    """
    held = held_weights(shapes, machine, config.quantize, config.blocks_to_swap)
    numbers = shapes.lora_parameters(config.rank)
    passes = config.gradient_accumulation_steps
    run = training_pass(shapes, config, layout, length, machine.dtype)
    most = _largest_pass(shapes, config, layout, length, machine)
    standing = {
        _weights_row(config.quantize): held.device,
        "LoRA": 4.0 * numbers,
        "moving average": 4.0 * numbers * (2 if config.early_stopping_patience else 1),
        "optimizer state": OPTIMIZER_BYTES[config.optimizer] * numbers,
        **({"gradients of the passes before": 4.0 * numbers} if passes > 1 else {}),
    }
    # During an optimizer step all gradients are in memory. On a card the optimizer updates all parameters at
    # once, with a temporary for each.
    update = 4.0 * numbers * ((passes == 1) + machine.card)
    moving = {
        "activations kept for the backward pass": float(most.kept),
        "gradients and temporaries": max(most.peak + held.dequantised, update) - most.kept,
    }
    step = Memory("training step", {**standing, **moving, **_overhead(machine)})
    worst = max(
        step,
        _validation_memory(shapes, config, layout, length, standing, machine),
        key=lambda memory: memory.total,
    )
    turns = 2 if config.gradient_checkpointing else 1  # a block's forward runs again before its backward pass
    flops = passes * _mean_flops(shapes, config, layout, length, machine, run.flops)
    ram = held.ram * (2 if config.validation_model else 1)  # one waits while the other is on the card
    return Memory(worst.moment, worst.rows, _ram(machine, ram), flops, held.swapped * turns * passes)


def sampling_memory(
    shapes: ModelShapes,
    config: SamplingConfig,
    sampling: Sampling,
    layout: PanelLayout,
    length: int,
    machine: Machine,
    rank: int,
    repainted: float = 1.0,
) -> Memory:
    """Memory of sampling from product photos. flops: arithmetic of one picture, including its prompt. rank:
    the LoRA's rank; 0 without a LoRA. repainted: see `sampling_run`.
    """
    held = held_weights(shapes, machine, config.quantize, config.blocks_to_swap)
    text, further = _text_memory(shapes, length, machine), len(getattr(config, "reference", ()))
    steps, kept = sampling_run(
        shapes,
        sampling,
        layout,
        length,
        machine.dtype,
        rank,
        repainted=repainted,
        further=further,
        cache_bytes=config.context_cache_gib * 2**30,
    )
    one = PanelLayout(layout.width, layout.height, layout.made[:1], 1)
    shown, turns = at_once(shapes, layout)
    if sampling.context_placement == "reference":
        turns = len(layout.given) + further + (repainted < 1)
    # Given panels are copied; each made panel is decoded alone.
    decoding = autoencoding(shapes, one, 1, machine.dtype, decode=True)
    encoding = autoencoding(shapes, shown, 1, machine.dtype, decode=False)
    pictures = {"decoding the picture": decoding, "encoding the photos": encoding}
    size = machine.dtype.itemsize
    standing = {
        _weights_row(config.quantize): held.device,
        "LoRA": float(size * shapes.lora_parameters(rank)) if rank else 0.0,
        "autoencoder": float(size * shapes.parameters["vae"]),
    }
    moving = {KEPT_PANELS: held_panels(kept, config)} if kept else {}
    moving["activations"] = steps.peak - kept + held.dequantised
    denoising = Memory("denoising step", {**standing, **moving, **_overhead(machine)})
    coding = [
        Memory(name, {**standing, "activations": float(one.peak), **_overhead(machine)})
        for name, one in pictures.items()
    ]
    worst = max(text, denoising, *coding, key=lambda memory: memory.total)
    flops = text.flops + steps.flops + decoding.flops + turns * encoding.flops
    guided = {sampling.true_cfg_scale, sampling.context_guidance_scale} != {1.0}
    passes = sampling.num_inference_steps * (1 + guided) + (sampling.context == "clean")
    return Memory(
        worst.moment, worst.rows, max(_ram(machine, held.ram), text.ram), flops, held.swapped * passes
    )


def held_panels(kept: float, config: SamplingConfig) -> float:
    """Bytes that the context cache holds: of one picture, or as many as a batch of try-ons fills it with.
    kept: those of one picture.
    """
    if not getattr(config, "batch", None):
        return float(kept)
    return kept * max(1.0, config.context_cache_gib * 2**30 // kept)


def _text_memory(shapes: ModelShapes, length: int, machine: Machine) -> Memory:
    """Memory of all text encoders together, and one caption. flops: arithmetic of one caption."""
    run = text_encoding(shapes, length, machine.dtype)
    weights = float(sum(shapes.parameters[part] for part in shapes.text_encoders) * machine.dtype.itemsize)
    rows = {"text encoders": weights, "one caption": float(run.peak), **_overhead(machine)}
    return Memory("text encoders", rows, _ram(machine, weights), run.flops)


def _validation_memory(
    shapes: ModelShapes,
    config: TrainConfig,
    layout: PanelLayout,
    length: int,
    standing: dict[str, float],
    machine: Machine,
) -> Memory:
    """Memory during validation pictures: the autoencoder and a copy of the LoRA are held too."""
    if not (config.validation_steps and config.num_validation_images):
        return Memory("validation", {})
    picture = autoencoding(shapes, at_once(shapes, layout)[0], 1, machine.dtype, decode=True)
    rows = {
        **standing,
        "copy of the LoRA": standing["LoRA"],
        "autoencoder": float(shapes.parameters["vae"] * machine.dtype.itemsize),
        "the picture as it is decoded": float(picture.peak),
    }
    return Memory("validation picture", {**rows, **_overhead(machine)})


def _mean_flops(
    shapes: ModelShapes, config: TrainConfig, layout: PanelLayout, length: int, machine: Machine, whole: float
) -> float:
    """Mean arithmetic of a forward and backward pass. With clean and native context, half of the batches
    learn only a part of the made panels, a single one in a box of two thirds of its sides; with references
    half of these run the rest of the panel too.
    """
    if config.context == "noisy":
        return whole
    parts = [
        training_pass(shapes, config, layout, length, machine.dtype, Learned(2 / 3, run_known)).flops
        for run_known in ([False, True] if shapes.family.family.references else [False])
    ]
    return (whole + sum(parts) / len(parts)) / 2


def _largest_pass(
    shapes: ModelShapes, config: TrainConfig, layout: PanelLayout, length: int, machine: Machine
) -> Profile:
    """The pass of a training that takes the most memory. With references it is one that learns a small part
    of the made panel: the whole panel is run, and its rest is shown as a reference besides.
    """
    whole = training_pass(shapes, config, layout, length, machine.dtype)
    if config.context == "noisy" or not shapes.family.family.references:
        return whole
    part = training_pass(shapes, config, layout, length, machine.dtype, Learned(1 / 3, True))
    return max(whole, part, key=lambda run: run.peak)


def _weights_row(quantize: str) -> str:
    return "weights" if quantize == "none" else f"weights ({quantize})"


def _overhead(machine: Machine) -> dict[str, float]:
    """Memory for the runtime itself, for any model. On the CPU this is the process's own memory."""
    if machine.card:
        return {"CUDA context and workspaces (assumed)": CARD_OVERHEAD}
    return {"Python and libraries (assumed)": PROCESS_RAM}


def _ram(machine: Machine, size: float) -> float:
    """RAM besides the device, with `size` bytes in it; 0 on the CPU, where the rows already count all RAM."""
    return PROCESS_RAM + size if machine.card else 0.0
