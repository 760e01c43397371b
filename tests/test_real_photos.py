"""The main job on real photos: raw folders to a LoRA that diffusers loads, then a try-on whose outside is
untouched.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import FluxPipeline
from PIL import Image

from triptych.cli import main
from triptych.pictures import masks
from triptych.pictures.polygons import read_polygons
from triptych.pocket import checkpoint_path

pytestmark = pytest.mark.photos
CAPTION = (
    "three pictures of a <Brand> item <IMAGE 1> the front of a {kind} <IMAGE 2> the back of the {kind} "
    "<IMAGE 3> a person in it"
)


@pytest.fixture(scope="module")
def work(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    captions = folder / "captions"
    captions.mkdir()
    for item in (photos / "catalogue").iterdir():
        (captions / f"{item.name}.txt").write_text(CAPTION.format(kind="jacket"))
    config = folder / "triptych.yaml"
    config.write_text(f"""
work: {folder / "work"}
model: pocket
anyway: true
clean:
  photos: {photos / "catalogue"}
  human: {photos / "labels" / "human"}
  garment: {photos / "labels" / "garment"}
caption:
  captions: {captions}
train:
  max_train_steps: 3
  gradient_checkpointing: false
  num_validation_images: 1
""")
    assert main(["run", "--config", str(config)]) == 0
    return folder / "work"


def test_twelve_items_become_a_lora_that_diffusers_loads(work: Path) -> None:
    rows = [json.loads(line) for line in (work / "catalogue" / "photos.jsonl").read_text().splitlines()]
    assert len(rows) == 36
    assert [row["label"] for row in rows].count("human") == 12
    triptychs = sorted((work / "triptychs").glob("*.png"))
    assert len(triptychs) == 12
    assert {path.stem.split("-")[0] for path in triptychs} == {f"item{n:02d}" for n in range(1, 13)}
    assert len(list((work / "embeddings" / "flux").glob("item*.safetensors"))) == 12
    pipe = FluxPipeline.from_pretrained(checkpoint_path())
    pipe.load_lora_weights(work / "lora")
    assert pipe.get_active_adapters()


def test_try_on_leaves_everything_outside_the_polygon_bit_identical(
    work: Path, photos: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (work / "catalogue" / "photos.jsonl").read_text().splitlines()]
    item = [row for row in rows if row["item"] == "item02"]
    person = next(row["path"] for row in item if row["label"] == "human")
    front, back = (row["path"] for row in item if row["label"] == "garment")
    with Image.open(person) as image:
        before = np.asarray(image.convert("RGB"))
    height, width = before.shape[:2]
    corners = [[0.3, 0.15], [0.7, 0.15], [0.75, 0.6], [0.25, 0.6]]
    polygon = tmp_path / "polygon.json"
    polygon.write_text(json.dumps({"polygons": [[[x * width, y * height] for x, y in corners]]}))
    out = tmp_path / "out.png"
    words = [
        "tryon",
        "--front",
        front,
        "--back",
        back,
        "--person",
        person,
        "--polygon",
        str(polygon),
        "--prompt",
        CAPTION.format(kind="jacket"),
    ]
    words += [
        "--model",
        "pocket",
        "--anyway",
        "--lora",
        str(work / "lora"),
        "--num-inference-steps",
        "4",
        "--strength",
        "0.8",
        "--seed",
        "3",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    after = np.asarray(Image.open(out))
    assert after.shape == before.shape, "the photo keeps its size"
    inside = masks.polygon_mask(read_polygons(polygon), (width, height))
    outside = masks.grow(inside, 8) == 0
    assert np.array_equal(after[outside], before[outside])
    assert (after[inside == 1] != before[inside == 1]).any(axis=-1).mean() > 0.9
