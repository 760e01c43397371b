"""Clean context: which tokens attend to which, reading known tokens before sampling, and caching the result.

Known tokens are clean: those of the product panels, and those outside the polygon in the worn panel. They are
read once, at t = 0 and without words. The active tokens (those being repainted) and the text run at every
step and attend to each other and to all known tokens. The LoRA's `context_reading`, recorded in its file,
says which tokens the known tokens attend to:

- joint: all known tokens attend to all known tokens. Keys and values of the products then depend on the
  person as soon as a part of the worn panel is known. They can be kept for more seeds of the same person and
  polygon, but not for another person.
- products: product tokens attend to product tokens only; the person's known tokens attend to the products'
  tokens and to each other. Keys and values of the products depend on the product photos alone and serve every
  person. The latents must not depend on the person either, so the products are encoded on a canvas of their
  own (`canvas.known_latents`).

If the whole worn panel is active, both readings are the same. In both, cached keys and values equal newly
read ones, and the result equals one pass over all tokens with the attention mask described above; the tests
compare them.

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
from typing import Any

import torch
from torch import Tensor, nn

from triptych.backbones.context import Context, Window, joined
from triptych.backbones.contract import Backbone, Text
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


def product_tokens(layout: PanelLayout, stride: int) -> Tensor:
    """(rows, columns) bool on the token grid: the tokens of the given panels."""
    return torch.from_numpy(layout.mask(layout.given, stride))


def read_window(
    backbone: Backbone,
    transformer: nn.Module,
    clean_BCHW: Tensor,
    active: Tensor,
    empty: Text,
    with_lora: bool,
    within: Tensor | None = None,
    first: Tensor | None = None,
) -> Window:
    """Read the tokens that are not active: run them once, clean. Returns the window in which the active
    tokens attend to them.

    within: (rows, columns) bool; only known tokens inside it are read (the worn panel, for a pass without
    product panels). first: (rows, columns) bool; known tokens inside it attend only to each other, the others
    to all ("products" reading).
    """
    with nullcontext() if with_lora else lora_switched_off(transformer):
        contexts: list[Context] = []
        for known in _groups(active, within, first):
            before = joined([contexts]) if contexts else None
            contexts.append(backbone.read(transformer, clean_BCHW, known, _one(empty), before))
    return Window(active, joined([contexts]) if contexts else None)


def kept_window(
    backbone: Backbone,
    transformer: nn.Module,
    clean_BCHW: Tensor,
    active: Tensor,
    empty: Text,
    with_lora: bool,
    within: Tensor | None = None,
    first: Tensor | None = None,
    *,
    room: int,
    cache: ContextCache | None = None,
) -> Window:
    """`read_window` for sampling: it reads nothing twice, and its buffers have room for the `room` tokens of
    each step.

    Equal canvases of a batch are read once. With a `cache`, canvases read in earlier calls are not read
    again. active: as in `Window`, one set for all canvases or one per canvas.
    """
    rows_active = active if active.ndim == 3 else active.expand(len(clean_BCHW), -1, -1)
    groups = [_groups(own, within, first) for own in rows_active]
    if not groups[0]:
        return Window(active)
    cache = ContextCache(0) if cache is None else cache
    reader = _RowReader(backbone, transformer, _one(empty), with_lora, cache)
    with nullcontext() if with_lora else lora_switched_off(transformer), torch.no_grad():
        # Do not keep a reference to the list of rows: `joined` empties it, and frees each layer as soon as it
        # is copied.
        return Window(active, joined(reader.rows(clean_BCHW, groups), room))


@dataclass(frozen=True)
class _RowReader:
    """Reads the known tokens of each canvas of a batch."""

    backbone: Backbone
    transformer: nn.Module
    empty: Text
    """Embeddings of the empty prompt, for one sample."""
    with_lora: bool
    cache: ContextCache

    def rows(self, clean_BCHW: Tensor, groups: Sequence[Sequence[Tensor]]) -> list[list[Context]]:
        """Per canvas, the contexts of its groups of known tokens, in reading order."""
        # With one canvas and no cache, no key is needed; and the tensors of `plan` have no data to hash.
        findable = bool(self.cache.limit_bytes) or len(clean_BCHW) > 1
        read: dict[str, Context] = {}
        rows = []
        for clean_CHW, own in zip(clean_BCHW, groups, strict=True):
            key, row = "", list[Context]()
            for known in own:
                key = _key(key, clean_CHW, known, self.with_lora) if findable else f"{key}+"
                if key not in read:
                    read[key] = self.cache.get(key, partial(self._read, clean_CHW, known, row))
                row.append(read[key])
            rows.append(row)
        return rows

    def _read(self, clean_CHW: Tensor, known: Tensor, before: list[Context]) -> Context:
        """before: contexts of this canvas that were read earlier."""
        seen = joined([before]) if before else None
        return self.backbone.read(self.transformer, clean_CHW[None], known, self.empty, seen)


def _groups(active: Tensor, within: Tensor | None, first: Tensor | None) -> list[Tensor]:
    """The known tokens as groups in reading order; each group attends to itself and to the groups
    before it.
    """
    known = ~active if within is None else ~active & within
    parts = [known] if first is None else [known & first, known & ~first]
    return [part for part in parts if part.any()]


def _one(empty: Text) -> Text:
    return {name: value[:1] for name, value in empty.items()}


def _key(before: str, clean_CHW: Tensor, known: Tensor, with_lora: bool) -> str:
    """A hash of the inputs of keys and values: clean latents under the known tokens, their positions, and the
    tokens read before.
    """
    rows, columns = (size // cells for size, cells in zip(clean_CHW.shape[1:], known.shape, strict=True))
    cells = known.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    digest = hashlib.sha256(f"{before} {tuple(clean_CHW.shape)} {tuple(known.shape)} {with_lora} ".encode())
    digest.update(known.cpu().numpy().tobytes())
    digest.update(clean_CHW[:, cells].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
