"""The judge of the pocket world: says what one panel shows.

A small CNN trained on renders and on autoencoder round trips of renders (`recipes/pocket/judge.py`);
``oracle/oracle.json`` gives its accuracy on held-out pictures. It only measures and never takes part in
training. A prompt's colour and pattern are those of the garment, so the judge can be told which type to look
at (a person in a red skirt and a grey top has no single colour).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH
from triptych.pocket.world import (
    BACKGROUNDS,
    COLOURS,
    FACINGS,
    HAIRS,
    HAIRSTYLES,
    NONE,
    PATTERNS,
    PRINTS,
    TYPES,
    Garment,
    Scene,
)

FOLDER = Path(__file__).parent / "oracle"
HEADS: dict[str, tuple[str, ...]] = {
    "person": ("no", "yes"),
    "type": TYPES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "colour2": (*COLOURS, NONE),
    "print": (*PRINTS, NONE),
    "facing": (*FACINGS, NONE),
    "hair": (*HAIRS, NONE),
    "hairstyle": (*HAIRSTYLES, NONE),
    "background": tuple(BACKGROUNDS),
}
LOOK = ("colour", "pattern", "colour2")
"""The heads that need to know which type of garment to look at."""


@dataclass(frozen=True)
class Judgement:
    """The judge's verdict on one panel; ``confidence`` is the probability of the colour."""

    person: bool
    type: str
    colour: str
    pattern: str
    colour2: str
    print: str
    facing: str
    hair: str
    hairstyle: str
    background: str
    confidence: float


def shown(garment: Garment, scene: Scene) -> dict[str, str]:
    """Return the truth about a panel, one value of :data:`HEADS` per attribute; a print counts only if it is
    visible.
    """
    values = asdict(garment) | asdict(scene) | {"person": "yes" if scene.worn else "no"}
    if not garment.shows_print(scene):
        values["print"] = NONE
    return {name: values[name] for name in HEADS}


class OracleNetwork(torch.nn.Module):
    """Four convolutions and a head per attribute, 1M parameters."""

    def __init__(self) -> None:
        """Build the untrained network."""
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.convolutions = torch.nn.ModuleList([torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs])
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(b) for _, b in pairs])
        self.features = torch.nn.Linear(128 * 5 * 3, 256)
        self.type_embedding = torch.nn.Embedding(len(TYPES) + 1, 64)
        self.heads = torch.nn.ModuleList(
            [
                torch.nn.Sequential(
                    torch.nn.Linear(320, 128), torch.nn.ReLU(), torch.nn.Linear(128, len(values))
                )
                for values in HEADS.values()
            ]
        )

    def forward(self, images_BCHW: torch.Tensor, types: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits per head; images (B, 3, 72, 48) in [-1, 1], types (B,) as indices into ``TYPES``."""
        x = images_BCHW
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        x = F.relu(self.features(x.flatten(1)))
        untold = torch.full_like(types, len(TYPES))
        told = {name: self.type_embedding(types if name in LOOK else untold) for name in HEADS}
        return {
            name: head(torch.cat([x, told[name]], 1)) for name, head in zip(HEADS, self.heads, strict=True)
        }


@lru_cache(maxsize=1)
def load_oracle() -> OracleNetwork:
    """Return the shipped judge."""
    network = OracleNetwork()
    network.load_state_dict(
        {
            k: v.float() if v.is_floating_point() else v
            for k, v in load_file(FOLDER / "oracle.safetensors").items()
        }
    )
    return network.eval().requires_grad_(False)


def as_images(pictures: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """Return panels of any size as (B, 3, 72, 48) in [-1, 1]."""
    panels = []
    for picture in pictures:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
        image = image.convert("RGB")
        if image.size != (PANEL_WIDTH, PANEL_HEIGHT):
            image = image.resize((PANEL_WIDTH, PANEL_HEIGHT), Image.Resampling.BOX)
        panels.append(np.asarray(image))
    return torch.from_numpy(np.stack(panels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def judge(
    pictures: Sequence[Image.Image | np.ndarray],
    types: Sequence[str] | None = None,
    network: OracleNetwork | None = None,
) -> list[Judgement]:
    """Judge single panels; ``types`` names the garment to look at (by default the type that the
    judge sees).
    """
    network = network or load_oracle()
    images = as_images(pictures)
    with torch.no_grad():
        if types is None:
            none = torch.full((len(images),), len(TYPES))
            told = network(images, none)["type"].argmax(1)
        else:
            told = torch.tensor([TYPES.index(type_) for type_ in types])
        logits = network(images, told)
    best = {
        name: [HEADS[name][index] for index in values.argmax(1).tolist()] for name, values in logits.items()
    }
    sure = logits["colour"].softmax(1).amax(1).tolist()
    rows = [dict(zip(best, values, strict=True)) for values in zip(*best.values(), strict=True)]
    return [
        Judgement(**row | {"person": row["person"] == "yes", "confidence": p})
        for row, p in zip(rows, sure, strict=True)
    ]
