"""Convolutions in full float32 on a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Within this, convolutions of float32 keep all 24 bits of the mantissa. As PyTorch comes, a card of
    Ampere or later keeps 11 (TF32), which moves the latents of an autoencoder by 2e-4 (docs/benchmarks.md).
    bfloat16 is not concerned.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
