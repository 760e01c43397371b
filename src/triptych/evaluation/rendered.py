"""Measure how well garments are carried over, in the rendered world, where the right answer is known.

Items are held out: their garments and people are in no LoRA's training set (``world.HELD_OUT``). Captions do
not describe the look of the garment, so the worn panel can only get it from the product photos. Every share
has its 95 % interval and is reported beside the ceiling: the judge's result for the true pictures after the
autoencoder's round trip.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from scipy import ndimage

from triptych.pictures.panels import PanelLayout, concatenate, split
from triptych.pocket.oracle import judge, shown
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import Rendered, render
from triptych.pocket.world import Garment, Scene, sample_garment, sample_printed, sample_scene
from triptych.sampling.canvas import decoded, encoded
from triptych.sampling.generate import generate_triptych
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.tasks.tryoff import TRY_OFF
from triptych.tasks.tryon import TRY_ON
from triptych.vision.parsing import Parser
from triptych.vton.dress import TryOnResult, try_on
from triptych.vton.region import region
from triptych.vton.request import Person

SCALE = 4
"""Scale of a shop's photos: four times the size of a pocket panel."""
BATCH = 24
FRONT, BACK, WORN = range(3)
"""The panels of a triptych."""
LOOK = ("type", "colour", "pattern")
"""Attributes carried over from the product photos; the caption names neither colour nor pattern."""
NAMED = ("person", "hair", "hairstyle", "background")
"""Attributes for text control, which the caption names for the worn panel."""


class Item:
    """A held-out garment with its true panels, and captions without its colour and pattern: `prompt` of the
    whole triptych, `sentence` of the worn panel alone.
    """

    def __init__(self, garment: Garment, scenes: tuple[Scene, Scene, Scene], seed: int) -> None:
        self.garment, self.scenes, self.seed = garment, scenes, seed
        self.front, self.back, self.worn = (self.view(n).image for n in range(3))
        caption = triptych_caption(garment, scenes, named=False)
        self.prompt, self.sentence = caption.text, caption.panels[2]

    def view(self, panel: int, garment: Garment | None = None) -> Rendered:
        """One panel's picture and garment mask. With `garment`, the same photo with another garment."""
        return render(garment or self.garment, self.scenes[panel], self.seed + panel, SCALE)

    def other(self) -> Garment:
        """The garment that the person wears before the try-on: the same type in another colour."""
        rng = random.Random(f"before {self.seed}")
        drawn = iter(lambda: sample_garment(rng, type=self.garment.type), None)
        return next(garment for garment in drawn if garment.colour != self.garment.colour)


def prompt_of(item: Item, describes_panels: bool) -> str:
    """The caption that a model is given: of the triptych, or if it never learned such captions, of the worn
    panel.
    """
    return item.prompt if describes_panels else item.sentence


def pointing_prompt(item: Item) -> str:
    """The words for a person and a garment that are references: the person follows the product photos."""
    return f"the person of picture 3 wearing the {item.garment.type} of picture 1"


def held_out_items(count: int, seed: int = 0, *, back_prints: bool = False) -> list[Item]:
    """Items of held-out garments on held-out people. With `back_prints`, only printed garments, on people
    seen from behind.
    """
    rng = random.Random(f"held out {seed}")
    items = []
    for _ in range(count):
        garment, (front, back, worn) = sample_triptych(rng, held_out=True)
        if back_prints:
            garment, worn = (
                sample_printed(rng, held_out=True),
                sample_scene(rng, "worn", held_out=True, facing="behind"),
            )
        items.append(Item(garment, (front, back, worn), rng.getrandbits(30)))
    return items


