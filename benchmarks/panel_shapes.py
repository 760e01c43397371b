"""How much of a triptych's panels shows what it is about, by the shape of the panels: of a product panel the
tokens that show the garment, of the worn panel those that show the photo at all.

    triptych clean …                                    # writes work/catalogue
    python benchmarks/panel_shapes.py --work work

All shapes have about as many tokens. "the best for each item" is what panels of several shapes in one data
set would give; all panels of a triptych have one shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.data.catalogue import PHOTOS, read_photos
from triptych.errors import InputError
from triptych.pictures.images import load_image
from triptych.pictures.panels import place
from triptych.vision.garment import LOOKED_AT, garment_mask, trimmed

STRIDE = 16  # pixels of a token
SHAPES = {
    "1:2": (464, 960),
    "9:16": (496, 896),
    "2:3": (544, 816),
    "3:4": (576, 768),
    "4:5": (608, 752),
    "1:1": (672, 656),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--trim", type=float, default=0.05)
    args = parser.parse_args()
    rows = read_photos(args.work / "catalogue" / PHOTOS)
    items: dict[str, dict[str, list[Image.Image]]] = {}
    for row in rows:
        if row.item and row.label in ("human", "garment"):
            photo = load_image(Path(row.path), longest=LOOKED_AT)
            items.setdefault(row.item, {"human": [], "garment": []})[row.label].append(photo)
    items = {item: photos for item, photos in items.items() if photos["human"] and photos["garment"]}
    print(
        f"{len(items)} items\n\n| panels | garment, whole photos | garment, cut | worn |\n|---|---|---|---|"
    )
    shown = {
        name: [shares(photos, size, args.trim) for photos in items.values()] for name, size in SHAPES.items()
    }
    for name, of_items in shown.items():
        print(row_of(f"{name} ({SHAPES[name][0]} x {SHAPES[name][1]})", np.mean(of_items, axis=0)))
    for column, what in ((0, "whole"), (1, "cut")):
        # two panels of three show products
        best = [
            max((of_item[number] for of_item in shown.values()), key=lambda one: 2 * one[column] + one[2])
            for number in range(len(items))
        ]
        print(row_of(f"the best for each item, {what}", np.mean(best, axis=0)))


def shares(photos: Mapping[str, list[Image.Image]], size: tuple[int, int], trim: float) -> tuple[float, ...]:
    """Of an item: the tokens of product panels that show the garment, of photos as they are and cut; and the
    part of worn panels that is photo. Each in [0, 1].
    """
    whole = np.mean([garment_tokens(photo, size, None) for photo in photos["garment"]])
    cut = np.mean([garment_tokens(photo, size, trim) for photo in photos["garment"]])
    worn = [place(photo.size, *size) for photo in photos["human"]]
    return (
        float(whole),
        float(cut),
        float(np.mean([at.width * at.height / (size[0] * size[1]) for at in worn])),
    )


def garment_tokens(photo: Image.Image, size: tuple[int, int], trim: float | None) -> float:
    try:
        mask = Image.fromarray(garment_mask(photo))
    except InputError:  # it cannot be told from its background: all of the photo counts
        mask = Image.new("1", photo.size, 1)
    if trim is not None:
        # the photo's border stays plain, so that the mask is cut where the photo is
        mask = trimmed(Image.merge("RGB", [mask.convert("L")] * 3), trim).convert("1")
    at = place(mask.size, *size)
    panel = Image.new("1", size)
    panel.paste(mask.resize((at.width, at.height)), (at.left, at.top))
    cells = np.asarray(panel).reshape(size[1] // STRIDE, STRIDE, size[0] // STRIDE, STRIDE)
    return float(cells.any((1, 3)).mean())


def row_of(name: str, found: np.ndarray) -> str:
    return f"| {name} | " + " | ".join(f"{share:.0%}" for share in found) + " |"


if __name__ == "__main__":
    main()
