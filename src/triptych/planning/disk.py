"""Disk space of a training, and of the model download before it."""

from __future__ import annotations

from pathlib import Path

import torch

from triptych.pictures.panels import PanelLayout
from triptych.planning.memory import OPTIMIZER_BYTES
from triptych.planning.shapes import ModelShapes
from triptych.pocket import POCKETS
from triptych.training.config import TrainConfig

PUBLISHED_BYTES = 2
"""Bytes per number of a model on the hub: models are published in 16 bits."""


def disk_bytes(
    shapes: ModelShapes,
    config: TrainConfig,
    layout: PanelLayout,
    length: int,
    dtype: torch.dtype,
    triptychs: int,
) -> dict[str, int]:
    """Bytes on disk, by kind. model download: 0 for a folder. embeddings: mean and standard deviation of the
    latents in float32, the text in the encoders' dtype. checkpoints: LoRA, moving average and optimizer
    state, for all kept checkpoints and the one being written. LoRA: float32.
    """
    numbers = shapes.lora_parameters(config.rank)
    download = (
        0
        if Path(config.model).exists() or config.model in POCKETS
        else PUBLISHED_BYTES * sum(shapes.parameters.values())
    )
    text = sum(tensor.nbytes for tensor in shapes.text(length, 1, dtype).values())
    state = numbers * (8 + OPTIMIZER_BYTES[config.optimizer])
    return {
        "model download": download,
        "embeddings": triptychs * (2 * shapes.latents(layout, 1).nbytes + text) + text,
        "checkpoints": round((config.checkpoints_total_limit + 1) * state),
        "LoRA": 4 * numbers,
    }
