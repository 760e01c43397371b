"""Block swapping: transformer blocks stay in RAM and are on the device only while they run.

The frozen tensors of a swapped block lie in one piece of RAM. It is copied to the device for the block's
forward, and dropped when that ends. On a card the next block's piece is copied meanwhile, on a stream of its
own, so that two blocks at most are there. Parts that autograd saved keep a copy alive until the backward
pass. With gradient checkpointing these belong to one block at a time, because the block's forward, with its
copy, runs again right before its backward. LoRA layers are not swapped: they are added later and are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triptych.compute.devices import give_back


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
    _swap(swapped, device)
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
ALIGNED = 512
"""Tensors begin at multiples of so many bytes of a block's piece, as in memory of their own on a card."""


def _swap(blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Keep these blocks, in running order, in RAM except while they run."""
    way = _Way(device)
    for number, block in enumerate(blocks):
        piece, slots = _packed(block, pinned=device.type == "cuda")
        way.pieces.append(piece)
        block.forward = partial(_run, way, number, slots, block.forward)
        setattr(block, _SWAPPED, slots)


def _run(
    way: _Way, number: int, slots: Sequence[_Slot], forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """A swapped block's forward."""
    try:
        for slot, tensor in zip(slots, _parts(way.taken(number), [slot.home for slot in slots]), strict=True):
            slot.put(tensor)
        return forward(*args, **kwargs)
    except BaseException:
        if not _in_backward():  # there checkpointing ends a forward that it has seen enough of
            way.give_up()
        raise
    finally:
        for slot in slots:
            slot.back()


def _packed(block: nn.Module, pinned: bool) -> tuple[Tensor, list[_Slot]]:
    """A block's tensors in one piece of RAM, (bytes,) uint8, and where they belong. pinned: page-locked
    memory is copied several times faster, and without the host waiting.
    """
    slots = [slot for module in block.modules() for slot in _slots(module)]
    homes = [slot.home for slot in slots]
    piece = torch.empty(sum(map(_room, homes)), dtype=torch.uint8, pin_memory=pinned)
    packed = []
    for slot, part in zip(slots, _parts(piece, homes), strict=True):
        part.copy_(slot.home.detach())
        slot.put(part)
        packed.append(_Slot(slot.owner, slot.name, slot.owner[slot.name]))
    return piece, packed


def _parts(piece: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors in a piece, with the shapes and dtypes of these."""
    start = 0
    for tensor in like:
        yield piece[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += _room(tensor)


def _room(tensor: Tensor) -> int:
    return math.ceil(tensor.nbytes / ALIGNED) * ALIGNED


def _in_backward() -> bool:
    """Whether a backward pass is under way in this thread."""
    return torch._C._current_graph_task_id() != -1


class _Way:
    """The way of swapped blocks to the device. pieces: a block's tensors in RAM, in running order."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pieces = device, list[Tensor]()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[int, _Coming] | None = None

    def taken(self, number: int) -> Tensor:
        """A block's piece on the device. On a card that of the block that runs next sets out: the one after
        it, in the backward pass the one before it. If another one runs, it waits for its own copy.
        """
        ahead, self._coming = self._coming, None
        if ahead is not None and ahead[0] == number:
            there = ahead[1].arrived()
        else:
            del ahead  # before the other one needs room
            there = fetch(self.pieces[number], self.device)
        following = number + (-1 if _in_backward() else 1)
        if self._stream is not None and 0 <= following < len(self.pieces):
            self._coming = following, _Coming(self.pieces[following], self.device, self._stream)
        return there

    def give_up(self) -> None:
        """An error has ended the pass: the next block will not run."""
        self._coming = None


class _Coming:
    """A piece on its way to a card, on another stream than the one that computes.

    The memory is the computing stream's: what it did before with that memory is done before the copy begins,
    and whatever it does with it afterwards waits for the copy. That holds too if the piece is dropped unused
    (another block runs next, or an error ends the pass).
    """

    def __init__(self, home: Tensor, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device = device
        self._there = torch.empty(home.shape, dtype=home.dtype, device=device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._there.copy_(home, non_blocking=True)
            self._done = stream.record_event()

    def arrived(self) -> Tensor:
        """The piece, for what is told to the card from now on; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_event(self._done)
        return self._there

    def __del__(self) -> None:
        if hasattr(self, "_done"):
            self.arrived()


@contextmanager
def aside(module: nn.Module) -> Iterator[None]:
    """Move a module's tensors from a card to RAM while something else needs the card, and back afterwards."""
    held = [(tensor, tensor.device) for tensor in (*module.parameters(), *module.buffers())]
    moved = [(tensor, device) for tensor, device in held if device.type != "cpu"]
    for tensor, _ in moved:
        tensor.data = tensor.data.cpu()
    for device in {device for _, device in moved}:
        give_back(device)
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
