"""Stage `bank`: the latents the transformer is trained on, encoded once, and their channels' statistics.

Boards are those of the first pocket, encoded as one wide picture. Every other panel is encoded alone, as
references are: it serves as a single picture, as a target and as a reference. Nothing in the bank is held
out, and no set shows one garment in two views. `klein_boards.jsonl` and `klein_sets.jsonl` list everything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recipes.pocket.bank import draw_entry
from recipes.pocket.klein.codec import KleinCodec, converted_autoencoder
from recipes.pocket.klein.sets import PictureSet, reshaped, sample_look, sample_quad
from recipes.pocket.state import Log, load_tensors, save_tensors
from triptych.pocket.prompts import Panel
from triptych.pocket.world import Garment, Scene, as_json

COUNTS = {"boards": 8000, "quad": 4000, "look": 2500}
RESHAPED = 0.35
"""Share of the sets whose panels are also encoded cropped and padded."""
SEED, CHUNK = 17, 12
SAMPLERS: dict[str, Callable[[random.Random], PictureSet]] = {"quad": sample_quad, "look": sample_look}
SHAPES = ("whole", "cropped", "padded")


def draw_set(kind: str, index: int) -> PictureSet:
    """Draw one set of the bank."""
    number = SEED * 10**7 + list(SAMPLERS).index(kind) * 10**6 + index
    return SAMPLERS[kind](random.Random(number))


def make_part(folder: Path, part: str, counts: dict[str, int] | None = None) -> None:
    """Render and encode `boards`, `quad` or `look`; the latents are not yet normalised."""
    path = folder / f"klein_{part}.safetensors"
    if path.exists():
        return
    count = (counts or COUNTS)[part]
    codec, log = KleinCodec(converted_autoencoder()), Log(folder, "bank")
    latents: dict[str, list[torch.Tensor]] = {shape: [] for shape in SHAPES}
    lines = []
    for start in range(0, count, CHUNK):
        numbers = range(start, min(count, start + CHUNK))
        if part == "boards":
            drawn = [draw_entry(index, False) for index in numbers]
            latents["whole"].append(codec.encode(np.stack([picture for _, _, picture in drawn])).half())
            lines += [_as_line(kind, panels) for kind, panels, _ in drawn]
        else:
            sets = [draw_set(part, index) for index in numbers]
            panels = [panel for one in sets for panel in one.panels]
            pictures = [picture for one in sets for picture in one.pictures()]
            lines += [_as_line(one.kind, one.panels, one.seeds) for one in sets]
            for shape in SHAPES if start < RESHAPED * count else SHAPES[:1]:
                shaped = [reshaped(*pair, shape) for pair in zip(pictures, panels, strict=True)]
                latents[shape].append(codec.encode(np.stack(shaped)).half())
        if start % (CHUNK * 50) == 0:
            log.write(part=part, done=start)
    (folder / f"klein_{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_tensors({shape: torch.cat(parts) for shape, parts in latents.items() if parts}, path)


def make_bank(folder: Path, counts: dict[str, int] | None = None) -> None:
    """Make all parts, measure the channels, and write the autoencoder `folder/vae` with its statistics."""
    for part in counts or COUNTS:
        make_part(folder, part, counts)
    if (folder / "vae").exists():
        return
    total, squares, count = torch.zeros(32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64), 0
    for part in COUNTS:
        values = load_tensors(folder / f"klein_{part}.safetensors")[0]["whole"]
        for chunk in values.split(1000):
            total += chunk.double().sum((0, 2, 3))
            squares += chunk.double().square().sum((0, 2, 3))
        count += values.numel() // values.shape[1]
    model = converted_autoencoder()
    mean = total / count
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_(squares / count - mean**2)
    model.save_pretrained(folder / "vae.part")
    (folder / "vae.part").rename(folder / "vae")


def _as_line(kind: str, panels: list[Panel] | tuple[Panel, ...], seeds: tuple[int, ...] = ()) -> str:
    return json.dumps(
        {"kind": kind, "panels": [[as_json(g), as_json(s)] for g, s in panels], "seeds": list(seeds)}
    )


class KleinBank:
    """The bank in memory, normalised: `latents[part][shape]` (N, 32, H, W) in float16."""

    def __init__(self, folder: Path) -> None:
        """Read the bank of a build folder."""
        codec = KleinCodec.trained(folder)
        self.latents: dict[str, dict[str, torch.Tensor]] = {}
        self.boards: list[tuple[str, list[Panel]]] = []
        self.sets: dict[str, list[PictureSet]] = {"quad": [], "look": []}
        for part in COUNTS:
            raw, _ = load_tensors(folder / f"klein_{part}.safetensors")
            self.latents[part] = {
                shape: torch.cat([((c.float() - codec.mean) / codec.std).half() for c in values.split(1000)])
                for shape, values in raw.items()
            }
            for line in (folder / f"klein_{part}.jsonl").read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                panels = [(Garment(**garment), Scene(**scene)) for garment, scene in entry["panels"]]
                if part == "boards":
                    self.boards.append((entry["kind"], panels))
                else:
                    self.sets[part].append(PictureSet(part, tuple(panels), tuple(entry["seeds"])))

    def reshaped_sets(self) -> dict[str, list[PictureSet]]:
        """Return the sets whose panels exist in every shape."""
        return {kind: sets[: len(self.latents[kind]["cropped"]) // 4] for kind, sets in self.sets.items()}

    def latent(self, place: tuple[str, int, int], shape: str = "whole") -> torch.Tensor:
        """Return the latents of one picture, (32, H, W)."""
        kind, number, index = place
        return self.latents[kind][shape][4 * number + index]
