"""The settings of `lora convert` and `lora inspect`; apart from them,
because LoRA files are read with torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from triptych.config.marks import INPUT, OUTPUT, RESULT
from triptych.config.stage import StageConfig


class LoraConvertConfig(StageConfig):
    lora: Annotated[Path | None, INPUT] = None
    """LoRA file to read, or a folder that holds one; docs/lora.md lists the formats."""
    out: Annotated[Path | None, OUTPUT] = None
    """File to write, ending in .safetensors; an existing one is never overwritten."""
    to: Annotated[Literal["diffusers", "comfyui", "kohya"], RESULT] = "diffusers"
    """Names to write: diffusers (ComfyUI reads them too); for FLUX.1 also native names for ComfyUI, or
    kohya's.
    """
    transformer_only: Annotated[bool, RESULT] = False
    """Leave out what the file holds for text encoders; without it such a file is refused."""


class LoraInspectConfig(StageConfig):
    lora: Annotated[Path | None, INPUT] = None
    """LoRA file, or a folder that holds one."""
