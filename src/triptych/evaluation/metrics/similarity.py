"""SSIM of two pictures.

Shapes: C channels, H × W pixels, K the window's side.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from triptych.errors import InputError

SIGMA, K1, K2 = 1.5, 0.01, 0.03
"""Wang et al. 2004, section III-C: standard deviation of the window, and the two constants."""
WINDOW = 11


def pixels(image: Image.Image) -> torch.Tensor:
    """RGB of a picture, (1, 3, H, W) float32 in 0..1."""
    values_HWC = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(values_HWC.transpose(2, 0, 1).copy())[None]


def ssim(made: Image.Image, true: Image.Image) -> float:
    """Structural similarity of two pictures of one size, -1..1; 1 for equal pictures.

    Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13, with a Gaussian window of 11 × 11 (σ 1.5) and
    population moments, on R, G and B in 0..1. Pictures are continued by reflection, and all pixels count: the
    arithmetic of torchmetrics 1.9 with `data_range=1`, which most try-on papers use. scikit-image's default
    is another window, and the authors' own script leaves the five pixels at the edges out.

    Raises:
        InputError: a picture smaller than the window.
    """
    assert made.size == true.size, (made.size, true.size)
    if min(made.size) < WINDOW:
        raise InputError(
            f"A picture of {made.width}×{made.height} px is smaller than SSIM's window of {WINDOW} px.",
            "Give larger pictures.",
        )
    x_1CHW, y_1CHW = pixels(made).double(), pixels(true).double()
    mean_x, mean_y = _blurred(x_1CHW), _blurred(y_1CHW)
    variance_x = _blurred(x_1CHW**2) - mean_x**2
    variance_y = _blurred(y_1CHW**2) - mean_y**2
    covariance = _blurred(x_1CHW * y_1CHW) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    upper = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    lower = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float((upper / lower).mean())


def _blurred(values_1CHW: torch.Tensor) -> torch.Tensor:
    """Gaussian means around all pixels, (1, C, H, W)."""
    values_1CHW = torch.nn.functional.pad(values_1CHW, (WINDOW // 2,) * 4, mode="reflect")
    offsets_K = torch.arange(WINDOW, dtype=values_1CHW.dtype) - WINDOW // 2
    weights_K = torch.exp(-(offsets_K**2) / (2 * SIGMA**2))
    weights_K /= weights_K.sum()
    channels = values_1CHW.shape[1]
    kernel = weights_K.expand(channels, 1, WINDOW)
    rows = torch.nn.functional.conv2d(values_1CHW, kernel[..., None], groups=channels)
    return torch.nn.functional.conv2d(rows, kernel[:, :, None], groups=channels)
