"""What the card can do at best, and what runs on it."""

from __future__ import annotations

import importlib.metadata

import torch

from gpu_parts.bench import GIB, Bench, Figures

PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes", "torchao", "triton")


def machine(bench: Bench) -> None:
    """Matrix products and copies at their best, memory, versions."""
    if bench.card:
        kind = torch.cuda.get_device_properties(0)
        bench.results["about"] |= {
            "card": kind.name,
            "GiB": round(kind.total_memory / GIB, 1),
            "free": round(bench.free_gib(), 1),
        }
        bench.results["about"]["capability"] = f"{kind.major}.{kind.minor}"
    side = 256 if bench.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        bench.row(f"{side} × {side} in {dtype}", lambda dtype=dtype: _product(bench, side, dtype))
    bench.row("copies from RAM, pinned and not", lambda: _copies(bench))
    bench.row("copies on the card", lambda: _within(bench))
    for package in PACKAGES:
        bench.row(package, lambda package=package: {"version": importlib.metadata.version(package)})


def _product(bench: Bench, side: int, dtype: torch.dtype) -> Figures:
    a = torch.randn(side, side, device=bench.device).to(dtype)
    a @ a
    best = min(bench.seconds(lambda: a @ a) for _ in range(2 if bench.tiny else 10))
    return {"TFLOP/s": 2 * side**3 / best / 1e12}


def _copies(bench: Bench) -> Figures:
    there = torch.empty(1 << 20 if bench.tiny else GIB, dtype=torch.uint8)
    pinned = there.pin_memory() if bench.card else there
    seconds = {
        name: min(bench.seconds(lambda one=one: one.to(bench.device, copy=True)) for _ in range(3))
        for name, one in (("GB/s", pinned), ("GB/s, not pinned", there))
    }
    return {name: there.nbytes / one / 1e9 for name, one in seconds.items()}


def _within(bench: Bench) -> Figures:
    """Bytes read and written."""
    one = torch.empty(1 << 20 if bench.tiny else GIB, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(one)
    return {"GB/s": 2 * one.nbytes / min(bench.seconds(lambda: other.copy_(one)) for _ in range(5)) / 1e9}
