"""Outfits of the pocket world: people who wear two garments, perhaps a hat and a bag.

They came after the shipped models: none of these has seen a person in two garments of the world, a hat or a
bag. Nothing here draws from the generators of `world` and `render`, so that their pictures stay as they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from triptych.pocket.canvas import Canvas, Point
from triptych.pocket.parts import ACCESSORIES, PART_OF
from triptych.pocket.prompts import look_phrase, panel_caption
from triptych.pocket.render import background_of, render
from triptych.pocket.wardrobe import BOTTOMS, TOPS, draw_accessory, draw_outfit
from triptych.pocket.world import BACKGROUNDS, COLOURS, NONE, RGB, Garment, Scene, sample_garment

ROLES = ("top", "bottom", "bag")
"""What has a product photo, by its role in the task `outfit`, in the task's order. The task has none for a
hat.
"""
SUMMARY = "pictures of one <Brand> outfit"


@dataclass(frozen=True)
class Outfit:
    """What a person wears: two garments, and the colours of a hat and of a bag, each perhaps `NONE`."""

    top: Garment
    bottom: Garment
    hat: str = NONE
    bag: str = NONE

    def __post_init__(self) -> None:
        """Refuse an outfit that the renderer cannot draw."""
        assert self.top.type in TOPS and self.bottom.type in BOTTOMS, self
        assert {self.hat, self.bag} <= {*COLOURS, NONE}, self

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its product photos."""
        return tuple(role for role in ROLES if role != "bag" or self.bag != NONE)

    @property
    def parts(self) -> dict[str, int]:
        """The value of each piece in the label map."""
        found = {"top": PART_OF[self.top.type], "bottom": PART_OF[self.bottom.type]}
        return found | {name: part for name, part in ACCESSORIES.items() if getattr(self, name) != NONE}


@dataclass(frozen=True)
class RenderedOutfit:
    """A picture, the mask of each piece in it (white = the piece, antialiased), and the part that most of
    each pixel shows, (H, W) uint8 as in `parts`.
    """

    image: Image.Image
    masks: dict[str, Image.Image]
    labels: np.ndarray


def sample_outfit(
    rng: random.Random, *, held_out: bool = False, hat_share: float = 0.3, bag_share: float = 0.5
) -> Outfit:
    """Draw an outfit whose garments differ in colour and pattern and have no print, as only their fronts are
    shown; hat and bag have colours of their own. held_out: both garments are held out, or neither.
    """
    top = sample_garment(rng, held_out=held_out, print_share=0.0, type=rng.choice(TOPS))
    while True:
        bottom = sample_garment(rng, held_out=held_out, print_share=0.0, type=rng.choice(BOTTOMS))
        if bottom.colour != top.colour and bottom.pattern != top.pattern:
            break
    hat, bag = rng.sample([colour for colour in COLOURS if colour not in (top.colour, bottom.colour)], 2)
    has_hat, has_bag = rng.random() < hat_share, rng.random() < bag_share
    return Outfit(top, bottom, hat if has_hat else NONE, bag if has_bag else NONE)


def render_outfit(outfit: Outfit, scene: Scene, seed: int, scale: int = 1) -> RenderedOutfit:
    """Draw a person in an outfit, 48 x 72 pixels times ``scale``. A pure function; the person is the one that
    `render` draws of the same scene and seed, and another outfit of the same types changes pieces only.
    """
    assert scene.worn, scene
    rng = random.Random(seed)
    canvas = Canvas(background_of(scene, rng), scale, labels=True)
    offset: Point = (rng.uniform(0, 20), rng.uniform(0, 20))
    draw_outfit(canvas, outfit.top, outfit.bottom, outfit.hat, outfit.bag, scene, rng, offset)
    image, _ = canvas.finish()
    samples, labels = np.asarray(canvas.labels), canvas.label_map()
    assert labels is not None
    masks = {
        name: Image.fromarray((samples == part).astype(np.uint8) * 255).reduce(4)
        for name, part in outfit.parts.items()
    }
    return RenderedOutfit(image, masks, labels)


def render_product(outfit: Outfit, role: str, scene: Scene, seed: int, scale: int = 1) -> Image.Image:
    """Draw the product photo of one piece, lying flat, seen from the front; a role of `ROLES`, or `hat`."""
    if role in ("top", "bottom"):
        return render(getattr(outfit, role), scene, seed, scale).image
    rng = random.Random(seed)
    canvas = Canvas(background_of(scene, rng), scale)
    background: RGB = canvas.image.getpixel((0, 0))  # type: ignore[assignment]
    draw_accessory(canvas, role, getattr(outfit, role), rng, background)
    return canvas.finish()[0]


def product_scene(rng: random.Random) -> Scene:
    """Draw how a product photo is taken."""
    return Scene("front", rng.choice(tuple(BACKGROUNDS)))


def worn_caption(outfit: Outfit, scene: Scene) -> str:
    """Describe the person, silent about all looks: `a person with long dark hair wearing the t-shirt and the
    skirt, sky background`.
    """
    said = panel_caption(outfit.top, scene, named=False, article="the").text
    garments = f"the {outfit.top.type} and the {outfit.bottom.type}"
    bag = " with the bag" if outfit.bag != NONE else ""
    return said.replace(f"the {outfit.top.type}", garments + bag, 1)


def outfit_caption(outfit: Outfit, scene: Scene, named: bool = False) -> str:
    """Describe the panels of an outfit in the house's form: its product photos, in the order of
    `Outfit.roles`, and the person. ``scene`` is the person's. ``named``: the products' looks are said, which
    an outfit with a bag leaves no room for among the pocket models' tokens.
    """
    bag = f"a {outfit.bag} bag" if named else "a bag"
    panels = [
        bag if role == "bag" else f"the front of a {look_phrase(getattr(outfit, role), named)}"
        for role in outfit.roles
    ]
    panels.append(worn_caption(outfit, scene))
    return SUMMARY + "".join(f" <IMAGE {number}> {text}" for number, text in enumerate(panels, 1))
