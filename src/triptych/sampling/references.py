"""Reference placement: given panels become pictures of their own, and only the made panels are a canvas.

Legend: B batch, C channels, H and W rows and columns of a whole canvas, in cells of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from triptych.backbones.context import Reference
from triptych.pictures.panels import PanelLayout, fit
from triptych.sampling import token_sets
from triptych.sampling.canvas import encoded_alone
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling


def references_of(
    model: OpenedModel,
    photos: Sequence[Mapping[str, Image.Image]],
    layout: PanelLayout,
    sampling: Sampling,
    further: Sequence[Image.Image] = (),
) -> tuple[Reference, ...]:
    """The given panels as references: the n-th given role is the n-th reference. Behind them stand `further`
    pictures, which all canvases share.

    Each photo is encoded alone. Photos of one role that have one shape keep it, at no more than the area of a
    panel; otherwise they are fitted into panels, because a batch needs equal numbers of tokens.

    photos: by role, for one canvas each, or one for all canvases.
    """
    references = []
    panels = [[own[role] for own in photos] for role in layout.given]
    for number, shown in enumerate([*panels, *([image] for image in further)], 1):
        size, *others = {reference_size(image.size, layout, model.settings.stride) for image in shown}
        if others:
            images = [fit(image, layout.width, layout.height) for image in shown]
        else:
            images = [ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS) for image in shown]
        known = None
        if sampling.drop_background:
            sets = [token_sets.background_tokens(image, model.settings.stride) for image in images]
            known = ~torch.from_numpy(np.logical_and.reduce(sets)).to(model.backbone.device)
        latents = torch.cat([encoded_alone(model, image) for image in images])
        references.append(Reference(latents.to(model.backbone.device), known, number))
    return tuple(references)


def reference_size(size: tuple[int, int], layout: PanelLayout, stride: int) -> tuple[int, int]:
    """Width and height in pixels of a photo of `size` as a reference: its own shape at no more than the area
    of a panel, in whole tokens.
    """
    width, height = size
    scale = math.sqrt(layout.width * layout.height / (width * height))
    across, down = (max(1, int(side * scale / stride + 1e-6)) * stride for side in size)
    return across, down


def moved(values: Tensor, source: PanelLayout, target: PanelLayout, unit: int) -> Tensor:
    """The panels that two layouts share, from a canvas (…, H, W) of the one to a canvas of the other; 0 where
    the target has other panels. unit: side of a cell in pixels.
    """
    made = values.new_zeros((*values.shape[:-2], target.size[1] // unit, target.size[0] // unit))
    for role in target.roles:
        if role in source.roles:
            there, here = source.box(role, unit), target.box(role, unit)
            made[..., here.top : here.bottom, here.left : here.right] = values[
                ..., there.top : there.bottom, there.left : there.right
            ]
    return made
