"""Prints are read by tesseract itself, on rendered people laid out as VITON-HD who wear words."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.rendered_pairs import COUNT, inside_mask, name, true_photo, worn, write_viton
from tests.test_pairs import small
from triptych.verbs.evaluate import EvaluateConfig, evaluate

pytestmark = pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
WORDS = ("LAGOON", "LEMON", "TOKYO", "ATLAS")
OTHER = ("GARDEN", "MELON", "PARIS", "RIVER")


def printed(photo: Image.Image, number: int, word: str) -> Image.Image:
    """The photo of a person with a word in white on the chest."""
    inside = np.asarray(worn(number).mask) > 127
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    width, place = columns[-1] - columns[0], (columns.mean(), rows[0] + 0.35 * (rows[-1] - rows[0]))
    image = photo.copy()
    font = ImageFont.load_default(0.15 * width)
    ImageDraw.Draw(image).text(place, word, "white", font, "mm", stroke_width=0)
    return image


def test_a_wrong_print_fails_in_its_measure_and_in_no_other(tmp_path: Path) -> None:
    viton = write_viton(tmp_path / "set")
    photos = [printed(true_photo(viton, number), number, word) for number, word in enumerate(WORDS)]
    for number, photo in enumerate(photos):
        photo.save(viton / "test" / "image" / f"{name(number)}.jpg", quality=95, subsampling=0)
    for folder in ("perfect", "wrong", "missing"):
        (tmp_path / folder).mkdir()
    for number in range(COUNT):
        true, plain = true_photo(viton, number), worn(number).image
        made = {"perfect": true, "missing": inside_mask(viton, number, plain)}
        made["wrong"] = inside_mask(viton, number, printed(plain, number, OTHER[number]))
        for folder, picture in made.items():
            picture.save(tmp_path / folder / f"{name(number)}.png")
    config = EvaluateConfig(
        pairs=str(viton),
        made=[f"{folder}={tmp_path / folder}" for folder in ("perfect", "wrong", "missing")],
        protocol=small(tmp_path / "protocol.yaml"),
        allow_small=True,
        out=tmp_path / "out",
    )
    evaluate(config).finish()
    with (tmp_path / "out" / "pairs-items.csv").open() as file:
        rows = list(csv.DictReader(file))
    # without its print a garment also has fewer edges
    allowed = {"perfect": {""}, "wrong": {"text"}, "missing": {"text", "sharpness text"}}
    assert len(rows) == 3 * COUNT
    assert all(row["fails"] in allowed[row["made"]] for row in rows), rows
    report = json.loads((tmp_path / "out" / "pairs.json").read_text())
    figures = {
        folder: {row["measure"]: row for row in one["paired"]["figures"]}
        for folder, one in report["made"].items()
    }
    assert figures["perfect"]["text"]["value"] == 1 and figures["perfect"]["text"]["n"] == COUNT
    assert figures["wrong"]["text"]["value"] < 0.6 and figures["missing"]["text"]["value"] == 0
    assert "tesseract" in json.dumps(report)
