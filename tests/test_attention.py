"""Attention in bfloat16 on a CPU, by products: one rounding more than PyTorch's kernel, of the order of those of its inputs."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from triptych.backbones import attention as module
from triptych.backbones.attention import attention


def inputs(batch: int, queries: int, keys: int) -> list[Tensor]:
    """Queries, keys and values whose scores have a standard deviation of 4: few keys get most of the weight."""
    generator = torch.Generator().manual_seed(queries)
    return [torch.randn(batch, n, 5, 64, generator=generator).mul(2) for n in (queries, keys, keys)]


def rounded(states: list[Tensor]) -> list[Tensor]:
    return [one.bfloat16() for one in states]


def kernel(states: list[Tensor]) -> Tensor:
    return scaled_dot_product_attention(*(one.transpose(1, 2) for one in states)).transpose(1, 2)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 700, 700), (2, 150, 1200), (1, 1300, 333)])
@pytest.mark.parametrize("most", [1 << 26, 50_000])  # the second cuts the queries up
def test_products_equal_the_kernel(monkeypatch: pytest.MonkeyPatch, batch: int, queries: int, keys: int, most: int) -> None:
    monkeypatch.setattr(module, "MOST", most)
    states = inputs(batch, queries, keys)
    truth = kernel(states)
    made = attention(*rounded(states))
    assert made.shape == truth.shape and made.dtype == torch.bfloat16
    ours, theirs = ((one.float() - truth).square().mean().sqrt() for one in (made, kernel(rounded(states))))
    assert ours < 2 * theirs
    assert ours < 0.02 * truth.square().mean().sqrt()


def test_what_is_differentiated_small_or_float32_is_left_to_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "softmax", None)  # the products need it
    states = rounded(inputs(1, 600, 600))
    states[0].requires_grad_()
    attention(*states).sum().backward()
    assert states[0].grad is not None
    for other in (rounded(inputs(1, 50, 200)), inputs(1, 600, 600)):
        assert torch.equal(attention(*other), dispatch_attention_fn(*other))
