"""The settings of `doctor`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated

from triptych.config.marks import ASKED, GIVEN, RESULT, SHARED
from triptych.config.stage import StageConfig


class DoctorConfig(StageConfig):
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """A diffusion model to look for: a folder, or a hub name whose files should be here already."""
    base_url: Annotated[str | None, ASKED] = None
    """A captioner's server to knock at; no picture is sent."""
