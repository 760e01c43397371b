"""Measure how well whole outfits are carried over, in the rendered world: people who are given other clothes,
in one run of all pieces or in one run for each piece.

Outfits are of held-out garments on held-out people. Prompts are silent about all looks. The judge was trained
on people in one garment of the world, so it is shown one piece at a time, see `alone`; its ceiling on true
pictures is reported beside every share.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from triptych.evaluation.rendered import BATCH, SCALE, Share, lab, outline
from triptych.pictures.panels import concatenate, split
from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH
from triptych.pocket.oracle import HEADS, as_images, load_oracle
from triptych.pocket.outfits import (
    Outfit,
    RenderedOutfit,
    outfit_caption,
    product_scene,
    render_outfit,
    render_product,
    sample_outfit,
    worn_caption,
)
from triptych.pocket.prompts import panel_caption, triptych_caption
from triptych.pocket.render import render
from triptych.pocket.world import COLOURS, NONE, OTHER_CLOTHES, RGB, TYPES, Scene, sample_scene
from triptych.sampling.canvas import decoded, encoded
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.tasks.outfit import OUTFIT
from triptych.vton.dress import TryOnResult, try_on
from triptych.vton.request import Person

GARMENTS = ("top", "bottom")
MARGIN, FEATHER = 6, 4
"""Pixels of the photo: what a polygon leaves around a piece, and its soft edge."""


class OutfitItem:
    """A held-out outfit on a held-out person, with its product photos and the true photo."""

    def __init__(self, outfit: Outfit, scene: Scene, seed: int, products: dict[str, Scene]) -> None:
        self.outfit, self.scene, self.seed = outfit, scene, seed
        self.photos = {
            role: render_product(outfit, role, shown, seed + 1 + number, SCALE)
            for number, (role, shown) in enumerate(products.items())
        }
        self.truth = self.worn(outfit)
        self.before = self.worn(self.other())
        """The person before the try-on."""

    def worn(self, outfit: Outfit, scale: int = SCALE) -> RenderedOutfit:
        """The same photo of the same person in an outfit."""
        return render_outfit(outfit, self.scene, self.seed, scale)

    def other(self) -> Outfit:
        """What the person wears before: the same types in other colours, a bag of another colour, and the
        same hat.
        """
        rng, own = random.Random(f"before {self.seed}"), self.outfit
        while True:
            drawn = sample_outfit(rng, bag_share=1.0)
            top, bottom = (replace(getattr(drawn, role), type=getattr(own, role).type) for role in GARMENTS)
            outfit = Outfit(top, bottom, hat=own.hat, bag=NONE if own.bag == NONE else drawn.bag)
            pairs = [(getattr(outfit, role).colour, getattr(own, role).colour) for role in GARMENTS]
            if all(old != new for old, new in pairs) and (outfit.bag == NONE or outfit.bag != own.bag):
                return outfit

    def prompt(self, describes_panels: bool) -> str:
        """The words for a run of all pieces: of all panels, or of the person alone."""
        words = outfit_caption if describes_panels else worn_caption
        return words(self.outfit, self.scene)

    def prompt_of_one(self, role: str, describes_panels: bool) -> str:
        """The words for a run of one garment, as for try-on."""
        garment = getattr(self.outfit, role)
        if not describes_panels:
            return panel_caption(garment, self.scene, named=False, article="the").text
        flat = [Scene(view, self.scene.background) for view in ("front", "back")]
        return triptych_caption(garment, (*flat, self.scene), named=False).text


def held_out_outfits(count: int, seed: int = 0, *, bags: bool = False) -> list[OutfitItem]:
    """Items of held-out outfits on held-out people, three in ten with a hat, which stays; all or none with a
    bag, which is exchanged.
    """
    rng = random.Random(f"held out outfits {seed}")
    items = []
    for _ in range(count):
        outfit = sample_outfit(rng, held_out=True, bag_share=float(bags))
        scene = sample_scene(rng, "worn", held_out=True)
        products = {role: product_scene(rng) for role in outfit.roles}
        items.append(OutfitItem(outfit, scene, rng.getrandbits(30), products))
    return items


def alone(picture: Image.Image, item: OutfitItem, role: str, other: str) -> Image.Image:
    """One garment of a picture on the same person in plain other clothes, as the judge knows people: what the
    picture shows inside the true garment's mask. What the other pieces hide of the garment is filled by
    reflection, column by column.
    """
    size, garment = (PANEL_WIDTH, PANEL_HEIGHT), getattr(item.outfit, role)
    small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
    seen = item.worn(item.outfit, 1).masks[role]
    base = render(garment, replace(item.scene, other=other), item.seed)
    whole = np.asarray(base.mask) > 0  # no pixel of the true garment is left
    pixels = _reflected(np.asarray(small), np.asarray(seen) > 127, whole, OTHER_CLOTHES[other])
    shown = base.image.copy()
    shown.paste(Image.fromarray(pixels), (0, 0), Image.fromarray(whole))
    shown.paste(small, (0, 0), seen)
    return shown


def _reflected(pixels: np.ndarray, seen: np.ndarray, whole: np.ndarray, other: RGB) -> np.ndarray:
    """Pixels (H, W, 3) whose columns go on by reflection where a garment is hidden; columns without any of it
    are `other`.

    seen, whole: bool (H, W), where the garment is seen, and where it is.
    """
    made = pixels.copy()
    made[whole & ~seen] = other
    for column in np.flatnonzero((whole & ~seen).any(0) & seen.any(0)):
        rows = np.flatnonzero(seen[:, column])
        first, last = rows[0] + 1, rows[-1] - 1  # not the edges
        if last - first < 2:
            continue
        hidden = np.flatnonzero(whole[:, column] & ~seen[:, column])
        length = last - first
        for row in hidden[(hidden < first) | (hidden > last)]:
            away = min(first - row if row < first else row - last, length)
            made[row, column] = pixels[first + away if row < first else last - away, column]
    return made


def outfit_verdicts(pictures: Sequence[Image.Image], items: Sequence[OutfitItem]) -> dict[str, list[bool]]:
    """Whether colour and pattern of each garment are right (`top colour`, `bottom pattern` …), both of a
    garment (`top both`), all four (`outfit`), and the colour of a bag, if there is one.
    """
    hits: dict[str, list[bool]] = {}
    network = load_oracle()
    for role in GARMENTS:
        types = torch.tensor([TYPES.index(getattr(item.outfit, role).type) for item in items])
        sure: dict[str, torch.Tensor] = {}
        for other in OTHER_CLOTHES:
            shown = [alone(one, item, role, other) for one, item in zip(pictures, items, strict=True)]
            with torch.no_grad():
                answers = network(as_images(shown), types)
            for name in ("colour", "pattern"):
                sure[name] = sure.get(name, 0) + answers[name].log_softmax(1)
        for name, values in sure.items():
            best = [HEADS[name][index] for index in values.argmax(1).tolist()]
            truth = [getattr(getattr(item.outfit, role), name) for item in items]
            hits[f"{role} {name}"] = [a == b for a, b in zip(best, truth, strict=True)]
        both = zip(hits[f"{role} colour"], hits[f"{role} pattern"], strict=True)
        hits[f"{role} both"] = [colour and pattern for colour, pattern in both]
    hits["outfit"] = [a and b for a, b in zip(hits["top both"], hits["bottom both"], strict=True)]
    if all(item.outfit.bag != NONE for item in items):
        named = [_bag_colour(one, item) for one, item in zip(pictures, items, strict=True)]
        hits["bag"] = [name == item.outfit.bag for name, item in zip(named, items, strict=True)]
    return hits


def _bag_colour(picture: Image.Image, item: OutfitItem) -> str:
    """The colour of the world nearest (ΔE*ab) to the median colour inside the true bag's mask."""
    inside = np.asarray(item.truth.masks["bag"]) > 200
    median = np.median(np.asarray(picture.convert("RGB").resize(item.truth.image.size))[inside], axis=0)
    palette = np.array([[*COLOURS.values(), tuple(median.round())]], np.uint8)
    colours = lab(Image.fromarray(palette))[0]
    return list(COLOURS)[int(np.linalg.norm(colours[:-1] - colours[-1], axis=1).argmin())]


