"""Inception-v3 as FID knows it: the network of 2015-12-05, whose pooled features are compared.

It differs from torchvision's: average pooling leaves padding out of the count, and the last block pools by
maximum. Names of tensors are those of `pt_inception-2015-12-05-6726825d.pth`. Shapes: N pictures, C channels,
299 × 299 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d

SIDE = 299
ORIGIN = "pt_inception-2015-12-05"
"""What the published figures were measured with."""
ORIGIN_SHA256 = "6726825d"
"""The first digits of that file's sha256, as its name says."""

Size = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inside: int, outside: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x_NCHW)))


def _average(x_NCHW: torch.Tensor) -> torch.Tensor:
    return avg_pool2d(x_NCHW, 3, 1, 1, count_include_pad=False)


def _largest(x_NCHW: torch.Tensor) -> torch.Tensor:
    return max_pool2d(x_NCHW, 3, 1, 1)


class A(nn.Module):
    """Szegedy et al. 2015 (Rethinking the Inception architecture), figure 5."""

    def __init__(self, inside: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inside, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inside, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inside, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class B(nn.Module):
    """The first reduction."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inside, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    """Figure 6, with n = 7."""

    def __init__(self, narrow: int) -> None:
        super().__init__()
        wide, tall = (0, 3), (3, 0)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, narrow, 1), Conv(narrow, narrow, (1, 7), padding=wide)
        self.branch7x7_3 = Conv(narrow, 192, (7, 1), padding=tall)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = (
            Conv(768, narrow, 1),
            Conv(narrow, narrow, (7, 1), padding=tall),
        )
        self.branch7x7dbl_3 = Conv(narrow, narrow, (1, 7), padding=wide)
        self.branch7x7dbl_4 = Conv(narrow, narrow, (7, 1), padding=tall)
        self.branch7x7dbl_5 = Conv(narrow, 192, (1, 7), padding=wide)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class D(nn.Module):
    """The second reduction."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1), padding=(3, 0)), Conv(192, 192, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat(
            [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), max_pool2d(x, 3, 2)], 1
        )


class E(nn.Module):
    """Figure 7."""

    def __init__(self, inside: int, *, largest: bool) -> None:
        super().__init__()
        self.pool = _largest if largest else _average
        wide, tall = (0, 1), (1, 0)
        self.branch1x1, self.branch3x3_1 = Conv(inside, 320, 1), Conv(inside, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = (
            Conv(384, 384, (1, 3), padding=wide),
            Conv(384, 384, (3, 1), padding=tall),
        )
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=wide)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=tall)
        self.branch_pool = Conv(inside, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        both = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        more = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *both, *more, self.branch_pool(self.pool(x))], 1)


class Inception(nn.Module):
    """(N, 3, 299, 299) in -1..1 → (N, 2048) pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = B(288), C(128), C(160)
        self.Mixed_6d, self.Mixed_6e = C(160), C(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = D(), E(1280, largest=False), E(2048, largest=True)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_NCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        x = max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def input_of(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as the network takes them, (N, 3, 299, 299): (value - 128) / 128 of pictures scaled with an
    antialiasing bicubic filter in floating point, whatever their aspect: the resizing that Parmar et al. 2022
    (On aliased resizing and surprising subtleties in GAN evaluation, section 4) found free of aliasing, and
    that published try-on figures use.
    """
    rows = []
    for image in images:
        channels = [
            np.asarray(
                Image.fromarray(np.asarray(one, dtype=np.float32)).resize(
                    (SIDE, SIDE), Image.Resampling.BICUBIC
                )
            )
            for one in image.convert("RGB").split()
        ]
        rows.append(np.clip(np.stack(channels), 0, 255))
    return torch.from_numpy((np.stack(rows) - 128) / 128)
