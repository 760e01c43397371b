"""Find a LoRA file. Imports no torch, so that a missing file is reported at once."""

from __future__ import annotations

from pathlib import Path

from triptych.errors import ModelError

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"


def lora_file(path: Path) -> Path:
    """Find the LoRA file for a path: the file itself, a folder that holds one (diffusers' or peft's), or a
    work folder.

    Raises:
        ModelError: there is no LoRA.
    """
    folder = path.parent if path.name == PEFT_CONFIG else path
    if (
        path.name == "state.safetensors" and (path.parent / FILE_NAME).is_file()
    ):  # the training state; its LoRA lies beside it
        return path.parent / FILE_NAME
    for candidate in (path, folder / FILE_NAME, folder / "lora" / FILE_NAME, folder / PEFT_NAME):
        if candidate.is_file() and candidate.name != PEFT_CONFIG:
            return candidate
    saved = sorted(
        [*path.glob(f"checkpoints/step-*/{FILE_NAME}"), *path.glob(f"lora/checkpoints/step-*/{FILE_NAME}")]
    )
    if saved:
        there = ", ".join(str(file.parent) for file in saved)
        hint = f"Give the LoRA of a checkpoint: {there}; or run the command that trains it again, to the end."
        raise ModelError(f"The training in {path} is not finished, so there is no LoRA yet.", hint)
    if (folder / "adapter_model.bin").is_file():
        hint = "Save it again with peft: save_pretrained(…, safe_serialization=True)."
        raise ModelError(f"The LoRA in {folder} is a pickle file, which is never read.", hint)
    other = sorted(one.name for one in folder.glob("*.safetensors")) if folder.is_dir() else []
    inner = sorted({file.parent for name in (FILE_NAME, PEFT_NAME) for file in folder.glob(f"*/{name}")})
    if inner and not other:
        raise ModelError(
            f"There is no LoRA in {path} itself.",
            f"Give the folder that holds one: {', '.join(map(str, inner[:5]))}.",
        )
    hint = (
        f"In it lies {other[0]}: give that file."
        if len(other) == 1
        else f"Give a .safetensors file or a folder with {FILE_NAME}."
    )
    raise ModelError(f"There is no LoRA at {path}.", hint)
