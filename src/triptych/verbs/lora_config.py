"""The settings of `lora convert` and `lora inspect`; in their own module, because the verbs import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from triptych.config.marks import INPUT, OUTPUT, RESULT
from triptych.config.stage import StageConfig
from triptych.errors import InputError
from triptych.lora.find import lora_file


class LoraConvertConfig(StageConfig):
    lora: Annotated[Path | None, INPUT] = None
    """LoRA file to read, or a folder that holds one; docs/lora.md lists the formats."""
    out: Annotated[Path | None, OUTPUT] = None
    """File to write, ending in .safetensors; an existing one is never overwritten."""
    to: Annotated[Literal["diffusers", "comfyui", "kohya"], RESULT] = "diffusers"
    """Names to write: diffusers (ComfyUI reads them too); for FLUX.1 and FLUX.2 also native names for
    ComfyUI, or kohya's.
    """
    transformer_only: Annotated[bool, RESULT] = False
    """Leave out weights for text encoders; without it, a file with such weights is refused."""

    def check_early(self) -> None:
        """
        Raises:
            InputError: no file given, or `out` is not possible. ModelError: there is no LoRA.
        """
        if self.lora is None or self.out is None:
            raise InputError(
                "A LoRA to read and a file to write are needed.", "Say `triptych lora convert IN OUT`."
            )
        if self.out.suffix != ".safetensors":
            raise InputError(
                f"{self.out} does not end in .safetensors.", "LoRA files are written as safetensors only."
            )
        if self.out.exists():
            raise InputError(f"{self.out} exists already.", "Give another name, or delete it.")
        lora_file(self.lora)


class LoraInspectConfig(StageConfig):
    lora: Annotated[Path | None, INPUT] = None
    """LoRA file, or a folder that holds one."""

    def check_early(self) -> None:
        """
        Raises:
            InputError: no file given. ModelError: there is no LoRA.
        """
        if self.lora is None:
            raise InputError("There is no LoRA to look at.", "Say `triptych lora inspect FILE`.")
        lora_file(self.lora)
