"""What each stage holds at its worst moment, row by row, and the arithmetic of one unit of its work.

Weights, LoRA, moving average and optimizer state are counted from shapes; activations, gradients and
temporaries are what `trace` counts while the product's own code runs on tensors without data (`runs`).
Everything in bytes.

    embed      the text encoders and one caption; or, if more, the autoencoder in float32 and a batch of
               canvases train      transformer, LoRA, moving average, optimizer state, and one forward and
               backward pass; or, if more, the same with the autoencoder in place of the pass, while
               validation pictures are made
    generate   the text encoders and one caption; or transformer, LoRA and autoencoder, and a denoising step,
    the encoding or the decoding
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triptych.pictures.panels import PanelLayout
from triptych.planning.runs import autoencoding, sampling_run, text_encoding, training_pass
from triptych.planning.shapes import ModelShapes
from triptych.sampling.options import Sampling, SamplingConfig
from triptych.training.config import TrainConfig

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.04, "prodigy": 16.0}
"""Bytes an optimizer remembers of each number: AdamW two float32 moments; in 8 bit, two of one byte, and a
float32 scale for 256 numbers (arXiv 2110.02861); Prodigy four float32.
"""
QUANTIZED_BYTES = {"int8": 1.001, "int8-torchao": 1.0625, "nf4": 0.5625}
"""Bytes of a quantised number and its share of the float32 scales: one for each row, or for 64 numbers (arXiv
2305.14314, table 1, without double quantisation); see `compute/quantize.py`.
"""
CARD_OVERHEAD = 0.8 * 2**30
"""Assumed: CUDA context, cuBLAS and cuDNN workspaces, and what the allocator holds without using it."""
PROCESS_RAM = 2.5 * 2**30
"""Assumed: Python, torch and the other libraries in RAM."""


@dataclass(frozen=True)
class Machine:
    """Where a stage runs. dtype: of weights and matrix products. card: whether the device is a card with
    memory of its own.
    """

    dtype: torch.dtype = torch.bfloat16
    card: bool = True


@dataclass(frozen=True)
class Memory:
    """A stage at its worst moment. rows: bytes on the device by what they are for. ram: bytes of RAM beside
    the device. flops: arithmetic of one unit of work. swapped: bytes copied to the card for it.
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
    """Where a transformer's weights lie. device, ram: bytes at most. dequantised: of the largest layer while
    it is multiplied. swapped: bytes that travel to the card in one pass through the model.
    """

    device: float
    ram: float
    dequantised: float
    swapped: float


def held_weights(
    shapes: ModelShapes, machine: Machine, quantize: str = "none", blocks_to_swap: int = 0
) -> HeldWeights:
    """quantize: the blocks' linear layers at 8 or 4 bits, all else in the machine's dtype. blocks_to_swap: so
    many of the first blocks lie in RAM, and are on the card one at a time.
    """
    weights, size = shapes.weights, machine.dtype.itemsize
    total = weights.total * size - weights.linear * (size - QUANTIZED_BYTES.get(quantize, size))
    swapped = [
        numbers * total / weights.total for numbers in weights.blocks[: blocks_to_swap if machine.card else 0]
    ]
    # Eight bits are made floating-point numbers and then scaled: two copies.
    copies = {"none": 0, "nf4": 1}.get(quantize, 2)
    return HeldWeights(
        device=total - sum(swapped) + max(swapped, default=0.0),
        ram=total,  # it is read into RAM before it goes to the card
        dequantised=float(weights.largest * size * copies),
        swapped=sum(swapped),
    )


def embed_memory(
    shapes: ModelShapes, batch_size: int, layout: PanelLayout, length: int, machine: Machine
) -> Memory:
    """flops: of one triptych and its caption."""
    text = _text_memory(shapes, length, machine)
    profile = autoencoding(shapes, layout, batch_size, torch.float32, decode=False)
    size = shapes.parameters["vae"] * 4
    rows = {
        "autoencoder (float32)": float(size),
        f"pictures, {batch_size} at once": float(profile.peak),
        **_overhead(machine),
    }
    pictures = Memory("autoencoder", rows, _ram(machine, size))
    worst = max(text, pictures, key=lambda memory: memory.total)
    return Memory(
        worst.moment, worst.rows, max(text.ram, pictures.ram), text.flops + profile.flops / batch_size
    )


