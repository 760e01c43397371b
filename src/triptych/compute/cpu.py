"""Faster forms of layers that PyTorch runs slowly on some processors: float32 linear layers, GELU and
SwiGLU.

PyTorch computes float32 products on a CPU with MKL. On processors of other makers than Intel, MKL uses AVX2
only, and is 2.2 times slower than oneDNN on an AMD Zen 5. PyTorch contains oneDNN too: it uses it for
bfloat16 products, and the operator that `torch.compile` emits for linear layers reaches it in float32. On an
Intel Xeon there is no gain. GELU spends its time in the hyperbolic tangent; the sigmoid gives the same result
in half the time. SwiGLU needs one pass over memory less if it multiplies in place. (Attention is in
`attention.py`.)

Legend: O output and I input features, S anything before the features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.activations import GELU as FeedForwardGELU
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from torch import Tensor, nn

AVAILABLE = torch.cpu._is_avx512_supported() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW = 1 << 21
"""Number of multiplications in a product below which MKL is as fast."""


def only_computes(*inputs: Tensor | None) -> bool:
    """Whether this is a plain computation on a CPU: without gradients and without compilation."""
    on_cpu = all(one is None or one.device.type == "cpu" for one in inputs)
    return on_cpu and not learns(*inputs) and not torch.compiler.is_compiling()


def learns(*inputs: Tensor | None) -> bool:
    """Whether the result needs gradients."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in inputs)


def linear(input_SI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, differentiable too, and faster in the cases that the module docstring
    names.
    """
    differentiable = learns(input_SI, weight_OI, bias_O)
    if not _by_onednn(input_SI, weight_OI, differentiable):
        return nn.functional.linear(input_SI, weight_OI, bias_O)
    made: Tensor = (
        _Linear.apply(input_SI, weight_OI, bias_O)
        if differentiable
        else _product(input_SI, weight_OI, bias_O)
    )
    return made


def _by_onednn(input_SI: Tensor, weight_OI: Tensor, differentiable: bool) -> bool:
    dtype = input_SI.dtype
    # For bfloat16 with gradients, PyTorch's own path to oneDNN is 2 % faster.
    pays = dtype == torch.float32 or (dtype == torch.bfloat16 and not differentiable)
    fits = (
        input_SI.device.type == "cpu"
        and dtype == weight_OI.dtype
        and input_SI.numel() * len(weight_OI) >= FEW
    )
    return (
        AVAILABLE
        and pays
        and fits
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(input_SI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(input_SI, weight_OI, bias_O, "none", [], "")
    return made


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_SI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_SI if ctx.needs_input_grad[1] else None, weight_OI)
        return _product(input_SI, weight_OI, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad_SO,) = grads
        input_SI, weight_OI = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            linear(grad_SO, weight_OI.t()) if wants_input else None,
            linear(grad_SO.flatten(0, -2).t(), input_SI.flatten(0, -2).t()) if wants_weight else None,
            grad_SO.flatten(0, -2).sum(0) if wants_bias else None,
        )


def gelu(input_S: Tensor) -> Tensor:
    """x·Φ(x) by the hyperbolic tangent (Hendrycks & Gimpel 2016, arXiv 1606.08415): x·(1 + tanh z)/2 =
    x·sigmoid(2z) with z = √(2/π)·(x + 0.044715·x³).
    """
    if input_S.dtype not in (torch.float32, torch.bfloat16) or not only_computes(input_S):
        return nn.functional.gelu(input_S, approximate="tanh")
    x, scale = input_S.float(), 2 * math.sqrt(2 / math.pi)
    return (
        torch.addcmul(torch.tensor(scale), x, x, value=0.044715 * scale)
        .mul_(x)
        .sigmoid_()
        .mul_(x)
        .to(input_S.dtype)
    )


class Linear(nn.Linear):
    """nn.Linear that computes with `linear`."""

    def forward(self, input_SI: Tensor) -> Tensor:
        return linear(input_SI, self.weight, self.bias)


class GELU(nn.GELU):
    """nn.GELU(approximate="tanh") that computes with `gelu`."""

    def forward(self, input_S: Tensor) -> Tensor:
        return gelu(input_S)


class ProjectedGELU(FeedForwardGELU):
    """diffusers' linear layer followed by GELU, which computes with `gelu`."""

    def gelu(self, gate: Tensor) -> Tensor:
        return gelu(gate)


class SwiGLU(Flux2SwiGLU):
    """FLUX.2's activation, silu(gate)·value with both side by side in the input (Shazeer 2020, arXiv
    2002.05202). The same numbers as diffusers' layer, with one tensor less.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not only_computes(x):
            made: Tensor = super().forward(x)
            return made
        gate, value = x.chunk(2, dim=-1)
        return nn.functional.silu(gate).mul_(value)


REPLACEMENTS = (Linear, GELU, ProjectedGELU, SwiGLU)
"""The classes that `install` puts in the place of their base classes."""


def install(model: nn.Module) -> nn.Module:
    """Replace the plain layers of a model by the classes above, in place. Returns the model.

    Only the class of a module changes, to a class with the same attributes; weights, names, hooks and
    references stay.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif getattr(module, "approximate", None) == "tanh" and type(module) in (nn.GELU, FeedForwardGELU):
            module.__class__ = GELU if type(module) is nn.GELU else ProjectedGELU
        elif type(module) is Flux2SwiGLU:
            module.__class__ = SwiGLU
    return model
