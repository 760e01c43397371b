"""LPIPS and DISTS: distances of two pictures in the features of a network trained on ImageNet.

Shapes: C channels, H × W pixels. The networks come from files, see `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from triptych.errors import ModelError
from triptych.evaluation.metrics.similarity import pixels
from triptych.evaluation.metrics.weights import Weights, fill, read_weights

Features = Callable[[torch.Tensor], list[torch.Tensor]]

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What LPIPS takes off pictures in -1..1, and what it divides them by."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of pictures in 0..1, for DISTS."""
SMALL = 1e-6
"""Both constants of DISTS."""


class Fire(nn.Module):
    """The block of SqueezeNet (Iandola et al. 2016, figure 2)."""

    def __init__(self, inside: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x_NCHW = torch.relu(self.squeeze(x_NCHW))
        return torch.cat([torch.relu(self.expand1x1(x_NCHW)), torch.relu(self.expand3x3(x_NCHW))], 1)


class HanningPool(nn.Module):
    """L2 pooling with a Hanning window of 3 × 3 and stride 2 (Ding et al. 2020, section III-A)."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.from_numpy(np.outer(np.hanning(5)[1:-1], np.hanning(5)[1:-1])).float()
        self.window = window / window.sum()

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        channels = x_NCHW.shape[1]
        kernel = self.window.to(x_NCHW).expand(channels, 1, 3, 3)
        pooled = nn.functional.conv2d(x_NCHW**2, kernel, stride=2, padding=1, groups=channels)
        return (pooled + 1e-12).sqrt()


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def _vgg16(pool: Callable[[], nn.Module] = lambda: nn.MaxPool2d(2, 2)) -> nn.Sequential:
    layers: list[nn.Module] = []
    inside = 3
    for number, (repeats, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        layers += [pool()] if number else []
        for _ in range(repeats):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
            inside = width
    return nn.Sequential(*layers)


def _squeezenet() -> nn.Sequential:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool()),
        *(Fire(64, 16, 64), Fire(128, 16, 64), pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    )


BACKBONES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "alex": (_alexnet, (1, 4, 7, 9, 11)),
    "vgg": (_vgg16, (3, 8, 15, 22, 29)),
    "squeeze": (_squeezenet, (1, 4, 7, 9, 10, 11, 12)),
}
"""By net: torchvision's layers, and those whose outputs LPIPS compares."""


@dataclass(frozen=True)
class Perceptual:
    """A named distance of two pictures of one size; 0 for equal ones. sha256: of the weights' file."""

    name: str
    sha256: str
    between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def distance(self, made: Image.Image, true: Image.Image) -> float:
        assert made.size == true.size, (made.size, true.size)
        with torch.inference_mode():
            return float(self.between(pixels(made), pixels(true)))


def open_lpips(path: Path) -> Perceptual:
    """LPIPS version 0.1 (Zhang et al. 2018, eq. 1) from a file with the backbone and its linear weights.

    The net (alex, vgg or squeeze) follows from the shapes in the file, and is part of the name, because
    values of different nets cannot be compared.

    Raises:
        ModelError: the file is none, or is incomplete.
    """
    weights = read_weights(path, "The weights of LPIPS")
    net = _net_of(weights)
    build, taps = BACKBONES[net]
    features = _features(build(), taps, weights.by_layer(), "The weights of LPIPS")
    heads = [_head(weights, number) for number in range(len(taps))]
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))

    def between(x_1CHW: torch.Tensor, y_1CHW: torch.Tensor) -> torch.Tensor:
        both = [features((2 * one - 1 - shift) / scale) for one in (x_1CHW, y_1CHW)]
        total = torch.zeros(())
        for x, y, head in zip(*both, heads, strict=True):
            unit_x, unit_y = (one / (one.norm(dim=1, keepdim=True) + 1e-10) for one in (x, y))
            total = total + ((unit_x - unit_y) ** 2 * head).sum(dim=1).mean()
        return total

    return Perceptual(f"LPIPS ({net})", weights.sha256, between)


