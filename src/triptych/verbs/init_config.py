"""The settings of `init`; they import nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from triptych.config.marks import ASKED, GIVEN, INPUT, OUTPUT, RESULT, SHARED
from triptych.config.stage import StageConfig


class InitConfig(StageConfig):
    photos: Annotated[Path | None, INPUT] = None
    """Folder with one folder of photos per item: item1/ item2/ …"""
    human: Annotated[Path | None, INPUT] = None
    """Folder with example photos of people; looked for beside the photos if not given."""
    garment: Annotated[Path | None, INPUT] = None
    """Folder with example photos of garments without people; looked for beside the photos if not given."""
    model: Annotated[str, RESULT, GIVEN, SHARED] = ""
    """The model to train a LoRA for: a hub id such as black-forest-labs/FLUX.2-klein-base-4B, a
    diffusers folder, `pocket` or `pocket-klein`, which only know rendered clothes.
    """
    vlm_model: Annotated[str, ASKED] = ""
    """The captioner: a model on a server such as gpt-4.1-mini (for a server of your own, add --base-url), the
    folder of a transformers model, or `pocket`, which only knows rendered clothes.
    """
    base_url: Annotated[str | None, ASKED] = None
    """Address of the captioner's server, such as http://127.0.0.1:8000/v1, if it is your own."""
    out: Annotated[Path, OUTPUT] = Path("triptych.yaml")
    """Config file to write; an existing one is never overwritten."""