@dataclass(frozen=True)
class Share:
    """A share of `n` trials and its 95 % interval (Wilson 1927, as in Brown, Cai and DasGupta 2001,
    eq. 4).
    """

    hits: int
    n: int

    @property
    def share(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.96, self.n, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def as_json(self) -> dict[str, float | int]:
        low, high = self.interval
        return {"share": round(self.share, 4), "low": round(low, 4), "high": round(high, 4), "n": self.n}


def verdicts(
    panels: Sequence[Image.Image], items: Sequence[Item], panel: int = WORN
) -> dict[str, list[bool]]:
    """Per attribute, whether each panel is right. `both`: colour and pattern; `print`: the right print, or
    none if there should be none; `person`: whether there is a person exactly if there should be one. panel:
    which one of the triptych they are.
    """
    seen = judge(panels, [item.garment.type for item in items])
    untold = judge(panels)
    truth = [shown(item.garment, item.scenes[panel]) for item in items]
    hits = {
        name: [getattr(judged, name) == true[name] for judged, true in zip(seen, truth, strict=True)]
        for name in ("colour", "pattern", "print")
    }
    hits["type"] = [judged.type == true["type"] for judged, true in zip(untold, truth, strict=True)]
    hits["both"] = [a and b for a, b in zip(hits["colour"], hits["pattern"], strict=True)]
    hits["person"] = [judged.person == (panel == WORN) for judged in untold]
    for name in NAMED[1:]:
        hits[name] = [getattr(judged, name) == true[name] for judged, true in zip(untold, truth, strict=True)]
    return hits


def product_verdicts(
    fronts: Sequence[Image.Image], backs: Sequence[Image.Image], items: Sequence[Item]
) -> dict[str, list[bool]]:
    """Per attribute, whether front and back panels are right: `front colour`, `back pattern` …; and whether
    the garment is there alone, without a person: `front alone`, `back alone`.
    """
    hits: dict[str, list[bool]] = {}
    for name, panels, panel in (("front", fronts, FRONT), ("back", backs, BACK)):
        found = verdicts(panels, items, panel)
        hits |= {f"{name} {attribute}": found[attribute] for attribute in (*LOOK, "both")}
        hits[f"{name} alone"] = found["person"]
    return hits


def summary_of(hits: Mapping[str, list[bool]]) -> dict[str, Any]:
    """Shares with intervals by attribute, and, if worn panels are judged, `named`: all attributes that the
    caption names for them, pooled.
    """
    pooled = [hit for name in NAMED for hit in hits.get(name, [])]
    wanted = {**hits, "named": pooled} if pooled else hits
    shares = {name: Share(sum(values), len(values)) for name, values in wanted.items()}
    return {name: share.as_json() for name, share in shares.items()}


def colour_distances(panels: Sequence[Image.Image], items: Sequence[Item], panel: int = WORN) -> list[float]:
    """Distance (ΔE*ab, CIE 1976) between the generated and the true mean colour of the garment region, by
    item.

    The region is the true garment's mask. It is exact in mode 2 (try-on), where the pose is given. In mode 1
    the model chooses the pose, and the mask is only near the garment.
    """
    distances = []
    for made, item in zip(panels, items, strict=True):
        truth = item.view(panel)
        inside = np.asarray(truth.mask.resize(made.size, Image.Resampling.BOX)) > 127
        found, true = (lab(image.convert("RGB").resize(made.size))[inside] for image in (made, truth.image))
        distances.append(float(np.linalg.norm(found.mean(0) - true.mean(0))))
    return distances


def mean_distance(distances: Sequence[float]) -> float:
    """The mean of `colour_distances`, with two decimals."""
    return round(float(np.mean(distances)), 2)


_TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def lab(image: Image.Image) -> np.ndarray:
    """CIE L*a*b* of a picture, (H, W, 3): L in 0..100, a and b in -128..127."""
    lab = np.asarray(ImageCms.applyTransform(image, _TO_LAB))
    return np.stack([lab[..., 0] / 2.55, lab[..., 1].view(np.int8), lab[..., 2].view(np.int8)], -1)


def round_trips(model: OpenedModel, items: Sequence[Item]) -> list[tuple[Image.Image, ...]]:
    """The true front, back and worn panels after the autoencoder, encoded and decoded as the model's
    triptychs are: the judge's ceiling.
    """
    layout = layout_of(model)
    panels: list[tuple[Image.Image, ...]] = []
    for start in range(0, len(items), BATCH):
        canvases = [
            concatenate([item.front, item.back, item.worn], layout) for item in items[start : start + BATCH]
        ]
        with torch.no_grad():
            mean, _ = encoded(model, canvases, layout)
            panels += [tuple(split(canvas, layout)) for canvas in decoded(model, mean, layout)]
    return panels


def layout_of(model: OpenedModel) -> PanelLayout:
    settings = model.backbone.settings
    return TRY_ON.layout(settings.panel_width, settings.panel_height)


def worn_panels(
    model: OpenedModel,
    sampling: Sampling,
    items: Sequence[Item],
    seed: int,
    on_batch: Callable[[], object] = lambda: None,
) -> list[Image.Image]:
    """Mode 1: the worn panel of each item, generated beside its two product photos from the
    silent caption.
    """
    layout, panels = layout_of(model), []
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        products = [{"front": item.front, "back": item.back} for item in batch]
        seeds = [seed + start + n for n in range(len(batch))]
        prompts = [prompt_of(item, model.describes_panels) for item in batch]
        canvases = generate_triptych(model, prompts, layout, seeds, sampling, products)
        panels += [split(canvas, layout)[2] for canvas in canvases]
        on_batch()
    return panels


def product_panels(
    model: OpenedModel, sampling: Sampling, items: Sequence[Item], seed: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Try-off: front and back of each item, generated beside the photo of the person who wears it, from the
    silent caption. The LoRA is one of the task try-off.
    """
    layout = TRY_OFF.on(layout_of(model)) if model.lora is None else TRY_OFF.trained(model.layout())
    seeds = [seed + n for n in range(len(items))]
    given = [{"worn": item.worn} for item in items]
    canvases = generate_triptych(model, [item.prompt for item in items], layout, seeds, sampling, given)
    fronts, backs, _ = zip(*(split(canvas, layout) for canvas in canvases), strict=True)
    return list(fronts), list(backs)


@dataclass(frozen=True)
class Dressed:
    """Results of mode 2: pictures, the change outside the feathered polygon (0 is exact), and by picture:

    seams: mean absolute difference from the true photo in a band around the polygon's edge, in 0..255; 0 for
    a perfect try-on. left: share of the old garment's pixels that lie outside, and stay. sharpness,
    differences: see `sharpness_of` and `difference_inside`; without pictures in which nothing was repainted.
    outside: largest difference of any channel there, in 0..255.
    """

    panels: list[Image.Image]
    outside: int
    seams: list[float]
    left: list[float]
    sharpness: list[float]
    differences: list[float]


def together(parts: Sequence[Dressed]) -> dict[str, float]:
    """The measures of mode 2 over all parts: the largest `outside`, the median sharpness, the other means."""
    if not parts:
        return {}
    return {
        "outside": max(part.outside for part in parts),
        "seam": round(fmean(seam for part in parts for seam in part.seams), 2),
        "left": round(fmean(left for part in parts for left in part.left), 4),
        "sharpness": round(median([one for part in parts for one in part.sharpness] or [0.0]), 3),
        "difference": round(fmean([one for part in parts for one in part.differences] or [0.0]), 2),
    }


def dressed(
    model: OpenedModel,
    sampling: Sampling,
    items: Sequence[Item],
    seed: int,
    feather: int = 4,
    parser: Parser | None = None,
    *,
    mask_free: bool = False,
    refine: float = 0.0,
) -> Dressed:
    """Mode 2: each person, wearing another garment of the same type, re-dressed within a generous polygon;
    with a parser, within the region that it proposes; mask-free, where the model changed something. refine:
    see `try_on`.
    """
    layout, results, outside, seams, left = layout_of(model), [], 0, [], []
    for number, item in enumerate(items):
        before = item.view(2, item.other())
        prompt = prompt_of(item, model.describes_panels)
        person = Person(before.image, None, prompt, [seed + number])
        if mask_free:
            everything = np.ones(np.asarray(before.mask).shape, np.float32)
            person = replace(person, mask=everything, prompt=pointing_prompt(item))
        elif parser is None:
            polygon = outline(np.asarray(before.mask) > 127, margin=6)
            person = replace(person, polygons=[polygon])
        else:
            area, holes = region(parser.parts(before.image), item.garment.type)
            person = replace(person, mask=area & ~holes)
        ((result,),) = try_on(
            model,
            item.front,
            item.back,
            [person],
            layout,
            sampling,
            feather,
            mask_free=mask_free,
            refine=refine,
        )
        results.append(result)
        moved = np.abs(np.asarray(result.image).astype(int) - np.asarray(before.image))
        outside = max(outside, int(moved[result.mask == 0].max(initial=0)))
        edge = (result.mask > 0) & (result.mask < 1)
        seams.append(float(np.abs(np.asarray(result.image).astype(int) - np.asarray(item.worn))[edge].mean()))
        left.append(float((result.mask == 0)[np.asarray(before.mask) > 127].mean()))
    pairs = zip(results, items, strict=True)
    measured = [(result, item) for result, item in pairs if (result.mask == 1).any()]
    return Dressed(
        [result.image for result in results],
        outside,
        seams,
        left,
        [sharpness_of(result, item.worn) for result, item in measured],
        [difference_inside(result, item.worn) for result, item in measured],
    )


def sharpness_of(result: TryOnResult, truth: Image.Image) -> float:
    """The variance of the Laplacian inside the polygon (Pech-Pacheco et al. 2000), of the made picture by
    that of the true one: 1 is as sharp as the truth, less is blurred, more is noise or a sharper pattern.
    """
    inside = result.mask == 1
    made, true = (
        ndimage.laplace(np.asarray(image.convert("L"), float))[inside].var()
        for image in (result.image, truth)
    )
    return float(made / true)


def difference_inside(result: TryOnResult, truth: Image.Image) -> float:
    """Mean absolute difference from the true photo inside the polygon, in 0..255."""
    made, true = (np.asarray(image.convert("RGB"), int) for image in (result.image, truth))
    return float(np.abs(made - true)[result.mask == 1].mean())


def outline(mask: np.ndarray, margin: int) -> list[tuple[float, float]]:
    """A generous polygon around an (H, W) bool mask: its left and right edges every few rows, moved out by
    `margin` pixels.
    """
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)
    left, right = [], []
    for row in [*range(top, bottom, 12), bottom]:
        band = np.flatnonzero(mask[max(0, row - 12) : row + 12].any(axis=0))
        if len(band):
            left.append((float(max(0, band[0] - margin)), float(row)))
            right.append((float(min(width, band[-1] + 1 + margin)), float(row)))
    return [*left, *reversed(right)]


def sheet(columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """A contact sheet: one row per item."""
    rows = list(zip(*columns, strict=True))
    width, height = 96, 144
    page = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            page.paste(
                picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST),
                (x * width, y * height),
            )
    return page
