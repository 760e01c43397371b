"""The settings of `demo`; apart from it, because the stages import torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from triptych.config.stage import Seed, StageConfig


class DemoConfig(StageConfig):
    out: Path | None = None
    """Folder for the report, the pictures and the work folders, if not WORK; by default demo."""
    items: int = Field(default=40, ge=8, le=150)
    """Items in the rendered shop."""
    max_train_steps: int = Field(default=210, ge=1)
    """Training steps of the LoRA."""
    garments: int = Field(default=48, ge=24, le=500)
    """Unseen garments that base and LoRA are judged on."""
    seed: Seed = 0
    """Everything random follows from it."""
