"""How fast `clean` looks at photos, beside a plain loop of Pillow and PyTorch that does the same work.

    python benchmarks/catalogue.py                      # drawn photos of 12 megapixels
    python benchmarks/catalogue.py --photos photos      # yours

Both hash each file, decode it upright, and compute the features of the classifier and the signature by which
copies are found. The loop decodes at full size and takes one photo at a time through the network. Processor
time of one thread; round by round the loop, then ours.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps

from triptych.pictures.copies import signature
from triptych.pictures.images import sha256_photo
from triptych.pictures.panels import fit
from triptych.pocket.prompts import sample_triptych
from triptych.pocket.render import render
from triptych.vision.feature_cache import FeatureCache, look_at
from triptych.vision.features import SIDE, load_extractor
from triptych.vision.lite0 import lite0

BATCH = 16  # as in `clean`


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as drawn:
        folder = args.photos or draw(Path(drawn), args.count)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        paths = paths[: args.count]
        network, extractor = lite0(), load_extractor("efficientnet-lite0")
        ways: dict[str, Callable[[Sequence[Path]], np.ndarray]] = {
            "loop": lambda some: plainly(some, network),
            "clean": lambda some: ours(some, extractor, Path(drawn)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        features = {name: way(paths[:4]) for name, way in ways.items()}  # warm, and the same features
        distance = np.abs(features["loop"] - features["clean"]).max() / np.abs(features["loop"]).max()
        for _ in range(args.rounds):
            for name, way in ways.items():
                begun = time.process_time()
                way(paths)
                seconds[name].append((time.process_time() - begun) / len(paths))
    ratio = median(a / b for a, b in zip(seconds["loop"], seconds["clean"], strict=True))
    size = Image.open(paths[0]).size if args.photos else (3000, 4500)
    print(f"{len(paths)} photos, the first of {size[0]} x {size[1]} px; features differ by {distance:.1%}")
    for name, each in seconds.items():
        print(f"{name:6} {1000 * median(each):7.1f} ms a photo, {1 / median(each):6.1f} photos a second")
    print(f"clean is {ratio:.1f} times as fast")


def draw(folder: Path, count: int) -> Path:
    rng = random.Random(0)
    for number in range(count):
        garment, scenes = sample_triptych(rng)
        image = render(garment, scenes[number % 3], rng.getrandbits(30), 4).image
        noise = np.random.default_rng(number).normal(0, 4, (4500, 3000, 1))
        large = np.asarray(image.resize((3000, 4500), Image.Resampling.BICUBIC), np.float32) + noise
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    return folder


def plainly(paths: Sequence[Path], network: torch.nn.Sequential) -> np.ndarray:
    found = []
    for path in paths:
        hashlib.sha256(path.read_bytes()).hexdigest()
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        signature(image)
        pixels = np.asarray(fit(image, SIDE, SIDE), np.float32).transpose(2, 0, 1)
        with torch.inference_mode():
            found.append(network[:-1](torch.from_numpy((pixels - 127.0) / 128.0)[None]).numpy()[0])
    vectors = np.stack(found)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ours(paths: Sequence[Path], extractor: object, folder: Path) -> np.ndarray:
    cache = FeatureCache(folder / "none.safetensors", extractor)  # type: ignore[arg-type]
    found = []
    for start in range(0, len(paths), BATCH):
        keys = {sha256_photo(path): path for path in paths[start : start + BATCH]}
        looked, _ = look_at(keys, extractor, cache)  # type: ignore[arg-type]
        found += [looked[key].vector for key in keys]
    return np.stack(found)


if __name__ == "__main__":
    main()
