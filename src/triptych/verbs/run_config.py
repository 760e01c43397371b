"""The settings of `run`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triptych.config.marks import GIVEN, MACHINE, RARE, RESULT, RUNNING, SHARED
from triptych.config.stage import Quantize, Seed, StageConfig


class RunConfig(StageConfig):
    """Settings for every stage that has them; they win over the config file. The names are those in the
    advice of `plan`.
    """

    model: Annotated[str | None, RESULT, GIVEN, SHARED] = None
    """Model for every stage; wins over the config file."""
    seed: Annotated[Seed | None, RESULT, SHARED] = None
    """Seed for every stage; wins over the config file."""
    quantize: Annotated[Quantize | None, RESULT, MACHINE, SHARED] = None
    """Weights of the model's blocks: none, nf4, int8 or int8-torchao; wins over the config file."""
    blocks_to_swap: Annotated[int | None, RUNNING, SHARED] = Field(default=None, ge=0)
    """Transformer blocks that wait in RAM until they run; wins over the config file."""
    batch_size: Annotated[int | None, RESULT] = Field(default=None, ge=1)
    """Triptychs per batch, in `embed` and `train`; wins over the config file."""
    gradient_accumulation_steps: Annotated[int | None, RESULT] = Field(default=None, ge=1)
    """Batches per training step; wins over the config file."""
    gradient_checkpointing: Annotated[bool | None, RUNNING] = None
    """Recompute activations in the backward pass to save memory; wins over the config file."""
    panel_width: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Panel width in pixels; wins over the config file."""
    panel_height: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Panel height in pixels; wins over the config file."""
    anyway: Annotated[bool | None, RUNNING, RARE, SHARED] = None
    """Use photographs even if model or captioner say that they have never seen any, as `pocket` does; it
    warns.
    """
