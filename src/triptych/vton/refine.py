"""A second pass over the repainted area, at up to twice the resolution of the first: for logos and texture.

The first pass scales the polygon and its surroundings into one panel, so a large photo gets cloth with less
detail than it has itself. The second pass shows the result again in tiles of half the side lengths, adds a
little noise (SDEdit, Meng et al. 2021, arXiv 2108.01073), and samples with the same product photos and words.

Of what it makes only the detail is taken that the first pass could not show. What is coarser stays the first
pass's: a tile shows the model a part of a person, and what it makes of that may have another colour or even
another shape. (StableSR, Wang et al. 2023, arXiv 2305.07015, corrects the colours of upscaled pictures for a
like reason.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from scipy import ndimage

from triptych import flow, progress
from triptych.backbones.context import Reference
from triptych.pictures import masks
from triptych.pictures.panels import Box, PanelLayout
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import OnStep
from triptych.vton.fit import Fitting, TryOnResult, closer, on_photo
from triptych.vton.tiles import OVERLAP, tiles
from triptych.vton.worn import worn_panels


def refining(sampling: Sampling, strength: float) -> Sampling:
    """How the second pass is sampled. Guidance by a further run of the model decides what is shown, and that
    is decided; at little noise it only costs time (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    """
    guided = sampling.context_guidance_scale != 1.0  # the model was then fed 1
    fed = 1.0 if guided and sampling.guidance_scale is not None else sampling.guidance_scale
    return replace(
        sampling, strength=strength, guidance_scale=fed, true_cfg_scale=1.0, context_guidance_scale=1.0
    )


def refined(
    model: OpenedModel,
    fittings: Sequence[Fitting],
    results: Sequence[Sequence[TryOnResult]],
    layout: PanelLayout,
    sampling: Sampling,
    strength: float,
    references: tuple[Reference, ...] = (),
    on_step: OnStep | None = None,
) -> list[list[TryOnResult]]:
    """The results after a second pass inside their masks; those that gain nothing are returned as they are.

    As many tiles are sampled at once as there are results. The noise of a tile follows from seed and tile.

    Args:
        fittings, results: of the first pass; one result for each seed of a person.
        strength: share of noise that the second pass starts from, in (0, 1].
        references: those of the first pass.
    """
    unit = model.autoencoder.stride
    sampling = refining(sampling, strength)
    pairs = [(own, result) for own, made in zip(fittings, results, strict=True) for result in made]
    seeds = [seed for own in fittings for seed in own.person.seeds]
    firsts = [replace(own, mask=result.mask) for own, result in pairs]
    jobs = [(n, tile) for n, own in enumerate(firsts) for tile in tiles(own.mask, own.box, layout)]
    panels: list[Image.Image] = []
    shown: list[Fitting] = []
    with progress.within("refining"):
        for start in range(0, len(jobs), len(pairs)):
            part = jobs[start : start + len(pairs)]
            closest = [closer(firsts[n], pairs[n][1].image, tile, layout, unit) for n, tile in part]
            rows = [(row, _seed(seeds[n], tile)) for row, (n, tile) in enumerate(part)]
            panels += worn_panels(model, closest, rows, layout, sampling, references, on_step)
            shown += closest
    parts: list[list[tuple[Box, Image.Image]]] = [[] for _ in pairs]
    for (number, tile), own, panel in zip(jobs, shown, panels, strict=True):
        parts[number].append((tile, on_photo(own, panel, layout)))
    made = iter(
        result if not own else _detailed(first, result, _put_together(result.image, own), layout)
        for first, (_, result), own in zip(firsts, pairs, parts, strict=True)
    )
    return [[next(made) for _ in own] for own in results]


def _seed(seed: int, tile: Box) -> int:
    """Other noise than the first pass had: what the same noise has drawn is still in its picture."""
    return flow.generator_for("refine", seed, *tile).initial_seed()


def _put_together(image: Image.Image, parts: Sequence[tuple[Box, Image.Image]]) -> Image.Image:
    """The tiles, each blended into its neighbours, on `image`."""
    lefts, tops, rights, bottoms = zip(*(tile for tile, _ in parts), strict=True)
    left, top, *_ = area = Box(min(lefts), min(tops), max(rights), max(bottoms))
    made = np.asarray(image.crop(area)).copy()
    weights = np.zeros(made.shape[:2], np.float32)
    places = [
        np.s_[tile.top - top : tile.bottom - top, tile.left - left : tile.right - left] for tile, _ in parts
    ]
    ramps = [np.outer(_ramp(picture.height), _ramp(picture.width)) for _, picture in parts]
    for place, ramp in zip(places, ramps, strict=True):
        weights[place] += ramp
    for channel in range(3):  # one at a time: floats of a large photo take much memory
        total = np.zeros_like(weights)
        for place, ramp, (_, picture) in zip(places, ramps, parts, strict=True):
            total[place] += ramp * np.asarray(picture.getchannel(channel))
        there = weights > 0
        made[..., channel][there] = (total[there] / weights[there] + 0.5).astype(np.uint8)
    image = image.copy()
    image.paste(Image.fromarray(made), area[:2])
    return image


def _detailed(fitting: Fitting, result: TryOnResult, second: Image.Image, layout: PanelLayout) -> TryOnResult:
    """The first result with the detail of the second picture, inside the mask. Detail is what a Gaussian of
    half a pixel of the first pass's panel takes away.
    """
    box, area = fitting.box, masks.bounds(fitting.mask)
    pixel = max((box.right - box.left) / layout.width, (box.bottom - box.top) / layout.height)
    bands = []
    before = result.image.crop(area)
    for first, fine in zip(before.split(), second.crop(area).split(), strict=True):
        there = np.asarray(fine, np.float32)
        coarse = ndimage.gaussian_filter(np.asarray(first, np.float32) - there, pixel / 2, mode="nearest")
        bands.append(Image.fromarray(np.clip(there + coarse + 0.5, 0, 255).astype(np.uint8)))
    made = Image.merge("RGB", bands)
    mask = fitting.mask[area.top : area.bottom, area.left : area.right]
    image = result.image.copy()
    image.paste(masks.composite(before, made, mask), area[:2])
    return replace(result, image=image)


def _ramp(length: int) -> np.ndarray:
    """(length,) float32: the weight of a tile's pixels along one side, rising over the overlap from its edges
    to 1.
    """
    from_edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(1.0, from_edge / max(1.0, OVERLAP * length)).astype(np.float32)
