"""Tensors sent to a card without waiting for what the card is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on the device, in `dtype`.

    A copy from ordinary memory waits until the card has done all it was told; one from page-locked memory
    joins the queue. PyTorch keeps that memory until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype)
