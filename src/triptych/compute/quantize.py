"""Keep a transformer's linear layers in 4 or 8 bits, for LoRA training and sampling: a third or half of
bf16's memory.

Quantised are the weights of every nn.Linear inside the transformer's blocks, including the modulation, which
is 3.2 of FLUX.1-dev's 11.9 billion parameters. The rest stays in the working dtype: biases and the norms'
weights, because they are vectors; the embedders and the output layer outside the blocks, because they are
only 0.6 % of FLUX.1-dev and their errors reach every token.

A weight is dequantised for one matrix product and then dropped, and again in the backward pass: no
full-precision copy outlives its layer. The same code runs on the CPU and on a card. A checkpoint is read
tensor by tensor into a model on the meta device, and each tensor is quantised before the next is read: the
full-precision model never exists in memory.

Legend: O output and I input features, S anything before the features.
"""

from __future__ import annotations

import importlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from safetensors import safe_open
from torch import Tensor, nn

from triptych.compute.blocks import Blocks, linear_layers
from triptych.errors import ModelError


class QuantizedLinear(nn.Linear):
    """nn.Linear with a frozen, quantised weight. Gradients flow to its input, and peft treats it as an
    nn.Linear.

    weight: the codes, in the format's shape and type. scale: the unit of the codes.
    """

    package: ClassVar[str]

    def __init__(self, codes: Tensor, scale: Tensor, shape: Sequence[int], bias_O: Tensor | None) -> None:
        """Codes and scales as `pack` returns them, of a weight of shape (O, I)."""
        nn.Module.__init__(self)  # nn.Linear's would allocate the full weight
        self.out_features, self.in_features = shape
        # Named `weight` because peft reads the device of a LoRA from that attribute.
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        self.scale: Tensor
        self.register_parameter(
            "bias", None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)
        )

    @staticmethod
    @abstractmethod
    def pack(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight of any floating dtype."""

    @staticmethod
    @abstractmethod
    def unpack(codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`, except for the quantisation error."""

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (O, I)."""
        return self.unpack(self.weight, self.scale, torch.Size((self.out_features, self.in_features)), dtype)

    def forward(self, input_SI: Tensor) -> Tensor:
        device = input_SI.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input_SI.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        shape = torch.Size((self.out_features, self.in_features))
        product: Tensor = _Product.apply(input_SI.to(dtype), self.weight, self.scale, bias, type(self), shape)
        return product


class _Product(torch.autograd.Function):
    """F.linear that keeps the codes for the backward pass, never the dequantised weight."""

    @staticmethod
    def forward(
        ctx: Any,
        input_SI: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias_O: Tensor | None,
        kind: type[QuantizedLinear],
        shape: torch.Size,
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.kind, ctx.shape = kind, shape
        return nn.functional.linear(input_SI, kind.unpack(codes, scale, shape, input_SI.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (grad_SO,) = grads
        codes, scale = ctx.saved_tensors
        return grad_SO @ ctx.kind.unpack(codes, scale, ctx.shape, grad_SO.dtype), None, None, None, None, None


class NF4Linear(QuantizedLinear):
    """4 bits in blocks of 64, each with a float32 maximum: 4.5 bits in all (QLoRA, arXiv 2305.14314, §3).
    QLoRA also quantises the maxima, which would save another 0.4 bits; this is left out.
    """

    package = "bitsandbytes"
    BLOCK = 64

    @staticmethod
    def pack(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(weight_OI.contiguous(), blocksize=NF4Linear.BLOCK, quant_type="nf4")
        return codes, state.absmax

    @staticmethod
    def unpack(codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        import bitsandbytes  # noqa: F401 - registers the operator

        weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            codes, scale, NF4Linear.BLOCK, "nf4", shape, dtype
        )
        return weight


class Int8Linear(QuantizedLinear):
    """8 bits with one maximum per row, as LLM.int8 quantises weights (arXiv 2208.07339, §2). Activations are
    not quantised.
    """

    package = "bitsandbytes"

    @staticmethod
    def pack(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, maxima, _ = int8_vectorwise_quant(weight_OI.half())
        return codes, maxima

    @staticmethod
    def unpack(codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        weight = torch.empty(shape, dtype=dtype, device=codes.device)
        # one pass over the codes; it rounds a bf16 weight once, and its scale never
        return torch.mul(codes, (scale / 127.0)[:, None], out=weight)


class TorchaoInt8Linear(QuantizedLinear):
    """8 bits in groups of at most 64, each with a float32 scale: 8.5 bits in all, and finer than one scale
    per row.
    """

    package = "torchao"
    GROUP = 64

    @staticmethod
    def pack(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        from torchao.quantization import Int8Tensor, PerGroup

        group = math.gcd(TorchaoInt8Linear.GROUP, weight_OI.shape[1])
        packed = Int8Tensor.from_hp(weight_OI.contiguous(), PerGroup(group))
        return packed.qdata, packed.scale

    @staticmethod
    def unpack(codes: Tensor, scale: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        # As Int8Tensor.dequantize, in one pass: that one writes the codes and the product as well.
        weight = torch.empty(shape, dtype=dtype, device=codes.device)
        grouped = *scale.shape, codes.shape[1] // scale.shape[1]
        torch.mul(codes.view(grouped), scale[..., None], out=weight.view(grouped))
        return weight


FORMATS: dict[str, type[QuantizedLinear]] = {
    "nf4": NF4Linear,
    "int8": Int8Linear,
    "int8-torchao": TorchaoInt8Linear,
}


def check_installed(quantize: str) -> None:
    """
    Raises:
        ModelError: the format's package is missing or broken.
    """
    if quantize == "none":
        return
    package = FORMATS[quantize].package
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        hint = "pip install 'triptych[quantization]', or use --quantize none."
        raise ModelError(
            f"--quantize {quantize} needs the package {package}, which cannot be imported: {error}.", hint
        ) from error


def load_quantized(
    transformer: nn.Module,
    blocks: Blocks,
    folder: Path,
    quantize: str,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Read the weights in `folder` into a transformer on the meta device. Returns the transformer, now in
    RAM.

    The linear layers of `blocks` are quantised on `device`, one after another.

    Raises:
        ValueError, OSError: the checkpoint does not fit the model, is incomplete, or cannot be read.
    """
    kind, modules = FORMATS[quantize], dict(transformer.named_modules())
    to_quantize = linear_layers(blocks).keys()
    for name, tensor in _tensors(folder):
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        place = getattr(module, leaf, None)
        if module is None or not isinstance(place, Tensor):
            raise ValueError(f"{name} is no part of the model")
        if place.shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(place.shape)}")
        if leaf == "weight" and owner in to_quantize:
            codes, scale = kind.pack(tensor.to(device).float())  # half the bytes go to a card
            quantized = kind(
                codes.cpu(), scale.cpu(), tensor.shape, module.bias
            )  # the bias may come later, from another shard
            modules[owner] = quantized
            transformer.set_submodule(owner, quantized)
        elif leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor.to(dtype, copy=True), requires_grad=False)
        else:
            module._buffers[leaf] = tensor.to(dtype, copy=True)
    missing = [name for name, tensor in transformer.state_dict(keep_vars=True).items() if tensor.is_meta]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, {missing[0]} among them")
    return transformer


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a checkpoint with its name, one in memory at a time."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        shards = [WEIGHTS]
    for shard in shards:
        with safe_open(folder / Path(shard).name, framework="pt") as stream:
            names = list(stream.keys())
        for name in names:
            # Open the file again for each tensor: the pages of a mapped file count as this process's memory
            # while it is open.
            with safe_open(folder / Path(shard).name, framework="pt") as stream:
                yield name, stream.get_tensor(name)
