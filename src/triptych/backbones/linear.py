"""Linear layers in float32 on a CPU, by oneDNN.

PyTorch hands float32 products on a CPU to MKL, which on processors that are not Intel's computes with half of AVX-512's width:
2.2 times slower than oneDNN on an AMD Zen 5, and as fast elsewhere. oneDNN is a part of PyTorch too, computes its products in
bfloat16, and in float32 is reached by the operator that `torch.compile` puts into its programs.

Legend: O output and I input features, S anything before the features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

AVAILABLE = torch.cpu._is_avx512_supported() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW = 1 << 21
"""Multiplications of a product below which MKL is as fast."""


def linear(input_SI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, differentiable as that is, quicker where this file's first lines apply."""
    if not _by_onednn(input_SI, weight_OI):
        return nn.functional.linear(input_SI, weight_OI, bias_O)
    learns = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (input_SI, weight_OI, bias_O))
    made: Tensor = _Linear.apply(input_SI, weight_OI, bias_O) if learns else _product(input_SI, weight_OI, bias_O)
    return made


def _by_onednn(input_SI: Tensor, weight_OI: Tensor) -> bool:
    plain = input_SI.device.type == "cpu" and input_SI.dtype == weight_OI.dtype == torch.float32
    if not (AVAILABLE and plain and input_SI.numel() * len(weight_OI) >= FEW):
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


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


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input_SI: Tensor) -> Tensor:
        return linear(input_SI, self.weight, self.bias)


def install(model: nn.Module) -> nn.Module:
    """Make every plain nn.Linear of a model a `Linear`, weights and names as they are; the model."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model
