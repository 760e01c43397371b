"""Block swapping: transformer blocks stay in RAM and are on the device only while they run.

A swapped block's frozen tensors are copied to the device when its forward begins, and the copies are dropped
when it ends. Copies that autograd saved live on until the backward pass. With gradient checkpointing these
belong to one block at a time, because the block's forward, with its copies, runs again right before its
backward. LoRA layers are not swapped: they are added later and are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Slot:
    """A tensor of a module: the dictionary that holds it and its name there."""

    owner: dict[str, Any]
    name: str
    home: Tensor

    def put(self, tensor: Tensor) -> None:
        # A new object, never `.data` of the old one: autograd may still hold the old tensor.
        frozen = nn.Parameter(tensor, requires_grad=False) if isinstance(self.home, nn.Parameter) else tensor
        self.owner[self.name] = frozen

    def back(self) -> None:
        self.owner[self.name] = self.home


def place(transformer: nn.Module, device: torch.device, swapped: Iterable[nn.Module] = ()) -> nn.Module:
    """Move a frozen transformer from RAM to the device. Its `swapped` blocks stay in RAM except while they
    run.
    """
    swapped = list(swapped)
    if not swapped:
        return transformer.to(device)
    stays = {module for block in swapped for module in block.modules()}
    for module in transformer.modules():
        if module not in stays:
            for slot in _slots(module):
                slot.put(slot.home.to(device))
    for block in swapped:
        _swap(block, device)
    return transformer


def resident_parameter(transformer: nn.Module) -> nn.Parameter:
    """A parameter with the device and dtype that a transformer computes in: the first that is neither swapped
    nor quantised nor part of a LoRA.
    """
    away = {id(slot.home) for module in transformer.modules() for slot in vars(module).get(_SWAPPED, ())}
    return next(
        parameter
        for name, parameter in transformer.named_parameters()
        if parameter.is_floating_point() and "lora_" not in name and id(parameter) not in away
    )


_SWAPPED = "_swapped_tensors"
"""Attribute of a swapped block that names its tensors."""


def _swap(block: nn.Module, device: torch.device) -> None:
    if device.type == "cuda":  # pinned memory is copied several times faster
        for module in block.modules():
            for slot in _slots(module):
                slot.put(slot.home.pin_memory())
    slots = [slot for module in block.modules() for slot in _slots(module)]
    run = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            for slot in slots:
                slot.put(fetch(slot.home, device))
            return run(*args, **kwargs)
        finally:
            for slot in slots:
                slot.back()

    block.forward = forward
    setattr(block, _SWAPPED, slots)


@contextmanager
def aside(module: nn.Module) -> Iterator[None]:
    """Move a module's tensors from a card to RAM while something else needs the card, and back afterwards."""
    held = [(tensor, tensor.device) for tensor in (*module.parameters(), *module.buffers())]
    moved = [(tensor, device) for tensor, device in held if device.type != "cpu"]
    for tensor, _ in moved:
        tensor.data = tensor.data.cpu()
    if moved:
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)


def fetch(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, even if that device is the CPU."""
    return tensor.detach().to(device, non_blocking=True, copy=True)


def _slots(module: nn.Module) -> list[_Slot]:
    """The module's own tensors, not its children's."""
    owners: list[dict[str, Any]] = [module._parameters, module._buffers]
    return [
        _Slot(owner, name, tensor) for owner in owners for name, tensor in owner.items() if tensor is not None
    ]
