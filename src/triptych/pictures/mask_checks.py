"""What is shown and said about a mask before it is used: a preview, and whether it follows an outline in the
photo.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from triptych.pictures.masks import composite, crop_box, grow

_HUG_SIDE = 200  # the mask's longer side in pixels, to which it is scaled down before its outline is measured
HUGGING = 1.75


def edge_ratio(image: Image.Image, mask: np.ndarray) -> float:
    """How much stronger the photo's edges are on the mask's outline than beside it; above `HUGGING` the mask
    follows an outline in the photo.

    The mean gradient within 1 % of the mask's longer side of the outline, divided by the mean gradient 2 to 6
    % away from it on both sides. An outline along the silhouette of the garment worn now has that garment's
    edge on it; an outline drawn freely crosses as many edges as its surroundings do. The ratio misses faint
    silhouettes, such as those of strongly patterned clothes or of black cloth in front of black.

    Args:
        image: the photo. mask: (H, W) of the same size, not empty.
    """
    box = crop_box(mask, mask.shape[1] / mask.shape[0], 0.1)
    scale = min(1.0, 1.2 * _HUG_SIDE / max(box.right - box.left, box.bottom - box.top))
    size = max(1, round((box.right - box.left) * scale)), max(1, round((box.bottom - box.top) * scale))
    if min(size) < 2:  # a strip has no gradient across it
        return 0.0
    small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX, box)).astype(np.float32)
    part = np.ascontiguousarray(mask[box.top : box.bottom, box.left : box.right])
    inside = (np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX)) > 0.5).astype(np.float32)
    gradient = np.hypot(*(np.abs(slope).max(axis=2) for slope in np.gradient(small, axis=(0, 1))))
    unit = max(1, round(max(size) / 1.2 / 100))

    def near(reach: int) -> np.ndarray:
        """Pixels within `reach` of the outline."""
        return np.asarray(grow(inside, reach) - (1 - grow(1 - inside, reach)) > 0)

    on, beside = near(unit), near(6 * unit) & ~near(2 * unit)
    if not on.any() or not beside.any():
        return 0.0
    return float(gradient[on].mean() / (gradient[beside].mean() + 1.0))


def preview(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The photo with the repainted area tinted, outlined and labelled, for a person to check: RGB of the same
    size.
    """
    image = image.convert("RGB")
    tint = Image.new("RGB", image.size, (255, 64, 96))
    shown = composite(image, Image.blend(image, tint, 0.4), mask)
    line = max(1, round(max(image.size) / 400))
    inside = (mask > 0).astype(np.uint8)
    edge = Image.fromarray((grow(inside, line) - inside) * np.uint8(255))
    shown.paste(Image.new("RGB", image.size, (255, 255, 255)), None, edge)
    text = max(10, round(min(image.size) / 25))
    ImageDraw.Draw(shown).text(
        (text / 2, image.height - 1.6 * text),
        "inside the outline = repainted",
        fill="white",
        font=ImageFont.load_default(text),
        stroke_width=max(1, text // 10),
        stroke_fill="black",
    )
    return shown
