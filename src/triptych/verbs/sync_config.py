"""The settings of `sync`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triptych.config.marks import GIVEN, RUNNING
from triptych.config.stage import StageConfig


class SyncConfig(StageConfig):
    source: Annotated[str, GIVEN, RUNNING] = ""
    """Folder to copy from: a path, or an address such as s3://shop/photos, gs://… or memory://…"""
    target: Annotated[str, GIVEN, RUNNING] = ""
    """Folder to copy to, of the same kinds."""
    concurrency: Annotated[int, RUNNING] = Field(default=8, ge=1, le=64)
    """Files copied at the same time."""
