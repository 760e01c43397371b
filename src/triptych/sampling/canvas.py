"""Convert pictures ↔ pixels ↔ latents.

Legend: B batch, C channels, H and W rows and columns of the whole canvas, in latents or, for pixel tensors,
in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.backbones.contract import Autoencoder
from triptych.backbones.families import Family
from triptych.pictures.panels import PanelLayout
from triptych.sampling import token_sets
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size → (B, 3, H, W) float32 in [−1, 1]."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [−1, 1] → RGB pictures."""
    array = (
        ((pixels_BCHW.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return [Image.fromarray(one) for one in array]


def encoded(model: OpenedModel, images: Sequence[Image.Image], layout: PanelLayout) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of canvases, see `encode_canvases`."""
    return encode_canvases(model.autoencoder, model.backbone.family, images, layout)


def encode_canvases(
    autoencoder: Autoencoder, family: Family, images: Sequence[Image.Image], layout: PanelLayout
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of canvases, each (B, C, H, W).

    For families that know references the panels are encoded one by one: a panel's latents are then the same
    on the canvas and as a reference.
    """
    if not family.references:
        return autoencoder.encode(to_pixels(images))
    # One panel of all canvases at a time, to need no more memory than that.
    panels = [
        autoencoder.encode(to_pixels([image.crop(layout.box(role)) for image in images]))
        for role in layout.roles
    ]
    means, stds = zip(*panels, strict=True)
    return _side_by_side(means, layout), _side_by_side(stds, layout)


def _side_by_side(panels: Sequence[Tensor], layout: PanelLayout) -> Tensor:
    """Panels in reading order, each (B, C, h, w) → canvases (B, C, H, W)."""
    rows = [panels[start : start + layout.columns] for start in range(0, len(panels), layout.columns)]
    return torch.cat([torch.cat(list(row), 3) for row in rows], 2)


def decoded(model: OpenedModel, latents_BCHW: Tensor, layout: PanelLayout) -> list[Image.Image]:
    """Whole canvases, decoded as they were encoded.

    Raises:
        ModelError: latents or pixels are not finite.
    """
    if not model.backbone.family.references:
        return to_images(model.finite(model.autoencoder.decode(model.finite(latents_BCHW))))
    canvases = [Image.new("RGB", layout.size) for _ in latents_BCHW]
    for role in layout.roles:
        for canvas, panel in zip(canvases, decoded_panel(model, latents_BCHW, layout, role), strict=True):
            canvas.paste(panel, layout.box(role)[:2])
    return canvases


def decoded_panel(
    model: OpenedModel, latents_BCHW: Tensor, layout: PanelLayout, role: str
) -> list[Image.Image]:
    """Decode one panel of each canvas alone: a third of the work, and no colour of a known panel bleeds
    across its edge.

    Raises:
        ModelError: latents or pixels are not finite.
    """
    left, top, right, bottom = layout.box(role, model.autoencoder.stride)
    latents = model.finite(latents_BCHW[:, :, top:bottom, left:right])
    return to_images(model.finite(model.autoencoder.decode(latents)))


def left_out(
    canvases: Sequence[Image.Image], layout: PanelLayout, model: OpenedModel, sampling: Sampling
) -> Tensor | None:
    """The tokens of given panels that show background on every canvas; None if `drop_background` is off."""
    if not sampling.drop_background:
        return None
    stride = model.backbone.settings.stride
    sets = [token_sets.background_of(canvas, layout, layout.given, stride) for canvas in canvases]
    return torch.from_numpy(np.logical_and.reduce(sets))


def known_latents(
    model: OpenedModel, canvases: Sequence[Image.Image], layout: PanelLayout, sampling: Sampling
) -> Tensor:
    """Latents (B, C, H, W) of edited canvases, whose generated panels are to be repainted.

    With context reading `products`, the latents of the given panels do not depend on the made ones; with
    `each`, those of a panel depend on no other panel.
    """
    reading = sampling.context_reading if sampling.context == "clean" else "joint"
    if reading == "each":
        rows = [
            [encoded_alone(model, one.crop(layout.box(role))) for role in layout.roles] for one in canvases
        ]
        return torch.cat([_side_by_side(panels, layout) for panels in rows])
    latents, _ = encoded(model, canvases, layout)
    if reading == "products" and not model.backbone.family.references:
        pairs = zip(latents, canvases, strict=True)
        return torch.cat([_with_products_alone(one[None], canvas, layout, model) for one, canvas in pairs])
    return latents


def encoded_alone(model: OpenedModel, image: Image.Image) -> Tensor:
    """The latents (1, C, H, W) of one RGB picture, kept for the next time that it is shown."""
    key = hashlib.sha256(f"latents of {image.size} ".encode() + image.tobytes()).hexdigest()
    kept: Tensor = model.contexts.get(key, lambda: model.autoencoder.encode(to_pixels([image]))[0])
    return kept


def _with_products_alone(
    known_BCHW: Tensor, canvas: Image.Image, layout: PanelLayout, model: OpenedModel
) -> Tensor:
    """The latents of a canvas, but with its given panels encoded on another canvas, where the first given
    panel also fills the place of every generated one.

    The autoencoder's group norms look at the whole canvas, so product latents change with the person beside
    them, and cached keys and values of a product would serve one person only. `generate` shows products to
    the model on exactly such a canvas.
    """
    alone = canvas.copy()
    for role in layout.made:
        alone.paste(canvas.crop(layout.box(layout.given[0])), layout.box(role)[:2])
    pixels = alone.tobytes()
    if pixels == canvas.tobytes():  # nobody stands beside the products
        return known_BCHW
    key = hashlib.sha256(f"latents {layout} ".encode() + pixels).hexdigest()
    products = model.contexts.get(key, lambda: model.autoencoder.encode(to_pixels([alone]))[0])
    made = torch.from_numpy(layout.mask(layout.made, model.autoencoder.stride)).to(known_BCHW.device)
    return torch.where(made, known_BCHW, products)
