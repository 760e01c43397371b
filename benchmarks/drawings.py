"""How often a drawing is taken for a photograph, and a photograph for a drawing: `python
benchmarks/drawings.py --photos FOLDER`.

Drawings: the rendered world, all of it, as it is, as JPEG (once or twice), made larger or smaller, cropped to
between half and nearly all of each side; the files of a raw catalogue; and whatever lies in --drawings.
Photographs: each in --photos as it is, and --variants times spoilt likewise. Prints one line a kind: how
many, and how many were taken for the other.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from triptych.errors import InputError
from triptych.pictures.images import load_image
from triptych.pocket.drawings import is_drawing
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.pocket.render import render
from triptych.pocket.world import VIEWS, sample_garment, sample_scene

FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
QUALITIES = {"drawings": (60, 75, 85, 90, 95), "photos": (30, 50, 75, 85, 95)}
WAYS = ("png", "jpeg", "jpeg twice", "larger", "larger, jpeg", "smaller", "cropped", "cropped, jpeg")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder with photographs, at any depth")
    parser.add_argument(
        "--drawings",
        type=Path,
        nargs="*",
        default=[],
        help="folders with more pictures of the rendered world",
    )
    parser.add_argument("--count", type=int, default=3000, help="drawings to draw and spoil")
    parser.add_argument("--variants", type=int, default=8, help="spoilt versions of each photograph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="name every mistake")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    report(
        "drawings, drawn and spoilt", spoilt(drawn(rng, options.count), rng, "drawings"), True, options.show
    )
    with tempfile.TemporaryDirectory() as folder:
        write_raw_catalogue(Path(folder), items=100, seed=options.seed)
        report("drawings, a raw catalogue", opened([Path(folder)]), True, options.show)
    if options.drawings:
        report("drawings, of the folders", opened(options.drawings), True, options.show)
    if options.photos:
        photographs = list(opened([options.photos]))
        report("photographs as they are", iter(photographs), False, options.show)
        several = ((f"{name} {n}", image) for name, image in photographs for n in range(options.variants))
        report("photographs, spoilt", spoilt(several, rng, "photos"), False, options.show)


def report(kind: str, pictures: Iterator[tuple[str, Image.Image]], drawings: bool, show: bool) -> None:
    """Judge the pictures of one kind and print the share of mistakes."""
    mistakes, count = [], 0
    for name, image in pictures:
        count += 1
        if is_drawing(image) != drawings:
            mistakes.append(name)
    print(
        f"{kind}: {count}, taken for the other: {len(mistakes)} ({len(mistakes) / max(1, count):.2%})",
        flush=True,
    )
    for name in mistakes if show else ():
        print("   ", name)


def drawn(rng: random.Random, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Panels of the whole world, held-out garments and people and all poses among them."""
    for number in range(count):
        garment = sample_garment(rng, held_out=None)
        scene = sample_scene(rng, VIEWS[number % 3], held_out=None)
        scale = rng.choice((1, 2, 3, 4, 4, 5))
        yield (
            f"{scene.view} {garment.pattern} {scale}",
            render(garment, scene, rng.getrandbits(30), scale).image,
        )


def opened(folders: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures that can be opened below some folders."""
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        try:
            yield str(path), load_image(path)
        except InputError:
            continue


def spoilt(
    pictures: Iterator[tuple[str, Image.Image]], rng: random.Random, kind: str
) -> Iterator[tuple[str, Image.Image]]:
    """Each picture after one of the ways in which files change between two programs."""
    for name, image in pictures:
        way = rng.choice(WAYS)
        made = image
        if way.startswith("larger"):
            made = _scaled(made, rng.choice((1.5, 2, 3, 4)), rng)
        elif way == "smaller":
            made = _scaled(made, max(72 / max(made.size), rng.uniform(0.25, 1)), rng)
        elif way.startswith("cropped"):
            made = _cropped(made, rng)
        for _ in range(way.count("jpeg") + ("twice" in way)):
            made = _jpeg(made, rng.choice(QUALITIES[kind]), rng.choice((0, 2)))
        yield f"{name}, {way}", made


def _scaled(image: Image.Image, factor: float, rng: random.Random) -> Image.Image:
    return image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))), rng.choice(FILTERS)
    )


def _cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    width, height = (max(1, round(side * rng.uniform(0.5, 0.95))) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _jpeg(image: Image.Image, quality: int, subsampling: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(data).convert("RGB")


if __name__ == "__main__":
    main()
