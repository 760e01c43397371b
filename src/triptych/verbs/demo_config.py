"""The settings of `demo`; in their own module, because the stages import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.config.marks import OUTPUT, RESULT, SHARED
from triptych.config.stage import Seed, StageConfig


class DemoConfig(StageConfig):
    out: Annotated[Path | None, OUTPUT] = None
    """Folder for the report, the pictures and the work folders; by default that of --work if it is given,
    else `demo`.
    """
    items: Annotated[int, RESULT] = Field(default=40, ge=8, le=150)
    """Items in the rendered shop."""
    max_train_steps: Annotated[int, RESULT] = Field(default=210, ge=1)
    """Training steps of the LoRA."""
    garments: Annotated[int, RESULT] = Field(default=48, ge=24, le=500)
    """Number of unseen garments on which base and LoRA are judged."""
    seed: Annotated[Seed, RESULT, SHARED] = 0
    """Seed of all random choices."""