@dataclass(frozen=True)
class Clothed:
    """A person in the new outfit. outside: largest change of a channel beyond the polygons, of 255; 0 is
    exact. seam: mean absolute difference from the true photo in the soft edges of all polygons together, of
    255. seconds: of the processor.
    """

    image: Image.Image
    outside: int
    seam: float
    seconds: float


def clothed(
    model: OpenedModel, sampling: Sampling, items: Sequence[OutfitItem], seed: int, *, in_a_row: bool = False
) -> Iterator[Clothed]:
    """Give each person the whole outfit in one run; or, `in_a_row`, the top in a run of try-on and then the
    bottom in another one on its result. Polygons are drawn around the pieces of the photo before.
    """
    for number, item in enumerate(items):
        areas = {role: outline(np.asarray(item.before.masks[role]) > 127, MARGIN) for role in item.photos}
        started, results = time.process_time(), list[TryOnResult]()
        for roles in [[role] for role in areas] if in_a_row else [list(areas)]:
            photo = results[-1].image if results else item.before.image
            prompt = item.prompt(model.describes_panels)
            if in_a_row:
                prompt = item.prompt_of_one(roles[0], model.describes_panels)
            person = Person(photo, [areas[role] for role in roles], prompt, [seed + number])
            garments = {role: item.photos[role] for role in roles}
            front, more = (garments[roles[0]], {}) if in_a_row else (None, garments)
            ((result,),) = try_on(model, front, None, [person], None, sampling, FEATHER, garments=more)
            results.append(result)
        seconds = time.process_time() - started
        yield _measured(item, results, seconds)


def _measured(item: OutfitItem, results: Sequence[TryOnResult], seconds: float) -> Clothed:
    image, mask = results[-1].image, np.max([result.mask for result in results], axis=0)
    shown, before, truth = (
        np.asarray(one).astype(int) for one in (image, item.before.image, item.truth.image)
    )
    outside, edge = np.abs(shown - before)[mask == 0].max(initial=0), (mask > 0) & (mask < 1)
    return Clothed(image, int(outside), float(np.abs(shown - truth)[edge].mean()), seconds)


def round_trips(model: OpenedModel, items: Sequence[OutfitItem]) -> list[Image.Image]:
    """The true photos after the autoencoder: the judge's ceiling."""
    settings = model.backbone.settings
    layout = OUTFIT.layout(settings.panel_width, settings.panel_height).only(OUTFIT.made)
    pictures: list[Image.Image] = []
    for start in range(0, len(items), BATCH):
        canvases = [concatenate([item.truth.image], layout) for item in items[start : start + BATCH]]
        with torch.no_grad():
            mean, _ = encoded(model, canvases, layout)
            pictures += [split(canvas, layout)[0] for canvas in decoded(model, mean, layout)]
    return pictures


def shares(hits: dict[str, list[bool]]) -> dict[str, dict[str, float | int]]:
    """The share of right answers by attribute, with its 95 % interval."""
    return {name: Share(sum(values), len(values)).as_json() for name, values in hits.items()}
