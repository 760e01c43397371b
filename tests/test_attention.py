"""Attention on a CPU by products: in float32 the kernel's result; in bfloat16 one rounding more, of the order
of those of its inputs.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from triptych.compute import attention as module
from triptych.compute.attention import attention
from triptych.compute.rotary import table_of, turned


def inputs(batch: int, queries: int, keys: int) -> list[Tensor]:
    """Queries, keys and values whose scores have a standard deviation of 4:
    few keys get most of the weight.
    """
    generator = torch.Generator().manual_seed(queries)
    return [torch.randn(batch, n, 5, 64, generator=generator).mul(2) for n in (queries, keys, keys)]


def rounded(states: list[Tensor]) -> list[Tensor]:
    return [one.bfloat16() for one in states]


def kernel(states: list[Tensor]) -> Tensor:
    return scaled_dot_product_attention(*(one.transpose(1, 2) for one in states)).transpose(1, 2)


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 too, whose products are then PyTorch's where there is no oneDNN."""
    monkeypatch.setattr(module, "AVAILABLE", True)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 700, 700), (2, 150, 1200), (1, 1300, 333)])
@pytest.mark.parametrize("most", [1 << 26, 50_000])  # the second cuts the queries up
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "larger", [1, 20]
)  # the second has scores of several thousand, whose exponentials no number holds
def test_products_equal_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    queries: int,
    keys: int,
    most: int,
    dtype: torch.dtype,
    larger: float,
) -> None:
    monkeypatch.setattr(module, "MOST", most)
    monkeypatch.setattr(module, "dispatch_attention_fn", None)
    states = inputs(batch, queries, keys)
    states[0] *= larger
    truth = kernel([one.double() for one in states]).float()
    states = [one.to(dtype) for one in states]
    made = attention(*states)
    assert made.shape == truth.shape and made.dtype == dtype
    ours, theirs = ((one.float() - truth).square().mean().sqrt() for one in (made, kernel(states)))
    size = truth.square().mean().sqrt()
    if dtype == torch.float32:
        assert ours < 1e-5 * size
    elif larger == 1:
        assert ours < 0.02 * size and ours < 2.5 * theirs
    else:  # a score of thousands has an error of several already by the rounding of queries and keys
        assert ours < 2.5 * theirs


def test_scores_may_be_as_far_from_zero_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores of a query are large and equal: the mean of the values,
    also where 2^score is 0 or infinite.
    """
    monkeypatch.setattr(module, "dispatch_attention_fn", None)
    value = torch.randn(1, 400, 5, 64, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):
        query, key = torch.full((1, 400, 5, 64), 10.0 * sign), torch.full((1, 400, 5, 64), 10.0)
        expected = value.mean(1, keepdim=True).expand_as(query)
        torch.testing.assert_close(attention(query, key, value), expected, rtol=1e-4, atol=1e-6)


def test_what_is_differentiated_or_small_is_left_to_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sample", None)  # the products need it
    states = rounded(inputs(1, 600, 600))
    states[0].requires_grad_()
    attention(*states).sum().backward()
    assert states[0].grad is not None
    for other in (rounded(inputs(1, 50, 200)), inputs(1, 50, 200)):
        assert torch.equal(attention(*other), dispatch_attention_fn(*other))


@pytest.mark.parametrize("samples", [1, 3])  # places of all samples alike, or of each its own
def test_queries_are_normed_and_turned_as_diffusers_does(samples: int) -> None:
    norm = nn.RMSNorm(64, eps=1e-6)
    nn.init.normal_(norm.weight)
    query = inputs(3, 40, 1)[0]
    rotary = get_1d_rotary_pos_embed(
        64, torch.randint(0, 90, (samples * 40,)), repeat_interleave_real=True, use_real=True
    )
    table = table_of(rotary, 40, query.device)
    own = [tuple(part.view(samples, 40, 64)[number % samples] for part in rotary) for number in range(3)]
    truth = torch.cat(
        [
            apply_rotary_emb(norm(one[None]), places, sequence_dim=1)
            for one, places in zip(query, own, strict=True)
        ]
    )
    with torch.no_grad():
        torch.testing.assert_close(turned(norm, query, table), truth, rtol=1e-5, atol=1e-5)
        rough = turned(norm.bfloat16(), query.bfloat16(), table)
        assert (
            rough.dtype == torch.bfloat16
            and (rough - truth).square().mean().sqrt() < 5e-3 * truth.square().mean().sqrt()
        )
    norm = norm.float()
    learned = query.clone().requires_grad_()
    turned(norm, learned, table).sum().backward()
    assert learned.grad is not None
