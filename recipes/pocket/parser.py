"""Stage `parser`: a tiny SegFormer from scratch that says which part of a person every pixel shows.

`SegformerForSemanticSegmentation` as transformers has it, but for a first stride of 2: a panel is small. It
learns from renders alone, whose label maps are exact, seen at several sizes, moved, mirrored and compressed.
"""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from recipes.pocket.state import Log, autocast, train_steps
from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH
from triptych.pocket.parts import PART, PARTS
from triptych.pocket.render import render
from triptych.pocket.world import sample_garment, sample_printed, sample_scene

STEPS, BATCH, LEARNING_RATE, SEED, POOL, HELD_OUT = 1200, 8, 3e-3, 71, 1500, 120
SCALE = 2
"""The network sees panels at twice their native size and answers at the native one."""
SIZE = PANEL_WIDTH * SCALE, PANEL_HEIGHT * SCALE
FLAT_SHARE = 0.06
"""Share of the pictures that show a garment and nobody."""
WEIGHTS = {"hand": 3.0, "neck": 2.0, "arm": 2.0}
"""Weights of small parts in the loss; all others count 1."""
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
---
# The triptych pocket parser

A tiny SegFormer trained from nothing on pictures that `triptych.pocket.render` drew. It names the parts of a
person in the pocket world (hair, face, arms, hands, each kind of clothes) and knows no photograph. Recipe:
`python -m recipes.pocket parser --work FOLDER`, in triptych's repository.
"""


def new_parser() -> SegformerForSemanticSegmentation:
    """Return the untrained network."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=(1, 1, 2, 1),
            sr_ratios=(8, 4, 2, 1),
            hidden_sizes=(16, 32, 64, 96),
            num_attention_heads=(1, 2, 4, 4),
            mlp_ratios=(2, 2, 2, 2),
            strides=(2, 2, 2, 2),
            decoder_hidden_size=32,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
            id2label=dict(enumerate(PARTS)),
            label2id=PART,
        )
    )


def processor() -> SegformerImageProcessorPil:
    """Return the image processor: pictures in [-1, 1], stretched to the network's size."""
    half = [0.5, 0.5, 0.5]
    return SegformerImageProcessorPil(
        size={"height": SIZE[1], "width": SIZE[0]},
        image_mean=half,
        image_std=half,
        do_reduce_labels=False,
    )


def draw(rng: random.Random, held_out: bool = False) -> tuple[Image.Image, Image.Image]:
    """Draw a picture of the network's size and its label map."""
    draw_garment = sample_printed if rng.random() < 0.15 else sample_garment
    view = rng.choice(("front", "back")) if rng.random() < FLAT_SHARE else "worn"
    garment, scene = draw_garment(rng, held_out=held_out), sample_scene(rng, view, held_out=held_out)
    drawn = render(garment, scene, rng.getrandbits(31), SCALE, labels=True)
    assert drawn.labels is not None
    return drawn.image, Image.fromarray(drawn.labels)


def augmented(picture: Image.Image, labels: Image.Image, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Another look at a picture: mirrored, moved, of another size, compressed, noisy."""
    if rng.random() < 0.5:
        picture, labels = (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in (picture, labels))
    if rng.random() < 0.6:
        zoom, stretch = rng.uniform(0.8, 1.4), rng.uniform(0.88, 1.14)
        width, height = SIZE[0] * zoom * stretch, SIZE[1] * zoom / stretch
        left, top = (
            (whole - part) * rng.uniform(0.2, 0.8) for whole, part in zip(SIZE, (width, height), strict=True)
        )
        box = (left, top, left + width, top + height)
        fill: Any = picture.getpixel((0, 0))
        extent, near, smooth = Image.Transform.EXTENT, Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        picture = picture.transform(SIZE, extent, box, smooth, fillcolor=fill)
        labels = labels.transform(SIZE, extent, box, near, fillcolor=PART["background"])
    if rng.random() < 0.4:  # a photo of the native size
        picture = picture.reduce(SCALE).resize(SIZE, Image.Resampling.BILINEAR)
    if rng.random() < 0.4:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(40, 95))
        picture = Image.open(file)
    values = np.asarray(picture).astype(np.float32) + rng.uniform(-4, 4)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(size=values.shape)
        values += rng.uniform(0, 6) * noise.astype(np.float32)
    return values.clip(0, 255), np.asarray(labels)


def _batch(looks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] and labels (B, H, W)."""
    pictures, labels = (np.stack(list(values)) for values in zip(*looks, strict=True))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(labels).long()


def logits_of(model: SegformerForSemanticSegmentation, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, parts, H, W), at the size of the pictures."""
    with autocast():
        logits = model(pixel_values=images_BCHW).logits
    return F.interpolate(logits.float(), images_BCHW.shape[-2:], mode="bilinear", align_corners=False)


def train_parser(folder: Path, steps: int = STEPS, pool: int = POOL, held_out: int = HELD_OUT) -> None:
    """Train, or go on training; writes `folder/parser`, an ordinary transformers folder in float16."""
    if (folder / "parser").exists():
        return
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    drawn = [draw(rng) for _ in range(pool)]
    model = new_parser()
    weights = torch.tensor([WEIGHTS.get(name, 1.0) for name in PARTS])

    def rate(step: int) -> float:
        return LEARNING_RATE * min(1, (step + 1) / 60) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)

    def loss_of(rng: random.Random, noise: torch.Generator) -> tuple[str, torch.Tensor]:
        images, labels = _batch([augmented(*rng.choice(drawn), rng) for _ in range(BATCH)])
        return "parts", F.cross_entropy(logits_of(model, images), labels, weights)

    average = train_steps(
        folder, "parser", model, steps, SEED, rate, loss_of, weight_decay=0.01, log_every=25, save_every=50
    )
    model.load_state_dict(average, strict=False)
    measured = measure_parser(model.eval(), held_out)
    Log(folder, "parser").write(**measured)
    part = folder / "parser.part"
    model.half().save_pretrained(part)
    processor().save_pretrained(part)
    (part / "README.md").write_text(CARD, encoding="utf-8")
    (part / "triptych.json").write_text(json.dumps({"knows": "rendered"}, indent=2) + "\n", encoding="utf-8")
    (part / "model.safetensors").chmod(0o644)
    part.rename(folder / "parser")


@torch.no_grad()
def measure_parser(model: SegformerForSemanticSegmentation, count: int) -> dict[str, float]:
    """Return the intersection over union of each part, pooled over held-out garments and people."""
    rng = random.Random(SEED + 1)
    both, either = np.zeros(len(PARTS)), np.zeros(len(PARTS))
    for _ in range(count // 8):
        drawn = [draw(rng, held_out=True) for _ in range(8)]
        images, labels = _batch([(np.asarray(p).astype(np.float32), np.asarray(y)) for p, y in drawn])
        found = logits_of(model, images).argmax(1)
        for part in range(len(PARTS)):
            one, other = found == part, labels == part
            both[part] += (one & other).sum().item()
            either[part] += (one | other).sum().item()
    return {name: round(float(a / max(b, 1)), 4) for name, a, b in zip(PARTS, both, either, strict=True)}
