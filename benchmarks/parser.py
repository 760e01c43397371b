"""Automatic masks on the rendered world, where the truth is known: held-out garments on held-out people.

    python benchmarks/parser.py                        # the embedded parser, 360 pairs of garments
    python benchmarks/parser.py --true-labels          # the same regions from exact label maps
    python benchmarks/parser.py --sheet sheet.png      # photo, labels and region of a dozen people

What is needed is what really changes: the old clothes that the new garment replaces, and the new garment
itself where it will be seen. By kind of the new garment: intersection over union of the region with that;
shares of the old clothes and of the new garment outside of it; shares of hands, face and hair inside.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.pictures import mask_checks
from triptych.pocket.parts import PARTS
from triptych.pocket.render import Rendered, render
from triptych.pocket.wardrobe import TOPS
from triptych.pocket.world import TYPES, Scene, sample_garment, sample_scene
from triptych.vision.parsing import open_parser
from triptych.vton.region import KINDS, Region, region

SCALE = 2
"""Photos are twice as large as a panel: what the embedded parser sees of any photo."""
GROUPS = {
    "upper": ("t-shirt", "sweater", "jacket"),
    "lower": ("skirt", "trousers"),
    "dress": ("dress",),
    "whole": TYPES,
}
"""The types that a general kind must have room for."""


@dataclass(frozen=True)
class Pair:
    """A person before and after, in exactly the same photo otherwise. kind: of the new garment. tucked: the
    person's top, if there is one, does not hang over what is below it.
    """

    kind: str
    before: Rendered
    after: Rendered
    tucked: bool


def pairs(kind: str, count: int, seed: int = 0) -> Iterator[Pair]:
    """People in any garment and the same ones in a garment of a kind."""
    rng = random.Random(f"{kind} {seed}")
    types = GROUPS.get(kind, (kind if kind in TYPES else "t-shirt",))
    for number in range(count):
        old = sample_garment(rng, held_out=True, type=TYPES[number % len(TYPES)])
        new = sample_garment(rng, held_out=True, type=rng.choice(types))
        scene: Scene = sample_scene(rng, "worn", held_out=True)
        own = rng.getrandbits(30)
        before, after = (render(one, scene, own, SCALE, labels=True) for one in (old, new))
        yield Pair(kind, before, after, old.type not in TOPS)


def score(pair: Pair, found: Region) -> dict[str, np.ndarray]:
    """Counts of pixels (part, whole) by what they tell."""
    before = pair.before.labels
    assert before is not None

    def are(names: Sequence[str]) -> np.ndarray:
        return np.isin(before, [PARTS.index(name) for name in names])

    inside = found.area & ~found.holes
    old, new = are(KINDS[pair.kind].goes), np.asarray(pair.after.mask) > 127
    if "top" not in KINDS[pair.kind].goes and not pair.tucked:
        new &= ~are(["top"])  # it hangs over the new garment
    needed = old | new
    stays = {name: are([name]) & ~needed for name in ("hand", "face", "hair")}
    counts = {
        "iou": ((inside & needed).sum(), (inside | needed).sum()),
        "old outside": ((old & ~inside).sum(), old.sum()),
        "new outside": ((new & ~inside).sum(), new.sum()),
        **{f"{name} inside": ((mask & inside).sum(), mask.sum()) for name, mask in stays.items()},
    }
    return {name: np.array(value, dtype=float) for name, value in counts.items()}


def main() -> None:
    """Print a table, by kind."""
    options = _options()
    parser = open_parser(options.parser) if not options.true_labels else None
    kinds = options.kinds or [*TYPES, "upper", "lower", "whole"]
    rows = {}
    for kind in kinds:
        scores = []
        for pair in pairs(kind, options.count, options.seed):
            labels = pair.before.labels if options.true_labels else parser.parts(pair.before.image)
            assert labels is not None
            scores.append(score(pair, region(labels, kind)))
        rows[kind] = {
            name: round(float(np.nanmean([one[name][0] / max(one[name][1], 1) for one in scores])), 4)
            for name in scores[0]
        }
        worst = max(one["old outside"][0] / max(one["old outside"][1], 1) for one in scores)
        rows[kind] |= {"n": len(scores), "worst old outside": round(float(worst), 4)}
        print(kind, json.dumps(rows[kind]), flush=True)
    if options.sheet:
        sheet(options, parser if not options.true_labels else None).save(options.sheet)


PALETTE = np.array(
    [
        *((222, 222, 222), (90, 60, 20), (255, 205, 165), (255, 160, 130), (255, 120, 60)),
        *((230, 0, 0), (150, 200, 90), (40, 40, 40), (0, 80, 255), (180, 0, 200)),
        *((0, 180, 180), (0, 120, 0), (255, 255, 0), (120, 120, 0), (0, 0, 0)),
    ],
    dtype=np.uint8,
)


def sheet(options: argparse.Namespace, parser: object, count: int = 12) -> Image.Image:
    """Photo, labels and region of a dozen people, side by side."""
    kinds = options.kinds or [*TYPES]
    page = Image.new("RGB", (48 * 3 * 3 * 4, 72 * 3 * -(-count // 4)), "white")
    for number in range(count):
        *_, pair = pairs(kinds[number % len(kinds)], number * 7 % len(TYPES) + 1, 100 + number)
        labels = parser.parts(pair.before.image) if parser else pair.before.labels  # type: ignore[attr-defined]
        found = region(labels, pair.kind)
        shown = mask_checks.preview(pair.before.image, (found.area & ~found.holes).astype(np.float32))
        cells = [pair.before.image, Image.fromarray(PALETTE[labels]), shown]
        for column, cell in enumerate(cells):
            at = ((number % 4 * 3 + column) * 144, number // 4 * 216)
            page.paste(cell.resize((144, 216), Image.Resampling.BILINEAR), at)
    return page


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parser", default="pocket", help="as `triptych tryon --parser`")
    parser.add_argument("--count", type=int, default=60, help="pairs a kind")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--true-labels", action="store_true", help="exact label maps instead of a parser's")
    parser.add_argument("--sheet", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
