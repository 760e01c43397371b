"""Memory and speed of a card, from a table, or of this machine, measured. Time = arithmetic ÷ (peak ×
efficiency).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from triptych.compute.devices import default_device, default_dtype
from triptych.planning.card_names import card_named, known_cards
from triptych.planning.memory import Memory

EFFICIENCY = 0.4
"""Assumed: the share of a card's peak that a run reaches. Published figures for FLUX.1-dev: 0.32 on an H100
and 0.47 on an A800 (sampling), 0.42 on an RTX 4090 (training a LoRA, 1024 × 1024 in 3.5 s).
"""
MEASURED_EFFICIENCY = 0.7
"""The same share, if the peak is not the maker's figure but the measured speed of large matrix products."""

CONTEXT = 0.4 * 2**30
"""Assumed: what asking a card takes of it. It is free again when `plan` has ended, and a stage's own is a
row of its memory.
"""


@dataclass(frozen=True)
class Card:
    """memory: bytes that can be had. bf16, fp32: operations per second at best. pcie: bytes per second from
    RAM. total: bytes in all, if other programs have taken some; else 0.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    pcie: float = 25e9
    is_card: bool = True
    efficiency: float = EFFICIENCY
    total: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `dtype: auto` means on this card."""
        return torch.bfloat16 if self.is_card else default_dtype(torch.device("cpu"))

    def seconds(self, memory: Memory, dtype: torch.dtype) -> float:
        """Seconds for one unit of a stage's work. Copies to the card are counted as if they did not overlap
        with the arithmetic, which is at least what they take.
        """
        peak = self.fp32 if dtype == torch.float32 else self.bf16
        return memory.flops / (peak * self.efficiency) + memory.swapped / self.pcie


def find_card(name: str) -> Card:
    """A card of `cards.yaml` by name; `cpu`; or `auto`: the CUDA card here, else the CPU.

    Raises:
        ConfigError: the name is unknown. The hint lists the known ones.
    """
    if name == "auto":
        return _measured(default_device())
    if name == "cpu":
        return _measured(torch.device("cpu"))
    name = card_named(name)
    row = known_cards()[name]
    return Card(
        name, row["memory"] * 2**30, row["bf16_tflops"] * 1e12, row["fp32_tflops"] * 1e12, row["pcie"] * 1e9
    )


def _measured(device: torch.device) -> Card:
    card = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if card else "cpu"
    if card:
        free, total = torch.cuda.mem_get_info(device)
        memory = min(total, free + CONTEXT)
    else:
        memory = total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fp32 = _matmul_speed(device, torch.float32)
    bf16 = fp32 if default_dtype(device) == torch.float32 else _matmul_speed(device, torch.bfloat16)
    return Card(
        name, float(memory), bf16, fp32, is_card=card, efficiency=MEASURED_EFFICIENCY, total=float(total)
    )


def _matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of matrix products, the best of a few runs."""
    side = 8192 if device.type == "cuda" else 1024
    a, best = torch.randn(side, side, device=device).to(dtype), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the card
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
