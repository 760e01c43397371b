"""How much memory and speed there is: a table of cards, or this machine, measured. Time is arithmetic ÷ (peak
× efficiency).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from triptych.backbones.registry import default_device, default_dtype
from triptych.planning.card_names import check_card, known_cards
from triptych.planning.memory import Memory

EFFICIENCY = 0.4
"""Assumed: the share of a card's peak that a run reaches. Published figures of FLUX.1-dev: 0.32 on an H100
and 0.47 on an A800 (sampling), 0.42 on an RTX 4090 (training a LoRA, 1024 × 1024 in 3.5 s).
"""
MEASURED_EFFICIENCY = 0.7
"""The same where the peak is not the maker's but that of large matrix products as measured here."""


@dataclass(frozen=True)
class Card:
    """memory: bytes. bf16, fp32: operations per second at best. pcie: bytes per second from RAM."""

    name: str
    memory: float
    bf16: float
    fp32: float
    pcie: float = 25e9
    is_card: bool = True
    efficiency: float = EFFICIENCY

    @property
    def dtype(self) -> torch.dtype:
        """What `dtype: auto` means on it."""
        return torch.bfloat16 if self.is_card else default_dtype(torch.device("cpu"))

    def seconds(self, memory: Memory, dtype: torch.dtype) -> float:
        """Of one unit of a stage's work. Copies to the card are taken to wait for each other and for the
        arithmetic.
        """
        peak = self.fp32 if dtype == torch.float32 else self.bf16
        return memory.flops / (peak * self.efficiency) + memory.swapped / self.pcie


def find_card(name: str) -> Card:
    """A card of `cards.yaml` by name; `cpu`; or `auto`: the CUDA card here, else the CPU.

    Raises:
        ConfigError: an unknown name, with the known ones.
    """
    if name == "auto":
        return _measured(default_device())
    if name == "cpu":
        return _measured(torch.device("cpu"))
    check_card(name)
    row = known_cards()[name]
    return Card(
        name, row["memory"] * 2**30, row["bf16_tflops"] * 1e12, row["fp32_tflops"] * 1e12, row["pcie"] * 1e9
    )


def _measured(device: torch.device) -> Card:
    card = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if card else "cpu"
    memory = (
        torch.cuda.get_device_properties(device).total_memory
        if card
        else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    fp32 = _matmul_speed(device, torch.float32)
    bf16 = fp32 if default_dtype(device) == torch.float32 else _matmul_speed(device, torch.bfloat16)
    return Card(name, float(memory), bf16, fp32, is_card=card, efficiency=MEASURED_EFFICIENCY)


def _matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of matrix products, the best of a few."""
    side = 8192 if device.type == "cuda" else 1024
    a, best = torch.randn(side, side, device=device).to(dtype), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the card
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
