"""The settings of `report`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.config.marks import GIVEN, OUTPUT, RESULT, SHARED
from triptych.config.stage import StageConfig


class ReportConfig(StageConfig):
    task: Annotated[str, RESULT, GIVEN, SHARED] = "try-on"
    """The task whose roles the page shows: try-on, or outfit for items of several garments."""
    out: Annotated[Path | None, OUTPUT] = None
    """The page to write, if not WORK/catalogue/report.html."""
    thumbnails: Annotated[int, RESULT] = Field(default=400, ge=0)
    """Most photos with a thumbnail; those of items that need attention come first. Of the others the page
    has the names.
    """
