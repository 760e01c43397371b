"""The settings of `lora convert` and `lora inspect`; apart from them,
because LoRA files are read with torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from triptych.config.stage import StageConfig


class LoraConvertConfig(StageConfig):
    lora: Path | None = None
    """LoRA file to read, or a folder that holds one; docs/lora.md lists the formats."""
    out: Path | None = None
    """File to write, ending in .safetensors; an existing one is never overwritten."""
    to: Literal["diffusers", "comfyui", "kohya"] = "diffusers"
    """Names to write: diffusers (ComfyUI reads them too); for FLUX.1 also native names for ComfyUI, or
    kohya's.
    """
    transformer_only: bool = False
    """Leave out what the file holds for text encoders; without it such a file is refused."""


class LoraInspectConfig(StageConfig):
    lora: Path | None = None
    """LoRA file, or a folder that holds one."""
