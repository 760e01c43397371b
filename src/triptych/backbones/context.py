"""Clean context: the kept keys and values of known tokens, and the choice of tokens that are run.

`Backbone.read` takes `Reference`s, clean latents with their positions, and returns a `Context`: the keys and
values of their tokens. `Backbone.velocity` takes a `Window`: the active tokens, and the context that they
attend to in addition to each other and the text.

Legend: B batch, N tokens of a canvas, K active tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from triptych.compute.sending import sent


@dataclass
class Context:
    """Keys and values of known tokens, one pair per attention layer, in the shape that the family's attention
    uses.
    """

    sequence_dim: int
    """The token dimension of keys and values."""
    kept: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Key and value of each layer, by its attention processor."""
    filled: int | None = None
    """Number of known tokens at the front of a buffer with room for others behind them; None: no room."""

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values take."""
        return sum(tensor.nbytes for pair in self.kept.values() for tensor in pair)

    def repeated(self, times: int) -> Context:
        """The context of a batch with each sample repeated `times` in a row. A single sample is expanded
        without a copy.
        """
        if times == 1:
            return self

        def repeat(kept: Tensor) -> Tensor:
            return kept.expand(times, *kept.shape[1:]) if len(kept) == 1 else kept.repeat_interleave(times, 0)

        return Context(
            self.sequence_dim,
            {layer: (repeat(key), repeat(value)) for layer, (key, value) in self.kept.items()},
        )

    def join(self, layer: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that a layer attends to: the known ones, then the given ones.

        If the buffer has room, the given ones are written behind the known ones, and these are not copied.
        The result is then a view into the buffer, valid until the next call.
        """
        dim, pairs = self.sequence_dim, zip(self.kept[layer], (key, value), strict=True)
        if self.filled is None:
            known_key, known_value = (torch.cat([known, new], dim) for known, new in pairs)
            return known_key, known_value
        count = key.shape[dim]
        for places, new in pairs:
            places.narrow(dim, self.filled, count).copy_(new)
        known_key, known_value = (places.narrow(dim, 0, self.filled + count) for places in self.kept[layer])
        return known_key, known_value


@dataclass(frozen=True)
class Reference:
    """Clean latents that the model sees, and where their tokens stand.

    latents_BCHW: for a batch, or one for all samples. known: (rows, columns) bool on their token grid, the
    tokens that are seen; or (B, rows, columns) with a set per sample, all of equal size; None: all tokens.
    frame: 0 for tokens of the canvas itself; n ≥ 1 for a picture of its own, the n-th, which only families
    with `Family.references` know.
    """

    latents_BCHW: Tensor
    known: Tensor | None = None
    frame: int = 0

    def row(self, number: int) -> Reference:
        """The reference of one sample of a batch."""
        latents, known = self.latents_BCHW, self.known
        if known is not None and known.ndim == 3:
            known = known[number % len(known)]
        return replace(self, latents_BCHW=latents[number % len(latents)][None], known=known)

    def repeated(self, times: int) -> Reference:
        """The reference for a batch with each sample repeated `times` in a row."""
        known = self.known
        if known is not None and known.ndim == 3:
            known = known.repeat_interleave(times, 0)
        return replace(self, latents_BCHW=self.latents_BCHW.repeat_interleave(times, 0), known=known)


def of_canvas(references: Sequence[Reference]) -> tuple[Tensor, Tensor]:
    """The latents and known tokens of the canvas, for families that know nothing else."""
    (canvas,) = references
    assert canvas.frame == 0 and canvas.known is not None
    return canvas.latents_BCHW, canvas.known


@dataclass(frozen=True)
class Window:
    """The tokens that are run, and the context that they attend to besides each other and the text.

    active: (rows, columns) bool on the token grid of the canvas; or (B, rows, columns) with a set per sample,
    all of equal size. On the CPU, where counting them does not wait for a card. context: the result of
    `Backbone.read`, or several results `joined`; None: the active tokens attend to each other and the text
    alone. beside: references that run along with the active tokens,
    at the noise level of the step, as FLUX.2's own pipelines run them.
    """

    active: Tensor
    context: Context | None = None
    beside: tuple[Reference, ...] = ()

    @cached_property
    def _places(self) -> dict[torch.device, Tensor]:
        return {}

    def places(self, device: torch.device) -> Tensor:
        """Indices of the active tokens, (1, K) or (B, K), on the device; sent there once."""
        if device not in self._places:
            self._places[device] = sent(places_of(self.active), device)
        return self._places[device]

    def take(self, tokens_BND: Tensor) -> Tensor:
        """Select the active tokens of a canvas: (B, K, D)."""
        places = self.places(tokens_BND.device)[..., None]
        return tokens_BND.gather(1, places.expand(len(tokens_BND), -1, tokens_BND.shape[2]))

    def put(self, made_BKD: Tensor) -> Tensor:
        """All tokens of a canvas, (B, N, D): the active ones as given, the others 0."""
        places = self.places(made_BKD.device)[..., None].expand_as(made_BKD)
        count = self.active.shape[-2] * self.active.shape[-1]
        return made_BKD.new_zeros(len(made_BKD), count, made_BKD.shape[2]).scatter(1, places, made_BKD)


def places_of(tokens: Tensor) -> Tensor:
    """Indices of the True tokens of sets (rows, columns) or (B, rows, columns) of equal size: (1, K) or
    (B, K).
    """
    rows = tokens.reshape(-1, tokens.shape[-2] * tokens.shape[-1])
    return rows.nonzero()[:, 1].view(len(rows), int(rows[0].sum()))


def joined(rows: list[list[Context]], room: int = 0) -> Context:
    """One context for a batch: per row its contexts in order, then room for `room` more tokens.

    All rows must have the same number of tokens. With room, this empties the given lists and frees each layer
    as soon as it is copied, because contexts are gigabytes. A context that the caller still holds is not
    freed.
    """
    first = rows[0][0]
    if len(rows) == len(rows[0]) == 1 and not room:
        return first
    dim, layers, parts = (
        first.sequence_dim,
        list(first.kept),
        [[dict(one.kept) for one in row] for row in rows],
    )
    del first
    if room:
        for row in rows:
            row.clear()
    made = Context(dim)
    for layer in layers:
        pairs = [[part.pop(layer) for part in row] for row in parts]
        made.kept[layer] = tuple(
            _side_by_side([[pair[which] for pair in row] for row in pairs], dim, room) for which in (0, 1)
        )  # type: ignore[assignment]
        if room:
            made.filled = sum(pair[0].shape[dim] for pair in pairs[0])
    return made


def _side_by_side(rows: Sequence[Sequence[Tensor]], dim: int, room: int) -> Tensor:
    if not room and len(rows) == 1:
        return torch.cat(list(rows[0]), dim)
    if not room:
        return torch.cat([torch.cat(list(row), dim) for row in rows])
    shape = list(rows[0][0].shape)
    shape[0], shape[dim] = len(rows), sum(part.shape[dim] for part in rows[0]) + room
    places = rows[0][0].new_empty(shape)
    for number, row in enumerate(rows):
        at = 0
        for part in row:
            places[number : number + 1].narrow(dim, at, part.shape[dim]).copy_(part)
            at += part.shape[dim]
    return places
