"""The settings of `clean`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.config.engine import EngineConfig
from triptych.config.marks import GIVEN, INPUT, OUTPUT, RARE, RESULT, SHARED
from triptych.config.stage import Seed


class CleanConfig(EngineConfig):
    """Settings of `clean`, which tells human photos from garment photos."""

    photos: Annotated[Path | None, INPUT] = None
    """Folder of raw photos, one folder per item: photos/item1/*.jpg."""
    human: Annotated[Path | None, INPUT] = None
    """Folder of example photos that show a person; a few dozen are enough."""
    garment: Annotated[Path | None, INPUT] = None
    """Folder of example photos that show a garment alone."""
    task: Annotated[str, RESULT, GIVEN, SHARED] = "try-on"
    """The task whose roles overrides and folders may name, and the contact sheet shows: try-on, or outfit for
    items of several garments.
    """
    features: Annotated[str, RESULT] = "efficientnet-lite0"
    """Image features: efficientnet-lite0 (offline), or transformers:ID with the id or folder of a vision
    model, such as transformers:google/siglip2-base-patch16-224.
    """
    unsure: Annotated[float, RESULT] = Field(default=0.1, ge=0, le=10)
    """Photos nearer than this to the border are labelled unsure (1 = as far as the nearest examples)."""
    min_side: Annotated[int, RESULT] = Field(default=32, ge=1)
    """Photos with a side shorter than this many pixels are rejected."""
    min_sharpness: Annotated[float, RESULT] = Field(default=0.35, ge=0, le=1)
    """Photos whose sharpest edges are softer than this are rejected as blurred: about 0.4 and less if blurred
    over 2 pixels of 512, 0.55 and more if in focus. 0: none.
    """
    small_side: Annotated[int, RESULT] = Field(default=200, ge=0)
    """Photos whose longer side is shorter than this many pixels are flagged as small, and used."""
    min_shared_colours: Annotated[float, RESULT] = Field(default=0.34, ge=0, le=1)
    """Photos of people that share less than this of the colours of their item's garment are flagged, and
    used. 0: none.
    """
    max_likelier: Annotated[float, RESULT] = Field(default=0.5, ge=0, le=1)
    """Photos of people are flagged, and used, if more than this share of the other items' garments look more
    like what they wear than their item's own. 1: none.
    """
    overrides: Annotated[Path | None, INPUT] = None
    """Text file with lines 'item1/photo.jpg human' that win over the classifier; WORK/catalogue/overrides.txt
    if it exists.
    """
    sorted_folders: Annotated[bool, OUTPUT] = False
    """Also put the photos into CATALOGUE/ITEM/human and CATALOGUE/ITEM/garment, as hard links (copies where
    the disk has none). `paired_data_path` of the original project means this.
    """
    seed: Annotated[Seed, RESULT, RARE, SHARED] = 0
    """Seed of the cross-check that looks for examples in the wrong folder."""
