"""The settings of `concat`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triptych.config.marks import GIVEN, RESULT, SHARED
from triptych.config.stage import Seed, StageConfig


class ConcatConfig(StageConfig):
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """The diffusion model to be trained. It recommends the panel size and sets the grid of the seams.
    """
    max_concat_n: Annotated[int, RESULT] = Field(default=3, ge=1)
    """Most worn photos per item; each gives a triptych of its own."""
    panel_width: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Pixels; by default the model's recommendation."""
    panel_height: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Pixels; by default the model's recommendation."""
    seed: Annotated[Seed, RESULT, SHARED] = 0
    """Seed of the choice among worn photos, for an item with more than max_concat_n."""
