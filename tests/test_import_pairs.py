"""import of try-on sets: each layout made small, its test lists honoured, its files linked."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.data.catalogue import read_photos
from triptych.errors import ConfigError, InputError
from triptych.pictures.panels import PanelLayout
from triptych.store import links
from triptych.store.files import read_jsonl
from triptych.verbs.concat import ConcatConfig, concat
from triptych.verbs.import_set import ImportConfig, import_set


def photo(path: Path, seed: int) -> Path:
    """A noisy picture, so that no two are copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 18, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 120)).save(path, quality=95)
    return path


def viton(root: Path) -> Path:
    for number, (part, name) in enumerate((p, f"0000{n}_00") for p in ("train", "test") for n in (p[1:2], 7)):
        photo(root / part / "image" / f"{part}{name}.jpg", number)
        photo(root / part / "cloth" / f"{part}{name}.jpg", 50 + number)
    photo(root / "train/image/lonely.jpg", 90)
    photo(root / "train/image/leak.jpg", 91)
    photo(root / "train/cloth/leak.jpg", 92)
    (root / "test_pairs.txt").write_text("test0000e_00.jpg leak.jpg\n")
    return root


def dresscode(root: Path) -> Path:
    for number, part in enumerate(("upper_body", "dresses")):
        for item in range(3):
            photo(root / part / f"images/00000{item}_0.jpg", 10 * number + item)
            photo(root / part / f"images/00000{item}_1.jpg", 50 + 10 * number + item)
        (root / part / "test_pairs_paired.txt").write_text("000002_0.jpg 000002_1.jpg\n")
    return root


def garments2look(root: Path) -> Path:
    photos: dict[str, Any] = {}
    for number, (name, kind) in enumerate((("a", "T-Shirts"), ("b", "Wide trousers"), ("c", "Ankle boots"))):
        photos[name] = {"type": kind, "images": {"product": {"full": [f"{name}1.jpg"]}}}
        photo(root / f"shop/images/{name}/{name}1.jpg", number)
    looks = {
        "a-b": {"section": "train", "gender": "women", "outfit": ["a", "b"]},
        "a-c": {"section": "test", "gender": "women", "outfit": ["c"]},
        "b-c": {"section": "train", "gender": "women", "outfit": ["b", "c"]},
        "x": {"section": "train", "gender": "women", "outfit": ["../a", "b"]},
    }
    for number, key in enumerate(("a-b", "a-c", "b-c")):
        photo(root / f"shop/looks-resized/women/{key}.png", 30 + number)
    (root / "shop_outfit_v1.json").write_text(json.dumps(looks))
    (root / "shop_image_v1.json").write_text(json.dumps(photos))
    return root


def run(folder: Path, work: Path) -> dict[str, Any]:
    return import_set(ImportConfig(folder=folder, work=work)).finish()


def items(work: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in read_photos(work / "catalogue/photos.jsonl"):
        found.setdefault(row.item, []).append(f"{Path(row.path).stem} {row.label}")
    return found


def test_viton_hd_keeps_what_its_lists_test_away_from_training(tmp_path: Path) -> None:
    folder, work = viton(tmp_path / "viton"), tmp_path / "work"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    summary = run(folder, work)
    assert (summary["set"], summary["train"], summary["test"], summary["rejected"]) == ("viton-hd", 2, 3, 1)
    assert items(work) == {
        name: ["front garment", "worn human"] for name in ("train0000r_00", "train00007_00")
    }, "a garment that a test person is to wear is never trained on"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    linked = work / "catalogue/items/train00007_00/front.jpg"
    assert os.path.samefile(linked, folder / "train/cloth/train00007_00.jpg") and summary["copied"] == 0
    with open(summary["test_pairs"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["leak", "test00007_00", "test0000e_00"]
    assert all(
        (work / "catalogue/test" / row[key]).is_file() for row in rows for key in ("person", "garment")
    )
    assert run(folder, work)["train"] == 2, "a second run finds everything there"
    with pytest.raises(ConfigError, match="No --layout is given"):
        import_set(ImportConfig(folder=folder / "train/cloth", work=work))


@pytest.mark.parametrize(("single", "roles"), [("repeat", 3), ("two-panel", 2)])
def test_dresscode_becomes_triptychs_of_one_garment_photo(tmp_path: Path, single: Any, roles: int) -> None:
    work = tmp_path / "work"
    summary = run(dresscode(tmp_path / "dc"), work)
    assert (summary["train"], summary["test"]) == (4, 2)
    assert set(items(work)) == {f"{part}__00000{n}" for part in ("upper_body", "dresses") for n in (0, 1)}
    made = concat(
        ConcatConfig(work=work, model="pocket", panel_width=64, panel_height=96, single_garment=single)
    ).finish()
    assert made["triptychs"] == 4 and made["guessed_sides"] == 0
    rows = read_jsonl(work / "triptychs/metadata.jsonl")
    layouts = [PanelLayout.from_dict(row["layout"]) for row in rows]
    assert {layout.roles for layout in layouts} == {("front", "back", "worn")[:: 1 if roles == 3 else 2]}
    assert all(layout.made == ("worn",) and layout.size == (64 * roles, 96) for layout in layouts)
    assert ("back_sha256" in rows[0]) == (roles == 3)


def test_garments2look_becomes_outfits(tmp_path: Path) -> None:
    work = tmp_path / "work"
    summary = run(garments2look(tmp_path / "g"), work)
    assert (summary["set"], summary["task"]) == ("garments2look", "outfit")
    assert items(work) == {"shop__a-b": ["top garment", "bottom garment", "worn human"]}
    assert (summary["train"], summary["test"], summary["rejected"]) == (1, 2, 1), "b-c has a tested garment"
    made = concat(
        ConcatConfig(work=work, task="outfit", model="pocket", panel_width=64, panel_height=96)
    ).finish()
    assert made["triptychs"] == 1
    (row,) = read_jsonl(work / "triptychs/metadata.jsonl")
    assert row["layout"]["roles"] == ["top", "bottom", "worn"]


def test_where_a_disk_has_no_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(links.os, "link", refuse)
    source = photo(tmp_path / "a.jpg", 1)
    assert links.link_or_copy(source, tmp_path / "x/b.jpg") is False
    assert (tmp_path / "x/b.jpg").read_bytes() == source.read_bytes()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["b.jpg"]


def test_a_catalogue_of_other_photos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work/catalogue").mkdir(parents=True)
    row = {"item": "i", "path": "p", "sha256": "0", "label": "human"}
    (tmp_path / "work/catalogue/photos.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="catalogue of other photos"):
        run(dresscode(tmp_path / "dc"), tmp_path / "work")
