"""One training in several processes, as set up by `torchrun` or `accelerate launch` through the environment.

Only LoRA gradients are exchanged, in one sum. Every device holds the frozen model, or a part of it, and then
blocks are gathered while they run. One process writes files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from triptych.compute.blocks import Blocks
from triptych.errors import ConfigError

PATIENCE = timedelta(hours=3)
"""How long processes wait for each other. One of them makes all validation pictures meanwhile; NCCL's usual
10 minutes are too few for many pictures on a slow card. A process that dies ends the others at once: the
launcher sees to that.
"""


def world_size() -> int:
    """Number of processes in this training; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0; process 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


def own_device(device: str) -> str:
    """Resolve `auto` and `cuda` to this process's card, if there are several processes.

    Raises:
        ConfigError: two processes of this machine would share a card, which NCCL refuses.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if here > 1 and device.startswith("cuda:"):
        hint = "Leave --device out: each process takes a card of its own."
        raise ConfigError(f"--device {device} is one card for {here} processes.", hint)
    if world_size() == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    number, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= cards:
        hint = "Start as many processes as there are cards."
        raise ConfigError(f"There are {here} processes here, and {cards} CUDA cards.", hint)
    return f"cuda:{number}"


def join(device: torch.device) -> None:
    """Join the other processes; a single process does nothing. device: this process's card, with its number,
    or the CPU.
    """
    if world_size() == 1 or distributed.is_initialized():
        return
    if device.type != "cuda":
        distributed.init_process_group("gloo", timeout=PATIENCE)
        return
    torch.cuda.set_device(device)  # FSDP2 shards onto the current card, else card 0
    distributed.init_process_group("nccl", device_id=device, timeout=PATIENCE)


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def wants_sharding(asked: bool) -> bool:
    """Whether the frozen model is to be sharded over the processes: by option, or by accelerate's
    `distributed_type: FSDP`.
    """
    return world_size() > 1 and (asked or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true")


def shard(
    transformer: nn.Module, blocks: Blocks, trained: Sequence[nn.Parameter], device: torch.device
) -> None:
    """Shard the blocks' frozen weights over the processes. Each process keeps all other weights and all
    trained parameters.

    FSDP2 gathers a block's weights for its forward and backward pass, and then frees them again. Every block
    is a root of its own, and what lies outside the blocks stays whole.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks.values():
        # By default a root stays gathered after its forward pass, and these are all roots.
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=set(trained))
    transformer.to(device)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes."""
    if not distributed.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Each number summed over all processes."""
    if not distributed.is_initialized():
        return list(values)
    tensor = _exact(values, device)
    distributed.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def first(value: float, device: torch.device) -> float:
    """The value from process 0, so that all processes decide alike."""
    if not distributed.is_initialized():
        return value
    tensor = _exact([value], device)
    distributed.broadcast(tensor, src=0)
    return float(tensor.item())


def any_of(value: bool, device: torch.device) -> bool:
    """Whether the value is true in any process."""
    return summed([float(value)], device)[0] > 0


def wait(device: torch.device) -> None:
    """Wait until all processes have reached this point."""
    summed([0.0], device)


def _exact(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
