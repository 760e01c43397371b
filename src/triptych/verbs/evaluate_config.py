"""The settings of `evaluate`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from triptych.config.marks import AMOUNT, GIVEN, INPUT, OUTPUT, RESULT, SHARED
from triptych.config.role_photos import as_list
from triptych.config.stage import StageConfig
from triptych.sampling.options import SamplingConfig


class PairsConfig(StageConfig):
    """The options of `evaluate --pairs`."""

    pairs: Annotated[str | None, INPUT] = None
    """Measure pictures of try-ons against true ones: a folder laid out like VITON-HD, DressCode or
    Garments2Look, or one with a pairs.csv; or vitonhd=FOLDER, dresscode=FOLDER, garments2look=FOLDER. A name
    alone is looked for in WORK/sets. docs/evaluate.md has the layouts.
    """
    made: Annotated[list[str], INPUT] = []
    """With --pairs: the made pictures, FOLDER or NAME=FOLDER, as `tryon --batch` or another program wrote
    them. Repeated, folders stand beside each other: base=FOLDER, then lora=FOLDER.
    """
    setting: Annotated[Literal["paired", "unpaired", "both"], AMOUNT, GIVEN] = "paired"
    """With --pairs: people in the garment that they wear in their photo (paired), in another one (unpaired),
    or both, each in a folder of that name or named by person and garment.
    """
    pair_list: Annotated[Path | None, INPUT] = None
    """With --pairs: the list to use, if not the protocol's."""
    protocol: Annotated[Path | None, INPUT] = None
    """With --pairs: a YAML file with size, filter, thresholds and least numbers, if not the shipped one of
    that set.
    """
    features: Annotated[str, INPUT] = ""
    """With --pairs: the network of FID and KID, if not the protocol's: efficientnet-lite0 (offline),
    transformers:FOLDER, or inception:FILE.safetensors for what papers report.
    """
    garment_features: Annotated[str, INPUT] = "efficientnet-lite0"
    """With --pairs: the network that compares the garments' crops: efficientnet-lite0 (offline) or
    transformers:ID with the id or folder of a vision model.
    """
    lpips_weights: Annotated[Path | None, INPUT] = None
    """With --pairs: weights of LPIPS, a .safetensors file; without it LPIPS is not measured."""
    dists_weights: Annotated[Path | None, INPUT] = None
    """With --pairs: weights of DISTS, a .safetensors file; without it DISTS is not measured."""
    allow_small: Annotated[bool, AMOUNT] = False
    """With --pairs: give FID and KID of fewer pictures than the protocol asks for."""
    write_batch: Annotated[Path | None, OUTPUT] = None
    """With --pairs: write the CSV file for `tryon --batch` that makes the pictures of the list, and measure
    nothing.
    """

    @field_validator("made", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        return as_list(value)


class EvaluateConfig(SamplingConfig, PairsConfig):
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
