"""What makes FLUX.2 faster on a CPU computes the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from torch import nn

from triptych.backbones.context import Context, Reference
from triptych.backbones.flux2.attention import KeysOnly, reader
from triptych.compute import cpu
from triptych.sampling.opened import OpenedModel
from triptych.session import load_models


@pytest.fixture(scope="module")
def models(tiny_flux2: Path) -> OpenedModel:
    return load_models(str(tiny_flux2), [], device="cpu", dtype="fp32")


def pairs(context: Context) -> list[torch.Tensor]:
    return [tensor for pair in context.kept.values() for tensor in pair]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_is_that_of_diffusers_bit_for_bit(dtype: torch.dtype) -> None:
    layer = cpu.install(nn.Sequential(Flux2SwiGLU()))[0]  # type: ignore[index]
    x = torch.randn(2, 5, 48, dtype=dtype)
    before = x.clone()
    assert type(layer) is cpu.SwiGLU
    assert torch.equal(layer(x), Flux2SwiGLU()(x)) and torch.equal(x, before)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(first).sum().backward()
    Flux2SwiGLU()(second).sum().backward()
    assert first.grad is not None and second.grad is not None and torch.equal(first.grad, second.grad)


def test_kept_values_hold_no_more_memory_than_their_own(models: OpenedModel) -> None:
    """A view of the fused projection would hold nine times as much."""
    reference = Reference(torch.randn(1, 16, 3, 4), None, 1)
    with torch.no_grad():
        context = models.backbone.read(models.transformer, [reference], models.text([""]))
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in pairs(context)
    }
    assert sum(held.values()) == context.nbytes


@pytest.mark.parametrize("fused", [True, False])
def test_the_last_block_is_read_for_its_keys_alone(models: OpenedModel, fused: bool) -> None:
    """fused: the projection is a plain layer, of which only the rows of keys and values run."""
    backbone, transformer = models.backbone, models.transformer
    references = [Reference(torch.randn(2, 16, 3, 4), None, 1), Reference(torch.randn(2, 16, 2, 2), None, 2)]
    empty, last = models.text([""]), transformer.single_transformer_blocks[-1]  # type: ignore[union-attr,index]
    layer = last.attn.to_qkv_mlp_proj  # type: ignore[union-attr]
    assert isinstance(reader(transformer).single_transformer_blocks[-1], KeysOnly)
    blind = [] if fused else [layer.register_forward_hook(lambda *_: None)]
    with torch.no_grad():
        ours = backbone.read(transformer, references, empty)
    hook = last.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    assert reader(transformer) is transformer, "a hooked block runs whole"
    with torch.no_grad():
        whole = backbone.read(transformer, references, empty)
    for handle in (hook, *blind):
        handle.remove()
    assert list(ours.kept) == list(whole.kept)
    for one, other in zip(pairs(ours), pairs(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)
