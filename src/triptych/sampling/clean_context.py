"""Clean context: which tokens attend to which, reading known tokens before sampling, and caching the result.

Known tokens are clean: those of the given panels, and those outside the polygon in the worn panel. They are
read once, at t = 0 and without words. The active tokens (those being repainted) and the text run at every
step and attend to each other and to all known tokens. The LoRA's `context_placement` says where known tokens
stand: on the canvas beside the active ones, or in reference pictures of their own. Its `context_reading` says
which tokens they attend to:

- joint: all known tokens attend to all known tokens. Keys and values of the products then depend on the
  person as soon as a part of the worn panel is known. They can be kept for more seeds of the same person and
  polygon, but not for another person.
- products: product tokens attend to product tokens only; the person's known tokens attend to the products'
  tokens and to each other. Keys and values of the products depend on the product photos alone and serve every
  person. The latents must not depend on the person either, so the products are encoded on a canvas of their
  own (`canvas.known_latents`), or each alone.
- each: known tokens attend to those of the same picture only. Keys and values of a product then depend on its
  photo and its place alone, and serve every outfit that it is part of; those of a person serve every outfit
  that is put on. Each picture is encoded alone.

If no token of the person is known, `joint` and `products` are the same. In all three, cached keys and values
equal newly read ones, and the result equals one pass over all tokens with the attention mask described above;
the tests compare them.

Legend: B batch, C channels, H and W latent rows and columns of the whole canvas.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.backbones.context import Context, Reference, Window, joined
from triptych.backbones.contract import Backbone, Text
from triptych.backbones.settings import ContextReading
from triptych.lora.adapter import lora_switched_off
from triptych.pictures.panels import PanelLayout


class ContextCache:
    """A least-recently-used cache of results computed from known panels, with a limit in bytes.

    A cache belongs to one transformer with one LoRA at one strength, so these are not part of a key. Keys are
    hashes of all other inputs. Tensors stay on the device. Several threads may share a cache.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes in the cache."""
        return sum(size for _, size in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The value for `key`. If it is missing, `make` computes it (an object with `nbytes`); it is kept if
        it fits the limit.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.hits += 1
                return self._kept[key][0]
            self.misses += 1
        value = make()
        with self._lock:
            if value.nbytes <= self.limit_bytes:
                self._kept[key] = value, value.nbytes
                while self.nbytes > self.limit_bytes:
                    self._kept.popitem(last=False)
        return value

    def summary(self) -> dict[str, Any]:
        """Usage statistics, for display."""
        return {
            "reused": self.hits,
            "read": self.misses,
            "held": len(self),
            "held_gib": round(self.nbytes / 2**30, 3),
        }


def apart(layout: PanelLayout, stride: int, reading: ContextReading) -> list[Tensor]:
    """The sets of tokens, each (rows, columns) bool, whose known ones attend to nothing but themselves."""
    if reading == "joint":
        return []
    parts = [layout.given] if reading == "products" else [(role,) for role in layout.roles]
    return [torch.from_numpy(layout.mask(roles, stride)) for roles in parts]


class Group(NamedTuple):
    """Known tokens that attend to each other, and unless they are `alone` to all groups before them."""

    references: Sequence[Reference]
    alone: bool = False


Groups = list[Group]
"""Known tokens in reading order."""


def groups_of_canvas(
    clean_BCHW: Tensor, active: Tensor, within: Tensor | None = None, parts: Sequence[Tensor] = ()
) -> Groups:
    """All tokens of the canvas that are not active.

    Args:
        within: (rows, columns) bool; only known tokens inside it (the worn panel, for a pass without product
            panels). parts: the sets that attend to nothing but themselves, see `apart`.
    """
    rest = ~active if within is None else ~active & within
    groups = []
    for part in parts:
        groups.append(Group([Reference(clean_BCHW, rest & part)], alone=True))
        rest = rest & ~part
    groups.append(Group([Reference(clean_BCHW, rest)]))
    return [group for group in groups if group.references[0].known.any()]  # type: ignore[union-attr]


def groups_of_references(
    products: Sequence[Reference], others: Sequence[Reference], reading: ContextReading
) -> Groups:
    """The given pictures in the groups of a reading."""
    if reading == "joint":
        groups = [Group([*products, *others])]
    elif reading == "products":
        groups = [Group(products, alone=True), Group(others)]
    else:
        groups = [Group([one], alone=True) for one in (*products, *others)]
    return [group for group in groups if group.references]


def read_window(
    backbone: Backbone,
    transformer: nn.Module,
    active: Tensor,
    groups: Groups,
    empty: Text,
    with_lora: bool,
) -> Window:
    """Read known tokens: run them once, clean. Returns the window in which the active tokens attend to
    them.
    """
    with nullcontext() if with_lora else lora_switched_off(transformer):
        contexts: list[Context] = []
        for references, is_alone in groups:
            before = joined([contexts]) if contexts and not is_alone else None
            contexts.append(backbone.read(transformer, references, _one(empty), before))
    return Window(active, joined([contexts]) if contexts else None)


def kept_window(
    backbone: Backbone,
    transformer: nn.Module,
    active: Tensor,
    groups: Groups,
    empty: Text,
    with_lora: bool,
    *,
    batch: int = 1,
    room: int,
    cache: ContextCache | None = None,
) -> Window:
    """`read_window` for sampling: it reads nothing twice, and its buffers have room for the `room` tokens of
    each step.

    Equal references of a batch are read once. With a `cache`, what was read in earlier calls is not read
    again. batch: number of samples; references may have one row for all of them.
    """
    if not groups:
        return Window(active)
    cache = ContextCache(0) if cache is None else cache
    reader = _RowReader(backbone, transformer, _one(empty), with_lora, cache)
    with nullcontext() if with_lora else lora_switched_off(transformer), torch.no_grad():
        # Do not keep a reference to the list of rows: `joined` empties it, and frees each layer as soon as it
        # is copied.
        return Window(active, joined(reader.rows(groups, batch), room))


@dataclass(frozen=True)
class _RowReader:
    """Reads the known tokens of each sample of a batch."""

    backbone: Backbone
    transformer: nn.Module
    empty: Text
    """Embeddings of the empty prompt, for one sample."""
    with_lora: bool
    cache: ContextCache

    def rows(self, groups: Groups, batch: int) -> list[list[Context]]:
        """Per sample, the contexts of its groups of known tokens, in reading order."""
        # With one sample and no cache, no key is needed; and the tensors of `plan` have no data to hash.
        findable = bool(self.cache.limit_bytes) or batch > 1
        read: dict[str, Context] = {}
        rows = []
        for number in range(batch):
            keys, row = list[str](), list[Context]()
            for references, is_alone in groups:
                own = [reference.row(number) for reference in references]
                before = [] if is_alone else row
                key = str(len(keys))
                if findable:
                    key = _key("" if is_alone else " ".join(keys), own, self.with_lora)
                if key not in read:
                    read[key] = self.cache.get(key, partial(self._read, own, before))
                keys.append(key)
                row.append(read[key])
            rows.append(row)
        return rows

    def _read(self, group: Sequence[Reference], before: list[Context]) -> Context:
        """before: contexts of this sample that were read earlier."""
        seen = joined([before]) if before else None
        return self.backbone.read(self.transformer, group, self.empty, seen)


def _one(empty: Text) -> Text:
    return {name: value[:1] for name, value in empty.items()}


def _key(before: str, group: Sequence[Reference], with_lora: bool) -> str:
    """A hash of the inputs of keys and values: clean latents under the known tokens, their positions, and the
    tokens read before.
    """
    digest = hashlib.sha256(f"{before} {with_lora} ".encode())
    for reference in group:
        clean_CHW, known = reference.latents_BCHW[0], reference.known
        digest.update(f"{tuple(clean_CHW.shape)} {reference.frame} ".encode())
        if known is not None:
            rows, columns = (
                size // cells for size, cells in zip(clean_CHW.shape[1:], known.shape, strict=True)
            )
            digest.update(f"{tuple(known.shape)} ".encode() + known.cpu().numpy().tobytes())
            clean_CHW = clean_CHW[:, known.repeat_interleave(rows, 0).repeat_interleave(columns, 1)]
        digest.update(clean_CHW.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