def train_memory(
    shapes: ModelShapes, config: TrainConfig, layout: PanelLayout, length: int, machine: Machine
) -> Memory:
    """flops: of one optimizer step.

    length: T5 tokens of a caption.
    """
    held = held_weights(shapes, machine, config.quantize, config.blocks_to_swap)
    numbers = shapes.lora_parameters(config.rank)
    passes = config.gradient_accumulation_steps
    run = training_pass(shapes, config, layout, length, machine.dtype)
    standing = {
        _weights_row(config.quantize): held.device,
        "LoRA": 4.0 * numbers,
        "moving average": 4.0 * numbers * (2 if config.early_stopping_patience else 1),
        "optimizer state": OPTIMIZER_BYTES[config.optimizer] * numbers,
        **({"gradients of the passes before": 4.0 * numbers} if passes > 1 else {}),
    }
    # While an optimizer steps, gradients are there in full; on a card it takes all parameters at once, with a
    # temporary for each.
    update = 4.0 * numbers * ((passes == 1) + machine.card)
    moving = {
        "activations kept for the backward pass": float(run.kept),
        "gradients and temporaries": max(run.peak + held.dequantised, update) - run.kept,
    }
    step = Memory("training step", {**standing, **moving, **_overhead(machine)})
    worst = max(
        step,
        _validation_memory(shapes, config, layout, length, standing, machine),
        key=lambda memory: memory.total,
    )
    turns = (
        2 if config.gradient_checkpointing else 1
    )  # forward, and forward again before the backward pass of a block
    flops = passes * _mean_flops(shapes, config, layout, length, machine, run.flops)
    return Memory(worst.moment, worst.rows, _ram(machine, held.ram), flops, held.swapped * turns * passes)


def sampling_memory(
    shapes: ModelShapes,
    config: SamplingConfig,
    sampling: Sampling,
    layout: PanelLayout,
    length: int,
    machine: Machine,
    known: bool,
    rank: int,
) -> Memory:
    """flops: of one picture, its prompt included. known: with product photos. rank: of the LoRA; 0 without
    one.
    """
    held = held_weights(shapes, machine, config.quantize, config.blocks_to_swap)
    text = _text_memory(shapes, length, machine)
    steps = sampling_run(shapes, sampling, layout, length, machine.dtype, known, rank)
    one = PanelLayout(layout.width, layout.height, layout.made[:1], 1)
    made = one if known else layout  # given panels stay as they are, those that are made are decoded alone
    pictures = {"decoding the picture": autoencoding(shapes, made, 1, machine.dtype, decode=True)}
    if known:
        pictures["encoding the photos"] = autoencoding(shapes, layout, 1, machine.dtype, decode=False)
    size = machine.dtype.itemsize
    standing = {
        _weights_row(config.quantize): held.device,
        "LoRA": float(size * shapes.lora_parameters(rank)) if rank else 0.0,
        "autoencoder": float(size * shapes.parameters["vae"]),
    }
    denoising = Memory(
        "denoising step", {**standing, "activations": steps.peak + held.dequantised, **_overhead(machine)}
    )
    coding = [
        Memory(name, {**standing, "activations": float(one.peak), **_overhead(machine)})
        for name, one in pictures.items()
    ]
    worst = max(text, denoising, *coding, key=lambda memory: memory.total)
    turns = sampling.num_inference_steps * (
        2 if sampling.needs_empty_prompt and sampling.context == "noisy" else 1
    )
    flops = text.flops + steps.flops + sum(one.flops for one in pictures.values())
    return Memory(
        worst.moment, worst.rows, max(_ram(machine, held.ram), text.ram), flops, held.swapped * turns
    )


def _text_memory(shapes: ModelShapes, length: int, machine: Machine) -> Memory:
    """All text encoders together, and one caption. flops: of one caption."""
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
    """While validation pictures are made: a copy of the LoRA waits, and the autoencoder is there."""
    if not (config.validation_steps and config.num_validation_images):
        return Memory("validation", {})
    picture = autoencoding(shapes, layout, 1, machine.dtype, decode=True)
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
    """Of a forward and backward pass. With clean context half of the batches learn only a part of the worn
    panel.
    """
    if config.context == "noisy":
        return whole
    return (whole + training_pass(shapes, config, layout, length, machine.dtype, part=True).flops) / 2


def _weights_row(quantize: str) -> str:
    return "weights" if quantize == "none" else f"weights ({quantize})"


def _overhead(machine: Machine) -> dict[str, float]:
    """What is there whatever the model: on the CPU, the device's memory is the process's."""
    if machine.card:
        return {"CUDA context and workspaces (assumed)": CARD_OVERHEAD}
    return {"Python and libraries (assumed)": PROCESS_RAM}


def _ram(machine: Machine, size: float) -> float:
    """RAM beside the device, with `size` bytes in it; none on the CPU, where the rows say it all."""
    return PROCESS_RAM + size if machine.card else 0.0
