"""Try-on without a mask: the whole worn panel is made anew from reference pictures, and what changed is put
back into the photo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from triptych.errors import ConfigError
from triptych.pictures import masks
from triptych.pictures.differences import changed_region
from triptych.pictures.panels import PanelLayout, concatenate, place
from triptych.sampling.canvas import decoded_panel, encoded
from triptych.sampling.generate import made_latents
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.references import references_of
from triptych.sampling.sampler import OnStep
from triptych.vton.fit import Fitting, TryOnResult, put_back
from triptych.vton.refine import refined


def redressed(
    model: OpenedModel,
    photos: Mapping[str, Image.Image],
    fitting: Fitting,
    layout: PanelLayout,
    sampling: Sampling,
    feather: int,
    references: Sequence[Image.Image] = (),
    on_step: OnStep | None = None,
    *,
    refine: float = 0.0,
) -> list[TryOnResult]:
    """The person in the garment, one result per seed. Outside the result's `mask` the photo is unchanged.

    The references are the `photos` of garments by role, the part of the person's photo that the panel shows,
    and further `references`. The changed region is found between the made panel and the photo's own panel
    after the same autoencoder (see `changed_region`), on the photo widened by `feather`, within the fitting's
    mask. refine: strength of a second pass inside that region, see `refined`; 0: none.

    Raises:
        ConfigError: the model knows no references, or photos stand on the canvas.
    """
    if not model.backbone.family.references or sampling.context_placement != "reference":
        raise ConfigError(
            "Without a mask, the photos must be references.",
            "Give a mask or polygons, or use a FLUX.2-klein model without a LoRA, or with one trained with "
            "--context-placement reference.",
        )
    person, (role,) = fitting.person, layout.made
    panel = fitting.canvas.crop(layout.box(role))
    sampled, prompts = layout.only(layout.made), [person.prompt] * len(person.seeds)
    shown = references_of(model, [photos], layout, sampling, [panel, *references])
    latents = made_latents(model, prompts, sampled, person.seeds, sampling, None, shown, on_step)
    own, _ = encoded(model, [concatenate([panel], sampled)], sampled)
    (kept,) = decoded_panel(model, own, sampled, role)
    results = []
    for made in decoded_panel(model, latents, sampled, role):
        region = changed_region(made, kept, model.settings.stride)
        mask = np.minimum(masks.feather(_on_photo(region, fitting, layout), feather), fitting.mask)
        results.append(put_back(replace(fitting, mask=mask), made, layout))
    if refine:
        (results,) = refined(model, [fitting], [results], layout, sampling, refine, shown, on_step)
    return results


def _on_photo(region: np.ndarray, fitting: Fitting, layout: PanelLayout) -> np.ndarray:
    """A region of the worn panel as a mask of the photo, (H, W) float32 of 0 and 1."""
    box = fitting.box
    at = place((box.right - box.left, box.bottom - box.top), layout.width, layout.height)
    shown = (
        Image.fromarray(region).convert("L").crop((at.left, at.top, at.left + at.width, at.top + at.height))
    )
    mask = Image.new("L", fitting.photo.size)
    size = (box.right - box.left, box.bottom - box.top)
    mask.paste(shown.resize(size, Image.Resampling.BILINEAR), (box.left, box.top))
    return (np.asarray(mask) > 127).astype(np.float32)
