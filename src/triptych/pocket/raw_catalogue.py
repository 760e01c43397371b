"""Writes a shop's raw data: folders of product photos, as messy as in practice, and the truth about them.

    folder/photos/item01/ ...     shuffled, badly named photos: front, back, one to three wearers, rubbish
        folder/labels/human/          30 photos of people, as examples for the classifier
        folder/labels/garment/        30 photos of flat garments, as examples; all of other garments
        folder/truth.json             for every file: label, view, garment, scene and seed; outside the photos

Everything follows from the seed.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.pocket.render import render
from triptych.pocket.world import Garment, Scene, as_json, sample_garment, sample_scene

SCALES = (4, 4, 4, 5, 3)
HINTS = {
    "front": ("front", "f", "packshot-front", "1"),
    "back": ("back", "b", "packshot-back", "2"),
    "worn": ("model", "look", "onbody", "3"),
}


@dataclass(frozen=True)
class RawCatalogue:
    """The paths of all that was written."""

    photos: Path
    labels: Path
    truth: Path


class _Writer:
    """Writes photos and remembers the truth about them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.truth: dict[str, dict[str, Any]] = {}

    def bytes_of(self, garment: Garment, scene: Scene, seed: int, scale: int, png: bool) -> bytes:
        """Return one photo as JPEG or PNG."""
        image, buffer = render(garment, scene, seed, scale).image, io.BytesIO()
        if png:
            image.save(buffer, "PNG")
        else:
            image.save(
                buffer, "JPEG", quality=self.rng.choice((85, 90, 95)), subsampling=self.rng.choice((0, 2))
            )
        return buffer.getvalue()

    def write(self, path: Path, data: bytes, **truth: Any) -> None:
        """Write a file and its truth."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.truth[path.relative_to(self.folder).as_posix()] = truth

    def photo(self, directory: Path, name: str | None, garment: Garment, scene: Scene) -> tuple[Path, bytes]:
        """Draw and write a photo; without a name it gets a meaningless one."""
        rng = self.rng
        seed, scale, png = rng.getrandbits(31), rng.choice(SCALES), rng.random() < 0.3
        data = self.bytes_of(garment, scene, seed, scale, png)
        name = name or self.meaningless()
        path = directory / f"{name}{'.png' if png else rng.choice(('.jpg', '.jpg', '.jpeg', '.JPG'))}"
        self.write(
            path,
            data,
            label="human" if scene.worn else "garment",
            view=scene.view,
            garment=as_json(garment),
            scene=as_json(scene),
            seed=seed,
            scale=scale,
        )
        return path, data

    def meaningless(self) -> str:
        """Return a file name such as cameras and content systems give."""
        rng = self.rng
        return rng.choice(
            (
                f"IMG_{rng.randrange(1000, 9999)}",
                f"DSC{rng.randrange(10000, 99999):05d}",
                f"{rng.getrandbits(40):010x}",
                f"{rng.randrange(10**7, 10**8)}_{rng.randrange(1, 9)}",
            )
        )


def write_raw_catalogue(
    folder: Path,
    items: int = 40,
    seed: int = 0,
    *,
    labels: int = 30,
    missing: float = 0.08,
    spoilt: int = 4,
    duplicates: int = 1,
) -> RawCatalogue:
    """Write ``items`` folders of photos, two label folders and ``truth.json``; returns where they are.

    ``missing``: share of items without front, back or worn view. ``spoilt``: number of files that are no
    photos (truncated JPEG, text named .jpg, zero bytes). ``duplicates``: number of byte-identical copies
    under another name.
    """
    rng = random.Random(f"raw catalogue {seed}")
    writer = _Writer(folder, rng)
    photos, label_folder = folder / "photos", folder / "labels"
    garments = _different_garments(rng, items + 2 * labels)
    lacking = set(rng.sample(range(items), round(items * missing)))
    width = max(2, len(str(items)))
    good: list[tuple[Path, bytes]] = []
    for index, garment in enumerate(garments[:items]):
        directory = photos / f"item{index + 1:0{width}d}"
        views = ["front", "back", *["worn"] * rng.choice((1, 1, 2, 3))]
        if index in lacking:
            gone = rng.choice(("front", "back", "worn"))
            views = [view for view in views if view != gone]
        rng.shuffle(views)
        for view in views:
            name = f"{writer.meaningless()}_{rng.choice(HINTS[view])}" if rng.random() < 0.35 else None
            good.append(writer.photo(directory, name, garment, sample_scene(rng, view)))
    for path, data in rng.sample(good, duplicates):
        copy = path.with_name(f"{writer.meaningless()}_copy{path.suffix}")
        original = path.relative_to(folder).as_posix()
        writer.write(copy, data, **writer.truth[original], duplicate_of=original)
    for number in range(spoilt):
        path, data = rng.choice([one for one in good if one[0].suffix != ".png"])
        kind = ("truncated", "text", "empty")[number % 3]
        rubbish = {"truncated": data[: len(data) // 3], "text": b"see attached photo\n" * 20, "empty": b""}[
            kind
        ]
        writer.write(path.with_name(f"{writer.meaningless()}.jpg"), rubbish, label="unreadable", spoilt=kind)
    others = garments[items:]
    for name, chosen in (("human", others[:labels]), ("garment", others[labels:])):
        for garment in chosen:
            view = "worn" if name == "human" else rng.choice(("front", "back"))
            writer.photo(label_folder / name, None, garment, sample_scene(rng, view))
    truth = folder / "truth.json"
    truth.write_text(
        json.dumps({"seed": seed, "files": writer.truth}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    return RawCatalogue(photos, label_folder, truth)


def _different_garments(rng: random.Random, count: int) -> list[Garment]:
    """Draw garments without repetition until all 336 of the world are used."""
    drawn: dict[Garment, None] = {}
    for _ in range(count * 50):
        if len(drawn) == count:
            break
        drawn.setdefault(sample_garment(rng))
    garments = list(drawn)
    while len(garments) < count:
        garments.append(sample_garment(rng))
    return garments
