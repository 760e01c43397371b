"""The settings of `roles`; they import nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triptych.config.marks import ASKED, GIVEN, RARE, RESULT, RUNNING, SHARED
from triptych.config.stage import StageConfig


class RolesConfig(StageConfig):
    task: Annotated[str, RESULT, GIVEN, SHARED] = "try-on"
    """The task whose roles the photos take: try-on (front, back) or outfit (front, back, detail, top, bottom,
    shoes, bag).
    """
    vlm_model: Annotated[str, ASKED] = ""
    """The captioner that looks at the photos: names as for `caption`, such as gpt-4.1-mini."""
    base_url: Annotated[str | None, ASKED] = None
    """Address of an OpenAI-compatible server for vlm_model."""
    anyway: Annotated[bool, RUNNING, RARE, SHARED] = False
    """Show the captioner photographs even if it says that it has never seen any; it warns."""
    max_new_tokens: Annotated[int, RESULT, RARE] = Field(default=600, ge=16)
    """Longest answer in tokens; the word alone has few, but some models reason first."""
    timeout: Annotated[float, RUNNING] = Field(default=120, gt=0)
    """Time limit for one answer of a server, in seconds."""
    attempts: Annotated[int, RUNNING, RARE] = Field(default=5, ge=1, le=20)
    """How often a busy or failing server is tried."""
    concurrency: Annotated[int, RUNNING] = Field(default=4, ge=1, le=64)
    """Number of simultaneous questions to a server."""
