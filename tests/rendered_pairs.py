"""A set of pairs of the rendered world laid out like VITON-HD, and made pictures with one planted fault each.

The truth is known: the same scene and seed with another garment is the same photo except for the garment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from triptych.pocket.render import Rendered, render
from triptych.pocket.world import Garment, Scene

SCALE = 4
GARMENTS = (
    Garment("t-shirt", "red"),
    Garment("sweater", "blue"),
    Garment("dress", "green"),
    Garment("t-shirt", "yellow"),
)
OTHER_COLOUR = {"red": "green", "blue": "purple", "green": "purple", "yellow": "pink"}
OTHER_PATTERN = {
    "red": ("check", "white"),
    "blue": ("check", "white"),
    "green": ("check", "white"),
    "yellow": ("dots", "black"),
}
SCENES = tuple(
    Scene("worn", background, skin, hair, style, pose, other, "front")
    for background, skin, hair, style, pose, other in (
        ("grey", "light", "dark", "long", "arms down", "navy"),
        ("beige", "tan", "blond", "short", "arms out", "grey"),
        ("mint", "dark", "dark", "long", "hand on hip", "cream"),
        ("sky", "light", "ginger", "short", "one arm up", "navy"),
    )
)
COUNT = len(GARMENTS)


def name(number: int) -> str:
    return f"{number:05d}_00"


def worn(number: int, garment: Garment | None = None) -> Rendered:
    return render(garment or GARMENTS[number], SCENES[number], 40 + number, SCALE)


def write_viton(root: Path) -> Path:
    """The set, with its official list of swaps: everybody in the next one's garment."""
    test = root / "test"
    for folder in ("image", "cloth", "cloth-mask", "image-parse-v3", "agnostic-mask"):
        (test / folder).mkdir(parents=True)
    for number, garment in enumerate(GARMENTS):
        own = name(number)
        photo, flat = worn(number), render(garment, Scene("front", "grey"), 90 + number, SCALE)
        photo.image.save(test / "image" / f"{own}.jpg", quality=95, subsampling=0)
        flat.image.save(test / "cloth" / f"{own}.jpg", quality=95, subsampling=0)
        flat.mask.save(test / "cloth-mask" / f"{own}.jpg", quality=95)
        inside = np.asarray(photo.mask) > 127
        Image.fromarray(inside.astype(np.uint8) * 5).save(test / "image-parse-v3" / f"{own}.png")
        Image.fromarray(mask_of(number)).save(test / "agnostic-mask" / f"{own}_mask.png")
    swaps = [f"{name(n)}.jpg {name((n + 1) % COUNT)}.jpg" for n in range(COUNT)]
    (root / "test_pairs.txt").write_text("\n".join(swaps) + "\n")
    return root


def mask_of(number: int) -> np.ndarray:
    """White around the garment, (H, W) uint8."""
    wide = ndimage.binary_dilation(np.asarray(worn(number).mask) > 0, iterations=3 * SCALE)
    return wide.astype(np.uint8) * 255


def true_photo(root: Path, number: int) -> Image.Image:
    with Image.open(root / "test" / "image" / f"{name(number)}.jpg") as image:
        return image.convert("RGB")


def inside_mask(root: Path, number: int, changed: Image.Image) -> Image.Image:
    """A photo with another picture inside its mask."""
    photo = true_photo(root, number)
    photo.paste(changed, (0, 0), Image.fromarray(mask_of(number)))
    return photo


def other_colour(root: Path, number: int) -> Image.Image:
    own = GARMENTS[number]
    return inside_mask(root, number, worn(number, replace(own, colour=OTHER_COLOUR[own.colour])).image)


def other_pattern(root: Path, number: int) -> Image.Image:
    own = GARMENTS[number]
    pattern, second = OTHER_PATTERN[own.colour]
    return inside_mask(root, number, worn(number, replace(own, pattern=pattern, colour2=second)).image)


def blurred(root: Path, number: int) -> Image.Image:
    """Blurred in the mask alone."""
    return inside_mask(root, number, true_photo(root, number).filter(ImageFilter.GaussianBlur(1)))


def moved_outside(root: Path, number: int) -> Image.Image:
    """The person has moved by two pixels, except within the mask."""
    photo = true_photo(root, number)
    moved = Image.fromarray(np.roll(np.asarray(photo), 2, axis=1))
    moved.paste(photo, (0, 0), Image.fromarray(mask_of(number)))
    return moved


FAULTS: dict[str, Callable[[Path, int], Image.Image]] = {
    "perfect": true_photo,
    "colour": other_colour,
    "pattern": other_pattern,
    "blur": blurred,
    "moved": moved_outside,
    "swapped": lambda root, number: true_photo(root, (number + 1) % COUNT),
}


def write_made(root: Path, folder: Path, fault: str) -> Path:
    """The pictures of a try-on with one fault, named as most programs do, for the person."""
    folder.mkdir(parents=True)
    for number in range(COUNT):
        FAULTS[fault](root, number).save(folder / f"{name(number)}.png")
    return folder
