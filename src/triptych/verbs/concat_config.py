"""The settings of `concat`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from triptych.config.engine import EngineConfig
from triptych.config.marks import GIVEN, RESULT, SHARED
from triptych.config.stage import Seed


class ConcatConfig(EngineConfig):
    task: Annotated[str, RESULT, GIVEN, SHARED] = "try-on"
    """The task whose panels are put side by side: try-on and try-off (front, back, worn), or outfit (any of
    front, back, detail, top, bottom, shoes and bag, then worn).
    """
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """The diffusion model to be trained. It recommends the panel size and sets the grid of the seams.
    """
    max_concat_n: Annotated[int, RESULT] = Field(default=3, ge=1)
    """Most photos of people per item; each gives a triptych of its own."""
    single_garment: Annotated[Literal["repeat", "two-panel"], RESULT] = "repeat"
    """An item with one product photo: repeat shows it in the panels of front and back, two-panel makes a
    picture of two panels, front and worn.
    """
    panel_width: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Pixels; by default the model's recommendation."""
    panel_height: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Pixels; by default the model's recommendation."""
    trim: Annotated[float | None, RESULT] = Field(default=None, ge=0, le=1)
    """Cut product photos to the garment and this margin, a share of its longer side, such as 0.05: more of
    the panel shows the garment. The LoRA's file records it, and photos given to generate and tryon are cut
    alike. By default they stay whole.
    """
    seed: Annotated[Seed, RESULT, SHARED] = 0
    """Seed of the choice among photos of people, for an item with more than max_concat_n."""
