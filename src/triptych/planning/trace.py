"""The memory model: run the real code on tensors that have a shape but no data, and count the bytes that
would be alive.

torch's meta device runs forward, backward and gradient checkpointing like a real device, but without memory
or arithmetic. The memory of a step is therefore counted, tensor by tensor, while `losses_of` or
`sample_latents` runs, and not computed by formulas that would go out of date with the code. Arithmetic is
counted at the same time, with torch's own formulas (`torch.utils.flop_counter`: the product of an (m, k) and
a (k, n) matrix is 2·m·k·n operations).

A transformer's blocks are alike. `thinned` keeps three blocks of every run of equal ones. The memory and
arithmetic that the middle block adds, forward and backward, are then counted once per block of the whole
model. FLUX.1-dev takes seconds that way.

The count misses memory that a kernel allocates and frees before it returns (cuBLAS and cuDNN workspaces).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from triptych.compute.blocks import Blocks

KEPT = 3
"""Number of blocks kept of a run of equal ones: the first, the last, and a typical one between, because the
first and the last have other neighbours.
"""


@dataclass
class Segment:
    """A part of the run. rise: largest increase of live bytes since its start. change: increase at its end.
    flops: its arithmetic.
    """

    name: str
    times: int = 1
    """How often the whole model runs it."""
    rise: int = 0
    change: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Profile:
    """Memory and arithmetic of a run, without the weights. peak: bytes alive at the worst moment. kept: bytes
    alive when the backward pass begins (0 without one). flops: floating-point operations; a multiplication
    and an addition count as two.
    """

    peak: int
    kept: int
    flops: int


def profile(segments: Iterable[Segment]) -> Profile:
    """The profile of all segments in order, each repeated as often as the whole model runs it."""
    live = peak = kept = flops = 0
    backward = False
    for segment in segments:
        if segment.name == "backward" and not backward:
            backward, kept = True, live
        for _ in range(segment.times):
            peak = max(peak, live + segment.rise)
            live += segment.change
        flops += segment.times * segment.flops
    return Profile(peak, kept, flops)


def runs_of_blocks(blocks: Blocks) -> list[list[nn.Module]]:
    """A transformer's blocks in running order, with equal neighbours grouped."""
    runs: list[tuple[Any, list[nn.Module]]] = []
    for path, block in blocks.items():
        kind = _list_of(path), tuple((key, value.shape) for key, value in block.named_parameters())
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(block)
    return [equal for _, equal in runs]


def thinned(transformer: nn.Module, blocks: Blocks) -> dict[nn.Module, int]:
    """Remove blocks from a transformer, so that at most `KEPT` equal ones follow each other.

    Returns the blocks that remain, and how often the whole model runs each.
    """
    times: dict[nn.Module, int] = {}
    for equal in runs_of_blocks(blocks):
        kept = equal if len(equal) <= KEPT else [*equal[:2], equal[-1]]
        times |= dict.fromkeys(kept, 1)
        times[kept[min(1, len(kept) - 1)]] += len(equal) - len(kept)
    for name in dict.fromkeys(map(_list_of, blocks)):
        kept = [block for path, block in blocks.items() if _list_of(path) == name and block in times]
        transformer.set_submodule(name, nn.ModuleList(kept))
    return times


def _list_of(path: str) -> str:
    """The path of the module list that holds the block at `path`."""
    return path.rpartition(".")[0]


