"""The settings of `import`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from triptych.config.marks import GIVEN, INPUT, RESULT, SHARED
from triptych.config.stage import StageConfig


class ImportConfig(StageConfig):
    folder: Annotated[Path | None, INPUT] = None
    """The data set: pictures (.png, .jpg, .webp), each with its caption beside it as .txt or in
    metadata.jsonl; or a folder of VITON-HD, DressCode or Garments2Look, which needs no other option.
    """
    layout: Annotated[str, RESULT, GIVEN] = ""
    """Layout of the panels on a canvas, ROWSxCOLUMNS: 3x1 for three below each other, 1x3 for three side by
    side. Needed, because a picture does not state it.
    """
    roles: Annotated[list[str], RESULT, GIVEN] = []
    """Names of the panels in reading order: --roles logo,bag,poster. Default: panel1, panel2 …"""
    made: Annotated[list[str], RESULT, GIVEN] = []
    """The roles that a LoRA of this set generates from photos of the others. Default: all of them; then
    photos of any panels can be given.
    """
    marker: Annotated[list[str], RESULT, GIVEN] = []
    """Markers of the panels in a caption, with {n} for the number: "[SCENE-{n}]"; or one marker per panel.
    Captions keep their markers. Default: <IMAGE 1>, <IMAGE 2> …
    """
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """The diffusion model to be trained, to whose grid the panels are fitted; without one, the grid is 16
    pixels, which suits all models.
    """
    panel_width: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Pixels of a panel; by default its own, rounded down to the grid. If only one side is given, the other
    follows.
    """
    panel_height: Annotated[int | None, RESULT] = Field(default=None, ge=16, le=8192)
    """Likewise."""

    @field_validator("roles", "made", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """`a,b,c` is three words."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            return value
        return [word.strip() for part in parts for word in part.split(",") if word.strip()]

    @field_validator("marker", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
