"""The devices that PyTorch computes on: which one is meant, what it computes fast, and the memory that its
allocator holds.
"""

from __future__ import annotations

import torch

from triptych.errors import ModelError


def usable_device(device: str) -> torch.device:
    """The device of an option: `auto` (a CUDA card, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        ModelError: there is no such device here.
    """
    try:
        where = default_device() if device == "auto" else torch.device(device)
        _make_current(where)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device '{device}' cannot be used here.", "Give auto, cpu or, with a CUDA card, cuda."
        ) from error
    return where


def default_device() -> torch.device:
    """A CUDA card, else the CPU. Never an Apple GPU: nothing has been run on one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast, float32 elsewhere."""
    if device.type == "mps":
        fast = torch.backends.mps.is_macos_or_newer(14, 0)  # older ones have no bfloat16
    elif device.type != "cuda":
        fast = torch.cpu._is_avx512_bf16_supported()
    else:
        with torch.cuda.device(device):  # PyTorch asks the current card
            # Turing and Pascal only emulate it.
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def give_back(device: torch.device) -> None:
    """Give memory of the device that no tensor uses back to it. PyTorch keeps it otherwise, for tensors to
    come.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Begin to measure peak memory anew; only a card can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _make_current(device: torch.device) -> None:
    """Make a numbered card the current one of a process that has used none yet. Else pinned memory and others
    that name no card would take some 400 MB of card 0. A program that computes on a card already keeps it.
    """
    numbered = device.type == "cuda" and device.index is not None
    if numbered and torch.cuda.is_available() and not torch.cuda.is_initialized():
        torch.cuda.set_device(device)
