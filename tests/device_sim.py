"""A card that is only pretended: the CPU computes, and what was sent to "cuda" is known by its memory.

    with Card() as card:
        session = Session(model, device="cuda")
        ...
    card.waits, card.live, card.peak, card.attention

A tensor of the card answers `tensor.device` with cuda:0, so the code takes the ways of a card. What a real
card refuses is refused: operands of both sides (except numbers without dimension, and indices, which may lie
on the CPU), `.numpy()`, a CPU generator for noise drawn there. Autocast casts as on a card.

A copy on a stream of its own is made as late as a card may make it: when the computing stream waits for it.
Until then nonsense lies there. Such a copy is refused if its stream has not waited for what the computing
stream did before the memory was given out; and memory that is given back while a copy is on its way is a
race.

Not seen: kernels, the allocator's rounding, and what runs in other threads. A gradient that flows from one
side to the other is not moved.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from triptych.planning.trace import _FULL, _LOW, _cast, backward

CARD = torch.device("cuda", 0)
ATEN = torch.ops.aten
ANSWERS = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.equal,
    ATEN._unique2,
}
"""Operations whose result or its size the host must know before it goes on."""
INDEXED = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
LOW = _LOW | {Tensor.matmul, Tensor.__matmul__, F.scaled_dot_product_attention}
"""What autocast for CUDA runs in the low precision; `_FULL` runs in float32."""
ROOT = Path(__file__).parents[1]


class Stream:
    """A queue of work of the card. Only copies on another than the computing stream (`late`) wait in it."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.late: list[tuple[weakref.ref[torch.UntypedStorage], Tensor]] = []
        self.saw = -1
        """How much memory had been given out when this stream last waited for the computing one."""

    def wait_stream(self, other: Stream) -> None:
        if other is self.card.computing:
            self.saw = self.card.given_out
        else:
            other.done()

    def wait_event(self, event: Stream) -> None:
        event.done()

    def record_event(self) -> Stream:
        """All copies of the stream count as one event."""
        return self

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Of whole bytes, into memory that holds nothing else."""
        storage = target.untyped_storage()
        if self.card.numbers[storage._cdata] > self.saw:
            raise RuntimeError("the copy may begin before the card is done with that memory")
        target.fill_(0xFF)
        self.card.on_the_way.add(storage._cdata)
        self.late.append((weakref.ref(storage), source))

    def done(self) -> None:
        for target, source in self.late:
            if (storage := target()) is not None:
                with _disable_current_modes():
                    source.new_empty(0).set_(storage).copy_(source)
                self.card.on_the_way.discard(storage._cdata)
        self.late.clear()


class Card:
    """What happened on the card.

    waits: how often the host waited for it, by the line of this project and the reason. live, peak: bytes
    that lie on it, now and at most. sent: bytes of each copy to it. races: how often memory was given back
    while a copy was on its way there. given_back: bytes that still lay on it, each time that the rest was
    given back. attention: how often it was called with which dtypes of queries, keys and values, before
    autocast casts them.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.attention: Counter[tuple[torch.dtype, ...]] = Counter()
        self.live = self.peak = 0
        self.sent: list[int] = []
        self.given_back: list[int] = []
        self.races = self.given_out = 0
        self.numbers: dict[int, int] = {}
        self.on_the_way: set[int] = set()
        self.computing = self.stream = Stream(self)
        self.leaving = False  # a copy to the CPU is being made
        self._here: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._stack = ExitStack()

    def has(self, thing: Any) -> bool:
        """Whether it is a tensor of the card."""
        strided = isinstance(thing, Tensor) and thing.layout == torch.strided
        return strided and thing.untyped_storage()._cdata in self._here

    def put(self, tensor: Tensor) -> Tensor:
        """Count the tensor's memory as the card's, until nothing holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._here:

            def gone(_: object) -> None:
                del self._here[key]
                self.live -= size
                self.races += key in self.on_the_way
                self.on_the_way.discard(key)

            self._here[key] = weakref.ref(storage, gone)
            self.given_out += 1
            self.numbers[key] = self.given_out
            self.live += size
            self.peak = max(self.peak, self.live)
        return tensor

    def waited(self, reason: str) -> None:
        """Count a wait on the innermost line that is this project's."""
        frame: Any = sys._getframe(1)
        while frame.f_back is not None and not _ours(frame.f_code.co_filename):
            frame = frame.f_back
        self.waits[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {reason}"] += 1

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def _grouped(self, lists: list[list[Tensor]], *rest: Any) -> dict[Any, Any]:
        """torch's function in C++, which sees a CPU everywhere."""
        groups = _group_tensors_by_device_and_dtype(lists, *rest)
        return {
            (CARD if self.has(group[0][0][0]) else device, dtype): group
            for (device, dtype), group in groups.items()
        }

    def __enter__(self) -> Self:
        answers = {"is_available": True, "is_bf16_supported": True}
        replaced: list[tuple[Any, str, Any]] = [
            *((torch.cuda, name, _always(value)) for name, value in answers.items()),
            (torch.cuda, "_lazy_init", _always(None)),
            (torch.cuda, "empty_cache", lambda: self.given_back.append(self.live)),
            (torch.cuda, "max_memory_allocated", lambda *_: self.peak),
            (torch.cuda, "reset_peak_memory_stats", lambda *_: setattr(self, "peak", self.live)),
            (torch.cuda, "synchronize", lambda *_: self.waited("synchronize")),
            (torch.cuda, "Stream", lambda *_: Stream(self)),
            (torch.cuda, "current_stream", lambda *_: self.stream),
            (torch.cuda, "stream", self._on),
            # Without it, torch switches autocast off on a machine that has no card.
            (torch.cuda.amp.common, "amp_definitely_not_available", _always(False)),
            (clip_grad, "_group_tensors_by_device_and_dtype", self._grouped),
        ]
        for where, name, instead in replaced:
            self._stack.enter_context(mock.patch.object(where, name, instead))
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _always(value: Any) -> Any:
    return lambda *_, **__: value


def _ours(file: str) -> bool:
    return file.startswith(str(ROOT)) and "site-packages" not in file and file != __file__


class _Calls(TorchFunctionMode):
    """What Python asks of a tensor: its device, copies, autocast, tensors made on the card."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        card, kwargs = self.card, kwargs or {}
        here = bool(args) and card.has(args[0])
        if here and func in _PROPERTIES:
            return _PROPERTIES[func]
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._copy(*args, **kwargs) if func is Tensor.to else self._copy(args[0], func.__name__)
        if here and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if here and func is Tensor.tolist:
            card.waited("tolist")
        if func is Tensor.pin_memory:
            return args[0].clone()
        if func is Tensor.backward:
            with self:  # recomputed blocks and gradients of our own are calls on the card too
                return backward(args[0])
        if func is F.scaled_dot_product_attention:
            states = [*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)][:3]
            if all(map(card.has, states)):
                card.attention[tuple(one.dtype for one in states)] += 1
        casts = torch.is_autocast_enabled("cuda") and (func in LOW or func in _FULL)
        if casts and any(map(card.has, tree_leaves((args, kwargs)))):
            dtype = torch.get_autocast_dtype("cuda") if func in LOW else torch.float32
            args, kwargs = _cast(args, dtype), _cast(kwargs, dtype)
        return self._made(func, args, kwargs)

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of a call; of the card if it is asked to be made there."""
        kwargs.pop("pin_memory", None)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != "cuda":
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func in (torch.tensor, torch.as_tensor):
            self.card.waited("copy to the card")
        return self.card.put(func(*args, **{**kwargs, "device": "cpu"}))

    def _copy(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """`tensor.to(…)`."""
        card, here = self.card, self.card.has(tensor)
        if args and isinstance(args[0], Tensor):
            like, *others = args
            args = (CARD if card.has(like) else like.device, like.dtype, *others)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        there = here if device is None else device.type == "cuda"
        if there and not here:
            card.sent.append(tensor.nbytes)
        if here != there and not non_blocking:
            card.waited("copy to the card" if there else "copy from the card")
        card.leaving = here and not there
        try:
            made = tensor.to(
                dtype or tensor.dtype,
                copy=copy or here != there,
                memory_format=layout or torch.preserve_format,
            )
        finally:
            card.leaving = False
        return card.put(made) if there else made


_PROPERTIES = {
    getattr(Tensor, name).__get__: value
    for name, value in {"device": CARD, "is_cuda": True, "is_cpu": False}.items()
}


class _Operations(TorchDispatchMode):
    """What the card is told to do: refuses mixed operands, finds waits, and marks results."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        card, packet = self.card, func.overloadpacket
        given = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        here = [card.has(one) for one in given]
        if packet is ATEN.copy_:
            target, source = here[:2]
            non_blocking = args[2:3] == (True,)
            if target != source and given[1].ndim and not non_blocking:
                card.waited("copy_")
            if target and not source:
                card.sent.append(given[1].nbytes)
                if non_blocking and card.stream is not card.computing:
                    card.stream.copy(*given)
                    return given[0]
            return func(*args, **(kwargs or {}))
        if any(here):
            operands = given[:1] if packet in INDEXED else given
            if not all(card.has(one) or not one.ndim for one in operands):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, "
                    f"cuda:0 and cpu! (in {packet})"
                )
            mask = packet in INDEXED and any(one.dtype == torch.bool for one in given[1:])
            if mask or packet in ANSWERS:
                card.waited("mask as index" if mask else str(packet))
        made = func(*args, **(kwargs or {}))
        if any(here) and not card.leaving:
            tree_map_only(Tensor, card.put, made)
        return made
