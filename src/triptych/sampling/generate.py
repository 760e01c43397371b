"""Generate triptychs from prompts, in memory. Given panels stay unchanged; the others are generated beside
them.

Legend: B batch, C channels, H and W latent rows and columns of the whole canvas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from triptych.backbones.context import Reference
from triptych.errors import InputError
from triptych.pictures.panels import PanelLayout, concatenate
from triptych.sampling.canvas import decoded, decoded_panel, known_latents, left_out
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.products import shown
from triptych.sampling.references import references_of
from triptych.sampling.sampler import Canvases, Known, OnStep, sample_latents


def generate_triptych(
    model: OpenedModel,
    prompts: Sequence[str],
    layout: PanelLayout | None = None,
    seeds: Sequence[int] = (0,),
    sampling: Sampling | None = None,
    products: Sequence[Mapping[str, Image.Image]] | None = None,
    on_step: OnStep | None = None,
    *,
    references: Sequence[Image.Image] = (),
) -> list[Image.Image]:
    """Generate triptychs for B prompts, with one seed per prompt.

    Args:
        layout, sampling: default to the LoRA's training, else to the model's recommendation.
        products: per prompt, the known panels by role, e.g. photos for the panels that the task gives. They
            come back pixel for pixel, and the other panels are generated beside them. None or empty: the
            whole canvas comes from the prompt.
        references: further pictures that the model sees, for all prompts.

    Raises:
        ConfigError: the model would not see further references.
        InputError: products are given for panels that the layout lacks, or for all panels.
        ModelError: the result is not finite, or a part of the model cannot be loaded.
    """
    assert len(prompts) == len(seeds)
    layout, sampling = layout or model.layout(), sampling or model.sampling()
    given = [shown(one, layout) for one in products or [{}] * len(prompts)]
    for panels in given:
        _check_panels(panels, layout)
    if references:
        model.check_references(sampling)
    with model.lock:
        model.warn_of(sampling)
        model.encode(prompts)  # before the transformer is loaded
        canvases = [
            concatenate([_panel(panels, role, layout) for role in layout.roles], layout) for panels in given
        ]
        if not given[0]:
            layout = layout.only(layout.roles)
            pictures = references_of(model, [], layout, sampling, references)
            latents = made_latents(model, prompts, layout, seeds, sampling, None, pictures, on_step=on_step)
            return decoded(model, latents, layout)
        layout = replace(layout, made=tuple(role for role in layout.roles if role not in given[0]))
        if sampling.context_placement == "reference":
            sampled = layout.only(layout.made)
            pictures = references_of(model, given, layout, sampling, references)
            latents = made_latents(model, prompts, sampled, seeds, sampling, None, pictures, on_step=on_step)
        else:
            sampled = layout
            known = _known(model, canvases, layout, sampling)
            latents = made_latents(model, prompts, sampled, seeds, sampling, known, on_step=on_step)
        for role in layout.made:
            for canvas, panel in zip(canvases, decoded_panel(model, latents, sampled, role), strict=True):
                canvas.paste(panel, layout.box(role)[:2])
        return canvases


def made_latents(
    model: OpenedModel,
    prompts: Sequence[str],
    layout: PanelLayout,
    seeds: Sequence[int],
    sampling: Sampling,
    known: Known | None = None,
    references: tuple[Reference, ...] = (),
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample latents (B, C, H, W) of B canvases, with one prompt and one seed each. layout: that of the
    sampled canvas, without panels that are references.
    """
    unit = model.autoencoder.stride
    channels = model.backbone.latent_channels(model.transformer)
    canvases = Canvases(
        layout,
        (channels, layout.size[1] // unit, layout.size[0] // unit),
        model.text(prompts),
        seeds,
        model.text([""] * len(prompts)) if sampling.needs_empty_prompt else None,
        known,
        references,
    )
    return sample_latents(
        model.backbone, model.transformer, canvases, sampling, contexts=model.contexts, on_step=on_step
    )


def _check_panels(given: Mapping[str, Image.Image], layout: PanelLayout) -> None:
    """Raise InputError for panels that the layout does not have, or if all panels are given."""
    if {*given} - {*layout.roles} or {*given} == {*layout.roles}:
        raise InputError(
            f"Photos are given of {', '.join(sorted(given))}; the panels are {', '.join(layout.roles)}.",
            "Give photos for some of the panels, not for all.",
        )


def _known(
    model: OpenedModel,
    canvases: Sequence[Image.Image],
    layout: PanelLayout,
    sampling: Sampling,
) -> Known:
    latents = known_latents(model, canvases, layout, sampling)
    repaint = torch.from_numpy(layout.mask(layout.made, model.autoencoder.stride)).float()
    # The canvases of a batch share one set of tokens. A token is therefore left out only if it is background
    # on every canvas.
    return Known(latents, repaint, left_out(canvases, layout, model, sampling))


def _panel(given: Mapping[str, Image.Image], role: str, layout: PanelLayout) -> Image.Image:
    """A known panel; for an unknown role, another known panel as filler. The filler's latents are repainted,
    but the autoencoder's group norms look at the whole canvas, and a grey panel would change the latents of
    the panels beside it.
    """
    return (
        given.get(role)
        or next(iter(given.values()), None)
        or Image.new("RGB", (layout.width, layout.height), (127, 127, 127))
    )
