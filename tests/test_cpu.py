"""Layers that are quicker on a CPU: PyTorch's results and gradients, by whichever library computes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from triptych.backbones.registry import load_backbone
from triptych.compute import cpu as module
from triptych.compute.cpu import GELU, Linear, ProjectedGELU, gelu, install, linear

operator = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="a PyTorch without oneDNN"
)


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AVAILABLE", hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is multiplied by oneDNN from now on."""
    made: list[Tensor] = []
    product = module._product

    def product_counted(*args: Tensor) -> Tensor:
        made.append(product(*args))
        return made[-1]

    monkeypatch.setattr(module, "_product", product_counted)
    return made


INPUTS = {
    "rows": drawn(200, 96),
    "batch": drawn(2, 150, 96),
    "part of a sequence": drawn(2, 300, 96)[:, 100:250],
    "transposed": drawn(96, 250).t(),
    "one sample for all": drawn(1, 80, 96).expand(3, -1, -1),
}


@operator
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_results_and_gradients_are_pytorchs(
    monkeypatch: pytest.MonkeyPatch, name: str, bias: bool, turned: bool
) -> None:
    made = counted(monkeypatch)
    weight = drawn(96, 128).t() if turned else drawn(128, 96)
    leaves = [INPUTS[name], weight, *([drawn(128)] if bias else [])]
    weights = drawn(*INPUTS[name].shape[:-1], 128)
    results = []
    for function, dtype in ((linear, torch.float32), (nn.functional.linear, torch.float64)):
        own = [one.detach().to(dtype).requires_grad_() for one in leaves]
        result = function(*own)
        (result * weights).sum().backward()
        results.append([result, *(one.grad for one in own)])
        with torch.no_grad():
            torch.testing.assert_close(function(*own), result)
    assert len(made) == 4  # forward, two gradients, and forward without gradients
    for ours, theirs in zip(*results, strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(
            ours, theirs.float(), rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max())
        )


@operator
def test_results_in_bfloat16_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    for input_ in INPUTS.values():
        given = input_.bfloat16(), drawn(128, 96).bfloat16(), drawn(128).bfloat16()
        truth = nn.functional.linear(*(one.double() for one in given))
        ours, theirs = (
            (one.double() - truth).abs().max() for one in (linear(*given), nn.functional.linear(*given))
        )
        assert ours <= 1.5 * theirs
    assert len(made) == len(INPUTS)


@operator
def test_a_frozen_weight_has_no_gradient_and_keeps_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    input_, weight = drawn(200, 128).requires_grad_(), drawn(128, 128)
    result = linear(input_, weight)
    assert result.grad_fn is not None
    assert [one is None for one in result.grad_fn.saved_tensors] == [True, False]  # type: ignore[attr-defined]
    result.sum().backward()
    assert len(made) == 2 and weight.grad is None and input_.grad is not None


@operator
def test_what_onednn_is_not_for_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_product", None)
    large, weight = drawn(300, 128), drawn(128, 128)
    learned = weight.bfloat16().requires_grad_()
    for one, other in (
        (drawn(3, 128), weight),
        (large.bfloat16(), learned),
        (large.double(), weight.double()),
    ):
        assert torch.equal(linear(one, other), nn.functional.linear(one, other))
    assert linear(large.to("meta"), weight.to("meta")).shape == (300, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(large, weight).dtype == torch.bfloat16
    monkeypatch.setattr(module, "AVAILABLE", False)
    assert torch.equal(linear(large, weight), nn.functional.linear(large, weight))


def test_install_changes_no_weight_and_no_name(tiny_flux: Path) -> None:
    loaded = load_backbone(str(tiny_flux), "cpu", "fp32").load_transformer()
    kinds = {type(one) for one in loaded.modules() if isinstance(one, nn.Linear)}
    assert kinds == {Linear}
    assert {GELU, ProjectedGELU} < {type(one) for one in loaded.modules()}
    model = nn.Sequential(nn.Linear(128, 128), nn.GELU("tanh"), nn.Linear(128, 128))
    before = model.state_dict()
    input_ = drawn(300, 128)
    expected = model(input_)
    install(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(input_), expected, rtol=1e-4, atol=1e-5)


def test_another_layer_stays_what_it_is() -> None:
    class Own(nn.Linear):
        pass

    kept = install(nn.Sequential(Own(2, 2), nn.GELU()))
    assert [type(one) for one in kept] == [Own, nn.GELU]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_pytorchs(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-30, 30, 5001), torch.tensor([float("inf"), 0.0, -0.0])]).to(dtype)
    truth = nn.functional.gelu(x.double(), approximate="tanh")
    ours, theirs = gelu(x), nn.functional.gelu(x, approximate="tanh")
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)
    assert (ours - truth)[x.isfinite()].abs().max() <= (theirs - truth)[x.isfinite()].abs().max() + 1e-6
    learned = x[:9].clone().requires_grad_()
    gelu(learned).sum().backward()
    assert learned.grad is not None


@operator
def test_a_lora_is_learned_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    model = install(nn.Sequential(nn.Linear(128, 128)).requires_grad_(False))
    inject_adapter_in_model(LoraConfig(target_modules=["0"], r=4), model)
    model(drawn(300, 128)).sum().backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert learned and all(parameter.grad is not None for parameter in learned)
    assert made
