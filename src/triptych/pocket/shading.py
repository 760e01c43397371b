"""Light on a drawn panel: soft, from one side of the picture, with folds and roundness of the cloth."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image

LIGHT, FOLD, ROUND = 0.07, 0.05, 0.13
"""Largest change of brightness by the light's side, by each of two folds, and at the sides of the cloth."""


def shaded(image: Image.Image, mask: Image.Image, seed: int) -> Image.Image:
    """Return a panel in a light that follows from the seed alone; folds stay inside the garment's mask.

    So another garment in the same scene changes nothing outside the masks of the two.
    """
    rng = random.Random(f"light {seed}")
    height, width = mask.height, mask.width
    y, x = (np.mgrid[0:height, 0:width].astype(np.float32) + 0.5) / height * 2 - 1
    x -= width / height - 1
    turn = rng.uniform(0, 2 * math.pi)
    light = 1 + LIGHT * (x * math.cos(turn) + y * math.sin(turn))
    cloth = np.zeros_like(x)
    for _ in range(2):
        slant, period, phase = rng.uniform(-0.5, 0.5), rng.uniform(0.16, 0.4), rng.uniform(0, 2 * math.pi)
        cloth += FOLD * np.sin((x + slant * y) * (2 * math.pi / period) + phase + 2 * np.sin(3 * y + phase))
    cloth -= ROUND * np.minimum(1, (x / 0.45) ** 2)
    factor = light * (1 + cloth * np.asarray(mask, np.float32) / 255)
    pixels = np.asarray(image, np.float32) * factor[..., None]
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