def open_dists(path: Path) -> Perceptual:
    """DISTS (Ding et al. 2020, eq. 7) from a file with VGG16 and the weights alpha and beta.

    Pictures are compared at their own size; the authors' script scales the shorter side to 256 before.

    Raises:
        ModelError: the file is none, or is incomplete.
    """
    weights = read_weights(path, "The weights of DISTS")
    features = _features(_vgg16(HanningPool), BACKBONES["vgg"][1], weights.by_layer(), "The weights of DISTS")
    widths = (3, 64, 128, 256, 512, 512)
    alpha, beta = (weights.tensors.get(name, torch.zeros(0)) for name in ("alpha", "beta"))
    if alpha.numel() != sum(widths) or beta.numel() != sum(widths):
        raise ModelError(
            "The weights of DISTS do not fit: alpha and beta of 1475 values are missing.", "Add both to it."
        )
    total = alpha.sum() + beta.sum()
    alphas, betas = ((one.flatten() / total).split(widths) for one in (alpha, beta))
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))

    def between(x_1CHW: torch.Tensor, y_1CHW: torch.Tensor) -> torch.Tensor:
        both = [[one, *features((one - mean) / deviation)] for one in (x_1CHW, y_1CHW)]
        alike = torch.zeros(())
        for x, y, a, b in zip(*both, alphas, betas, strict=True):
            alike = alike + (a * _texture(x, y)).sum() + (b * _structure(x, y)).sum()
        return 1 - alike

    return Perceptual("DISTS", weights.sha256, between)


def _texture(x_1CHW: torch.Tensor, y_1CHW: torch.Tensor) -> torch.Tensor:
    """How equal the means of the channels are, (C,)."""
    x, y = x_1CHW.mean((0, 2, 3)), y_1CHW.mean((0, 2, 3))
    return (2 * x * y + SMALL) / (x**2 + y**2 + SMALL)


def _structure(x_1CHW: torch.Tensor, y_1CHW: torch.Tensor) -> torch.Tensor:
    """How much the channels vary together, (C,)."""
    x, y = (one - one.mean((2, 3), keepdim=True) for one in (x_1CHW, y_1CHW))
    covariance = (x * y).mean((0, 2, 3))
    return (2 * covariance + SMALL) / ((x**2).mean((0, 2, 3)) + (y**2).mean((0, 2, 3)) + SMALL)


def _net_of(weights: Weights) -> str:
    layers = weights.by_layer()
    for net, (build, _) in BACKBONES.items():
        with torch.device("meta"):
            wanted = build().state_dict()
        if all(name in layers and layers[name].shape == tensor.shape for name, tensor in wanted.items()):
            return net
    raise ModelError(
        "The weights of LPIPS do not fit: the backbone is neither AlexNet, VGG16 nor SqueezeNet 1.1.",
        "The file needs the backbone (features.0.weight …) and the heads (lin0.model.1.weight …).",
    )


def _head(weights: Weights, number: int) -> torch.Tensor:
    """The linear weights of a layer, (1, C, 1, 1)."""
    wanted = re.compile(rf"(?:.*\.)?lins?\.?{number}\.model\.1\.weight")
    found = next((tensor for name, tensor in weights.tensors.items() if wanted.fullmatch(name)), None)
    if found is None:
        raise ModelError(
            f"The weights of LPIPS do not fit: lin{number}.model.1.weight is missing.",
            "The file needs the backbone (features.0.weight …) and the heads (lin0.model.1.weight …).",
        )
    return found


def _features(
    network: nn.Sequential, taps: Sequence[int], tensors: dict[str, torch.Tensor], what: str
) -> Features:
    """The outputs of some layers of a network with the given weights."""
    network.eval().requires_grad_(False)
    fill(network, tensors, what)

    def run(x_1CHW: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for number, layer in enumerate(network):
            x_1CHW = layer(x_1CHW)
            if number in taps:
                outputs.append(x_1CHW)
        return outputs

    return run
