"""Swapped blocks on a pretended card: the same bits, two blocks there at most, one copy for each time that a
block runs, no wait of the host, and memory is neither read nor written too early. A defect of each kind is
found. `test_quantize.py` has the same bits on the CPU, with each format of weights.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from triptych.backbones.registry import load_backbone
from triptych.compute import swap
from triptych.compute.recompute import recompute_blocks
from triptych.lora.adapter import add_lora

from .conftest import latent_shape
from .device_sim import Card, Stream
from .test_clean_context import text


class Model(NamedTuple):
    transformer: nn.Module
    blocks: list[nn.Module]
    parameters: list[nn.Parameter]
    """Of its LoRA."""
    given: tuple[Any, ...]
    backbone: Any

    def velocity(self) -> Tensor:
        made: Tensor = self.backbone.velocity(self.transformer, *self.given)
        return made


def on_card(path: Path, blocks_to_swap: int = 99) -> Model:
    backbone = load_backbone(str(path), "cuda", "fp32", blocks_to_swap=blocks_to_swap)
    transformer = backbone.load_transformer()
    recompute_blocks(transformer, random=False)
    parameters = add_lora(transformer, backbone.lora_layers(transformer), 4, 4, 0.0, 0)
    for parameter in parameters:
        parameter.data += 0.01  # lora_B is zero otherwise, and lora_A without gradient
    latents = torch.randn(1, *latent_shape(backbone), generator=torch.Generator().manual_seed(0))
    given = latents.to("cuda"), torch.tensor([0.7]).to("cuda"), backbone.to_device(text(1, 0)), 3.5
    return Model(transformer, [*backbone.blocks(transformer).values()], parameters, given, backbone)


def results(model: Model) -> list[Tensor]:
    """Of a pass for sampling, and one for training with its gradients."""
    with torch.no_grad():
        sampled = model.velocity()
    velocity = model.velocity()
    velocity.square().mean().backward()
    return [sampled, velocity.detach(), *(parameter.grad for parameter in model.parameters)]  # type: ignore[misc]


def test_two_blocks_at_most_and_one_copy_for_each_pass(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.UntypedStorage]] = []
    most = 0

    def noted(piece: Tensor) -> Tensor:
        nonlocal most
        alive.append(weakref.ref(piece.untyped_storage()))
        most = max(most, sum(one() is not None for one in alive))
        return piece

    class Coming(swap._Coming):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            noted(self._there)

    fetch = swap.fetch
    monkeypatch.setattr(swap, "fetch", lambda *given: noted(fetch(*given)))
    monkeypatch.setattr(swap, "_Coming", Coming)
    with Card() as card:
        whole = results(on_card(tiny, 0))
    with Card() as card:
        model = on_card(tiny)
        model.velocity()  # what is looked up once is looked up here
        pieces = [next(block.parameters()).untyped_storage().nbytes() for block in model.blocks]
        card.waits.clear()
        card.sent.clear()
        got = results(model)
        assert not card.waits and not card.races
    assert all(torch.equal(one, other) for one, other in zip(whole, got, strict=True))
    assert most == 2
    copies = [size for size in card.sent if size in pieces]
    assert copies == [*pieces, *pieces, *reversed(pieces)], "two passes forward, one back"


def test_an_error_in_a_pass_leaves_no_copy_on_its_way(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Card() as card:
        model = on_card(tiny_flux)
        with torch.no_grad():
            model.velocity()
            before = card.live
            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr(swap._Slot, "put", failing)
                model.velocity()
            assert (card.live, card.races) == (before, 0)
            assert model.velocity().isfinite().all()


def failing(*_: Any) -> None:
    raise MemoryError


def no_wait(*_: Any) -> None:
    """In place of a wait."""


def test_a_copy_that_does_not_wait_for_the_card_is_found(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "wait_stream", no_wait)
    with Card(), torch.no_grad(), pytest.raises(RuntimeError, match="may begin before"):
        on_card(tiny_flux).velocity()


def test_a_block_that_does_not_wait_for_its_copy_is_found(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "wait_event", no_wait)
    with Card(), torch.no_grad():
        assert not on_card(tiny_flux).velocity().isfinite().all()


def test_memory_given_back_while_a_copy_is_on_its_way_is_found(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap._Coming, "__del__", no_wait)
    with Card() as card, torch.no_grad():
        model = on_card(tiny_flux)
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(swap._Slot, "put", failing)
            model.velocity()
    assert card.races == 1