class Trace(TorchDispatchMode):
    """Counts live bytes and arithmetic of meta tensors, segment by segment. Tensors that exist before are not
    counted.
    """

    def __init__(self, module: nn.Module, times: dict[nn.Module, int] | None = None) -> None:
        """times: blocks of `module` that form their own segments, and how often the whole model runs each."""
        super().__init__()
        self.segments = [Segment("start")]
        self._times = times or {}
        self._live = self._start = 0
        self._owner: nn.Module | None = None
        before = [
            *module.parameters(),
            *module.buffers(),
            *(p.grad for p in module.parameters() if p.grad is not None),
        ]
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.bool:
            return args[0]  # masks stay real on every device, because the number of selected elements matters
        if any(tensor.is_meta for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)):
            args = _all_meta(args)
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.segments[-1].flops += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, partial(self._freed, key, size, len(self.segments)))
        self._live += size
        segment = self.segments[-1]
        segment.rise = max(segment.rise, self._live - self._start)

    def _freed(self, key: int, size: int, made: int, _: object) -> None:
        """made: number of segments at the allocation. Some memory is allocated once per block, but freed once
        at the end of the forward pass (keys and values of clean context): count its release as often as its
        allocation.
        """
        del self._known[key]
        self._live -= size
        before, now = self.segments[made - 1], self.segments[-1]
        if now.name == "forward" and len(self.segments) > made + 1 and now.times == 1:
            now.change -= size * (before.times - 1)

    def __enter__(self) -> Trace:
        self._hooks = []
        for block in self._times:
            self._hooks.append(block.register_forward_pre_hook(lambda block, _: self._open("forward", block)))
            self._hooks.append(block.register_forward_hook(self._leave))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._close()
        for hook in self._hooks:
            hook.remove()

    def _open(self, name: str, block: nn.Module) -> None:
        """Begin a new segment. A forward pass that gradient checkpointing repeats during the backward pass
        begins none: it belongs to the backward segment.
        """
        if name != "backward" and torch._C._current_graph_task_id() != -1:
            return
        if (self.segments[-1].name, self._owner) != (name, block):
            self._close()
            self._owner = block
            self.segments.append(Segment(name, self._times[block]))

    def _close(self) -> None:
        self.segments[-1].change += self._live - self._start
        self._start = self._live

    def _leave(self, block: nn.Module, _: Any, out: Any) -> None:
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, Tensor)
                and tensor.requires_grad
                and torch._C._current_graph_task_id() == -1
            ):
                tensor.register_hook(lambda gradient, block=block: self._open("backward", block))


def _all_meta(args: Any) -> Any:
    """Move real tensors to meta, for operations that mix both. A real mask used as an index becomes the
    indices that it selects, which keeps their number.
    """

    def places(indices: Any) -> Any:
        if not isinstance(indices, (list, tuple)):
            return indices
        chosen: list[Any] = []
        for index in indices:
            mask = isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta
            chosen += index.nonzero().unbind(1) if mask else [index]
        return chosen

    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), tuple(places(arg) for arg in args))


_LOW = {F.linear, torch.matmul, torch.bmm, F.conv2d}
_FULL = {F.layer_norm, F.rms_norm, F.group_norm}


class Device(TorchFunctionMode):
    """Make the meta device run some operations as a card does.

    Attention is fused: it has no matrix of queries × keys. With `autocast`, matrix products run in that dtype
    and norms in float32, as in torch's autocast for CUDA (ATen/autocast_mode.h); the meta device has no
    autocast.
    """

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.autocast = None if autocast == torch.float32 else autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
            return torch.ops.aten._scaled_dot_product_flash_attention(
                *_cast([*args, *named][:3], self.autocast)
            )[0]
        if self.autocast is not None and (func in _LOW or func in _FULL):
            args, kwargs = (
                _cast(part, self.autocast if func in _LOW else torch.float32) for part in (args, kwargs)
            )
        return func(*args, **kwargs)


def _cast(part: Any, dtype: torch.dtype | None) -> Any:
    """Cast floating-point tensors in `part` to `dtype`; None leaves them unchanged."""
    if dtype is None:
        return part
    return tree_map_only(
        Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, part
    )


@contextmanager
def traced(
    module: nn.Module, times: dict[nn.Module, int] | None = None, autocast: torch.dtype | None = None
) -> Iterator[Trace]:
    """Count memory and arithmetic of the code inside; see `Trace` and `Device`."""
    with Device(autocast), Trace(module, times) as trace:
        yield trace


def backward(loss: Tensor) -> None:
    """Run the backward pass by the engine function inside `loss.backward()`. `Device` sees `loss.backward()`
    as a single call, and would miss the forward passes that gradient checkpointing repeats.
    """
    ones = torch.ones_like(loss)
    torch.autograd.graph._engine_run_backward(
        (loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
