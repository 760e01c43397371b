"""The settings of `evaluate`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from triptych.config.marks import AMOUNT, GIVEN, OUTPUT, RESULT, SHARED
from triptych.sampling.options import SamplingConfig


class EvaluateConfig(SamplingConfig):
    model: Annotated[str, RESULT, GIVEN, SHARED] = "pocket"
    """`pocket`, or another model trained on the rendered world."""
    pocket: Annotated[bool, RESULT, GIVEN] = False
    """Measure on held-out garments and people of the rendered world, with a judge that knows the truth."""
    items: Annotated[int, RESULT, GIVEN] = Field(default=300, ge=2, le=5000)
    """Garments to measure on; a share's 95 % interval is about ±5 points at 300 and ±14 at 48."""
    back_prints: Annotated[bool, RESULT, GIVEN] = False
    """Use only garments with a print on their back, on people from behind: only the second photo shows the
    print.
    """
    mode: Annotated[Literal["generate", "tryon", "both", "tryoff"], AMOUNT, GIVEN] = "generate"
    """generate: a person wearing the garment of two product photos. tryon: a given person, redressed inside a
    polygon. both: these two. tryoff: front and back of the garment that somebody wears, by a LoRA of that
    task.
    """
    masks: Annotated[Literal["drawn", "auto", "free"], RESULT] = "drawn"
    """tryon: polygons around what the person wears, as users draw them; the region that `tryon --mask auto`
    proposes for the new garment (auto); or none, as with `tryon --mask-free` (free).
    """
    strength: Annotated[float, RESULT] = Field(default=0.95, gt=0, le=1)
    """tryon: share of noise that sampling adds to the photo."""
    refine: Annotated[float, RESULT] = Field(default=0, ge=0, le=1)
    """tryon: strength of a second pass at twice the resolution, as with `tryon --refine`; 0: none."""
    base: Annotated[bool, AMOUNT, GIVEN] = True
    """Measure the base model on the same seeds too, for comparison; without the options that need a LoRA."""
    out: Annotated[Path | None, OUTPUT] = None
    """Folder for evaluation.json and the sheets, if not WORK/evaluation."""
