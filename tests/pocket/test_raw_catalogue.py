"""The raw catalogue is messy on purpose, and the truth about it is exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.pocket.raw_catalogue import RawCatalogue, write_raw_catalogue
from triptych.pocket.render import render
from triptych.pocket.world import Garment, Scene


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> RawCatalogue:
    return write_raw_catalogue(tmp_path_factory.mktemp("shop"), items=12, seed=3, labels=5)


def test_every_file_has_its_truth(catalogue: RawCatalogue) -> None:
    root = catalogue.truth.parent
    truth = json.loads(catalogue.truth.read_text())["files"]
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p != catalogue.truth}
    assert files == set(truth)
    assert len(list(catalogue.photos.iterdir())) == 12
    assert len(list((catalogue.labels / "human").iterdir())) == 5
    assert len(list((catalogue.labels / "garment").iterdir())) == 5


def test_the_truth_draws_the_photo_again(catalogue: RawCatalogue) -> None:
    root = catalogue.truth.parent
    for name, truth in json.loads(catalogue.truth.read_text())["files"].items():
        if truth["label"] == "unreadable":
            continue
        image = render(
            Garment(**truth["garment"]), Scene(**truth["scene"]), truth["seed"], truth["scale"]
        ).image
        with Image.open(root / name) as photo:
            assert photo.size == image.size
            difference = np.abs(np.asarray(photo.convert("RGB")).astype(int) - np.asarray(image)).mean()
        assert difference == 0 if name.endswith(".png") else difference < 8


def test_label_garments_are_not_for_sale(catalogue: RawCatalogue) -> None:
    truth = json.loads(catalogue.truth.read_text())["files"]
    of = {"photos": set(), "labels": set()}
    for name, one in truth.items():
        if "garment" in one:
            of[name.split("/")[0]].add(json.dumps(one["garment"], sort_keys=True))
    assert not of["photos"] & of["labels"]


def test_spoilt_files_and_a_duplicate(catalogue: RawCatalogue) -> None:
    root = catalogue.truth.parent
    truth = json.loads(catalogue.truth.read_text())["files"]
    spoilt = {one["spoilt"] for one in truth.values() if "spoilt" in one}
    assert spoilt == {"truncated", "text", "empty"}
    copies = [(name, one["duplicate_of"]) for name, one in truth.items() if "duplicate_of" in one]
    assert copies
    for name, original in copies:
        assert (root / name).read_bytes() == (root / original).read_bytes()


def test_the_same_seed_writes_the_same_bytes(catalogue: RawCatalogue, tmp_path: Path) -> None:
    again = write_raw_catalogue(tmp_path, items=12, seed=3, labels=5)
    assert again.truth.read_bytes() == catalogue.truth.read_bytes()
    for path in again.photos.rglob("*.*"):
        assert path.read_bytes() == (catalogue.photos / path.relative_to(again.photos)).read_bytes()
