"""The settings of `plan`; in their own module, because its computations import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from triptych.config.marks import GIVEN, RESULT, SHARED
from triptych.config.stage import StageConfig
from triptych.planning.card_names import card_named


class PlanConfig(StageConfig):
    card: Annotated[str, RESULT, GIVEN] = "auto"
    """The card to plan for, e.g. rtx-4090 or a100-80gb; an unknown name lists them. auto: this machine's
    card, or cpu.
    """
    model: Annotated[str | None, RESULT, GIVEN, SHARED] = None
    """Model for every stage; wins over the config file. Hub ids of FLUX.1, FLUX.2-klein and SD3.5 need no
    network, a folder
    only its configs.
    """
    num_triptychs: Annotated[int | None, RESULT, GIVEN] = Field(default=None, ge=1)
    """Number of triptychs to embed and to train on; by default those in the work folder, or 50."""

    @field_validator("card")
    @classmethod
    def _known(cls, name: str) -> str:
        """Refuse an unknown card here, before any heavy import."""
        return card_named(name)
