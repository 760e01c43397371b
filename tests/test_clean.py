"""clean on drawn pictures: labels, caches, rejected photos, flags, overrides."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from triptych.data import catalogue_sheet
from triptych.data.catalogue import Photo, read_photos
from triptych.errors import InputError, ModelError
from triptych.pictures.copies import signature
from triptych.pictures.images import load_image
from triptych.pictures.quality import shared_colours, sharpness
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.tasks.tryon import TRY_ON
from triptych.verbs import clean as module
from triptych.verbs.clean import CleanConfig, clean
from triptych.vision import features
from triptych.vision.features import Extractor


def draw(path: Path, human: bool, seed: int) -> None:
    random = np.random.default_rng([seed, human])
    picture = Image.new("RGB", (96, 128), tuple(int(v) for v in random.integers(200, 255, 3)))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((28, 50, 68, 110), fill=tuple(int(v) for v in random.integers(60, 110, 3)))
    if human:
        pen.ellipse((33, 8, 63, 48), fill=(224, 172, 140))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


class Counting:
    """A real feature function of the pictures: colours of their nine fields against the corner's; counts what
    it is asked.
    """

    def __init__(self, name: str = "fields") -> None:
        self.seen = 0
        self.extractor = Extractor(name, name, 27, self.embed)

    def embed(self, images: list[Image.Image]) -> np.ndarray:
        self.seen += len(images)
        fields = [np.asarray(image.resize((3, 3), Image.Resampling.BOX), np.float64) for image in images]
        return np.stack([(field - field[0, 0]).ravel() / 128 for field in fields])


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(features, "load_extractor", lambda name: counting.extractor)
    return counting


@pytest.fixture
def shop(tmp_path: Path) -> CleanConfig:
    """Four items of two garments and a human, and five examples of each."""
    for number in range(5):
        draw(tmp_path / f"human/{number}.png", True, 100 + number)
        draw(tmp_path / f"garment/{number}.png", False, 100 + number)
    for number in range(4):
        draw(tmp_path / f"photos/item{number}/worn.png", True, number)
        draw(tmp_path / f"photos/item{number}/front.png", False, 10 + number)
        draw(tmp_path / f"photos/item{number}/back.png", False, 20 + number)
    return CleanConfig(
        photos=tmp_path / "photos",
        human=tmp_path / "human",
        garment=tmp_path / "garment",
        work=tmp_path / "work",
        small_side=0,  # the pictures are small, and their garments have random colours
        min_shared_colours=0,
    )


def labels(config: CleanConfig) -> dict[str, str]:
    rows = read_photos(config.catalogue_folder / "photos.jsonl")
    return {Path(row.path).relative_to(config.photos or "").as_posix(): row.label for row in rows}


def test_labels_every_photo(shop: CleanConfig, counting: Counting) -> None:
    run = clean(shop)
    assert len(run) == 12
    assert counting.seen == 0  # the work is done while iterating
    events = list(run)
    assert [event.status for event in events] == ["done"] * 12
    assert [event.note for event in events[:3]] == ["garment", "garment", "human"]
    rows = read_photos(shop.catalogue_folder / "photos.jsonl")
    assert all(row.label == ("human" if row.path.endswith("worn.png") else "garment") for row in rows)
    assert all((row.score > 0.5) == (row.label == "human") and len(row.sha256) == 64 for row in rows)
    assert [row.item for row in rows] == [f"item{number // 3}" for number in range(12)]
    summary = run.summary
    assert [summary[key] for key in ("photos", "human", "garment", "unsure", "rejected")] == [12, 4, 8, 0, 0]
    assert summary["examples"] == {"human": 5, "garment": 5}
    json.dumps(summary)
    assert Image.open(shop.catalogue_folder / "contact_sheet.png").width == 8 * 144


def test_second_run_computes_only_what_is_new(shop: CleanConfig, counting: Counting, tmp_path: Path) -> None:
    clean(shop).finish()
    files = {path: path.read_bytes() for path in shop.catalogue_folder.iterdir() if path.is_file()}
    assert counting.seen == 22
    assert [event.status for event in clean(shop)] == ["kept"] * 12
    assert counting.seen == 22
    assert {path: path.read_bytes() for path in files} == files
    draw(tmp_path / "photos/item9/new.png", True, 77)
    assert [event.id for event in clean(shop) if event.status == "done"] == ["item9/new.png"]
    assert counting.seen == 23
    other = Counting("other features")
    features.load_extractor = lambda name: other.extractor
    clean(shop).finish()
    assert other.seen == 23


def test_stopped_run_keeps_its_features(
    shop: CleanConfig, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    events = iter(clean(shop))
    next(events)
    events.close()
    assert not (shop.catalogue_folder / "photos.jsonl").exists()
    assert counting.seen == 10 + 3
    clean(shop).finish()
    assert counting.seen == 22


def test_damaged_cache_costs_only_time(shop: CleanConfig, counting: Counting) -> None:
    clean(shop).finish()
    (shop.catalogue_folder / "features.safetensors").write_bytes(b"\x10" * 100)
    clean(shop).finish()
    assert counting.seen == 44


def test_bad_files_are_rejected_with_reasons(shop: CleanConfig, counting: Counting, tmp_path: Path) -> None:
    item = tmp_path / "photos/item1"
    (item / "copy.png").write_bytes((item / "front.png").read_bytes())
    (tmp_path / "photos/item2/same.png").write_bytes(
        (item / "front.png").read_bytes()
    )  # another item: no duplicate
    (item / "cut.png").write_bytes((item / "back.png").read_bytes()[:150])
    (item / "notes.txt").write_text("hello")
    (item / "empty.jpg").touch()
    Image.new("RGB", (200, 200), "white").save(item / "blank.png")
    Image.effect_noise((20, 90), 50).save(item / "small.png")
    (item / "away.png").symlink_to(tmp_path / "human/1.png")
    os.mkfifo(item / "pipe.png")
    draw(tmp_path / "photos/loose.png", True, 5)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "photos").rglob("*")}
    run = clean(shop)
    events = {event.id: event for event in run}
    rows = read_photos(shop.catalogue_folder / "photos.jsonl")
    assert len(rows) == 12 + 10
    assert {Path(row.path).name: row.reason for row in rows if row.label == "rejected"} == {
        "front.png": "duplicate of copy.png",
        "cut.png": "truncated or damaged",
        "notes.txt": "text: not a photo",
        "empty.jpg": "the file is empty",
        "blank.png": "blank: one colour all over",
        "small.png": "too small: 20×90 px",
        "away.png": "link that leaves the photo folder",
        "pipe.png": "not a regular file",
        "loose.png": "not in an item folder",
    }
    assert labels(shop)["item2/same.png"] == "garment"
    assert run.summary["rejected"] == 9
    assert sum(run.summary["reasons"].values()) == 9
    assert run.summary["reasons"]["duplicate"] == 1
    assert events["item1/cut.png"].status == "rejected"
    assert events["item1/cut.png"].note == "truncated or damaged"
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "photos").rglob("*")} == before


def test_overrides_win(
    shop: CleanConfig, counting: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop.catalogue_folder.mkdir(parents=True)
    (shop.catalogue_folder / "overrides.txt").write_text(
        "item0/front.png human\nitem0/back.png back\nitem1/worn.png rejected\nitem7/x.png human\n"
    )
    summary = clean(shop).finish()
    assert "item7/x.png" in caplog.text
    listing = (shop.catalogue_folder / "contact_sheet.txt").read_text().splitlines()
    assert [line.split("\t")[1] for line in listing[1:4]] == [
        "item0/back.png",
        "item0/front.png",
        "item0/worn.png",
    ]
    assert labels(shop) | {
        "item0/front.png": "human",
        "item0/back.png": "garment",
        "item1/worn.png": "rejected",
    } == labels(shop)
    assert summary["overridden"] == 3
    assert summary["overrides_without_photo"] == ["item7/x.png"]
    assert summary["items_without_human"] == ["item1"]
    (tmp_path / "mine.txt").write_text("item0/front.png cat")
    with pytest.raises(InputError, match="line 1"):
        clean(shop.model_copy(update={"overrides": tmp_path / "mine.txt"}))
    with pytest.raises(InputError, match="cannot be read"):
        clean(shop.model_copy(update={"overrides": tmp_path / "nowhere.txt"}))


def test_a_photo_that_is_an_example_has_its_label(
    shop: CleanConfig, counting: Counting, tmp_path: Path
) -> None:
    draw(tmp_path / "garment/odd.png", True, 3)  # the garment folder says so, whatever it looks like
    summary = clean(shop).finish()
    assert labels(shop)["item3/worn.png"] == "garment"
    assert str(tmp_path / "garment/odd.png") in summary["examples_doubtful"]


def test_mistakes_are_told_at_the_call(shop: CleanConfig, tmp_path: Path) -> None:
    def fails(what: str, **changes: object) -> None:
        with pytest.raises(InputError, match=what) as caught:
            clean(shop.model_copy(update=changes))
        assert caught.value.hint

    (tmp_path / "nothing").mkdir()
    (tmp_path / "void").mkdir()
    for number in range(2):
        (tmp_path / "void" / f"{number}.jpg").write_text("no image")
        draw(tmp_path / f"few/{number}.png", True, number)
    for option in ("photos", "human", "garment"):
        fails(f"--{option}", **{option: None})
        fails(f"--{option}", **{option: tmp_path / "missing"})
    fails("no files", photos=tmp_path / "nothing")
    for option in ("human", "garment"):
        shutil.copytree(tmp_path / option, tmp_path / "only" / option)
    inside = {option: tmp_path / "only" / option for option in ("human", "garment")}
    fails("besides .*human, .*garment, which are left out", photos=tmp_path / "only", **inside)
    fails("no photos", human=tmp_path / "void")
    fails("only 2 photos", garment=tmp_path / "few")
    fails("same folder", garment=tmp_path / "human")
    assert not shop.work.exists()


def test_unknown_features(shop: CleanConfig) -> None:
    for name in ("resnet", "transformers:", "transformers:no/such-model"):
        with pytest.raises(ModelError):
            clean(shop.model_copy(update={"features": name}))


def test_sheet_of_a_large_catalogue_shows_the_trouble(
    shop: CleanConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalogue_sheet, "SHEET", 5)
    rows = [
        Photo(f"item{n // 3}", str(tmp_path / "gone.png"), "", "unsure" if n == 8 else "human", 0.5)
        for n in range(30)
    ]
    assert catalogue_sheet.draw_sheet(rows, tmp_path / "sheet.png", tmp_path, TRY_ON.photo_roles) == 5
    assert Image.open(tmp_path / "sheet.png").width == 5 * 144


def test_help_and_config_import_no_torch() -> None:
    modules = "triptych.verbs.clean, triptych.vision.features"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'sklearn', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_photos_in_folders_as_the_original_left_them(shop: CleanConfig, counting: Counting) -> None:
    assert shop.photos is not None
    shop = shop.model_copy(update={"sorted_folders": True})
    draw(shop.photos / "item0/back/front.png", False, 77)
    assert clean(shop).finish()["in_folders"] == 13
    home = shop.catalogue_folder / "item0"
    assert [path.name for path in (home / "human").iterdir()] == ["worn.png"]
    assert len(list((home / "garment").iterdir())) == 3, "two photos are called front.png"
    assert os.path.samefile(home / "human/worn.png", shop.photos / "item0/worn.png")
    (home / "garment/mine.txt").write_text("stays")
    (shop.catalogue_folder / "overrides.txt").write_text("item0/worn.png garment\nitem0/back.png rejected\n")
    clean(shop).finish()
    assert not list((home / "human").iterdir()) and not (home / "garment/back.png").exists()
    assert (home / "garment/worn.png").exists() and (home / "garment/mine.txt").exists()
    assert (shop.photos / "item0/back.png").exists(), "the photos themselves are never touched"


def test_blurred_blank_and_small_photos_are_said_and_an_override_wins(
    shop: CleanConfig, counting: Counting
) -> None:
    assert shop.photos is not None
    item = shop.photos / "item0"
    sharp = Image.effect_noise((320, 400), 90).convert("RGB")
    ImageDraw.Draw(sharp).rectangle((60, 60, 200, 300), fill=(20, 20, 20))
    sharp.filter(ImageFilter.GaussianBlur(5)).save(item / "soft.png")
    sharp.filter(ImageFilter.GaussianBlur(6)).save(item / "said.png")
    Image.new("RGB", (90, 90), (9, 9, 10)).save(item / "cap.png")
    (shop.work / "catalogue").mkdir(parents=True)
    (shop.work / "catalogue/overrides.txt").write_text("item0/said.png garment\n")
    run = clean(shop.model_copy(update={"small_side": 150}))
    notes = {event.id: (event.status, event.note) for event in run}
    assert notes["item0/soft.png"][0] == "rejected"
    assert notes["item0/soft.png"][1].startswith("blurred: sharpness 0.")
    assert notes["item0/cap.png"] == ("rejected", "blank: one colour all over")
    assert notes["item0/said.png"] == ("done", "garment (override: garment)")
    assert notes["item0/front.png"] == ("done", "garment (small: 96×128 px)")
    assert run.summary["flagged"] == {"small": 12} and run.summary["reasons"] == {"blurred": 1, "blank": 1}
    assert "12 photos are flagged" in run.summary["next"]
    assert "(small: 96×128 px)" in (shop.work / "catalogue/contact_sheet.txt").read_text()


def test_rendered_wearers_share_their_garments_colours(tmp_path: Path) -> None:
    """Nobody who wears the item's garment is flagged, most who wear another one are, and no photo is
    blurred.
    """
    raw = write_raw_catalogue(tmp_path, 24, seed=6, labels=3, missing=0, spoilt=0, duplicates=0)
    seen: dict[str, dict[str, list[np.ndarray]]] = {}
    for name, told in json.loads(raw.truth.read_text())["files"].items():
        if name.startswith("photos/"):
            photo = load_image(tmp_path / name, longest=512)
            assert sharpness(photo) > 0.5
            seen.setdefault(name.split("/")[1], {}).setdefault(told["label"], []).append(signature(photo))
    items = list(seen.values())

    def shared(shift: int) -> list[float]:
        return [
            max(shared_colours(garment, worn) for garment in item["garment"])
            for place, item in enumerate(items)
            for worn in items[(place + shift) % len(items)]["human"]
        ]

    least = CleanConfig().min_shared_colours
    own, others = np.array(shared(0)), np.array(shared(5))
    assert own.min() >= least, own.min()
    assert (others < least).mean() >= 0.6, (others < least).mean()
