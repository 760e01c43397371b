"""concat: which photos stand together, what lands on disk, resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.data.catalogue import Photo, write_photos
from triptych.data.pairing import choose_people, plan, triptych_id
from triptych.data.views import choose_views
from triptych.errors import InputError, WorkError
from triptych.pictures.panels import PanelLayout, fit, split
from triptych.store.files import read_jsonl, sha256_file
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.concat import ConcatConfig, concat


def photo(item: str, name: str, label: str = "garment", reason: str = "", sha256: str | None = None) -> Photo:
    path = f"raw/{item}/{name}"
    return Photo(item, path, sha256 or f"sha of {path}", label, 0.5, reason)


class Shop:
    """A work folder with a catalogue; every photo is noise of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.photos, self.seed = root, list[Photo](), 0

    def add(
        self, item: str, name: str, label: str, size: tuple[int, int] = (30, 40), reason: str = ""
    ) -> Path:
        path = self.root / "raw" / item / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.seed += 1
        pixels = np.random.default_rng(self.seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "PNG")
        self.photos.append(Photo(item, str(path), sha256_file(path), label, 0.5, reason))
        return path

    def full(self, item: str, worn: int = 1) -> None:
        self.add(item, "front.png", "garment")
        self.add(item, "back.png", "garment", (60, 20))
        for number in range(worn):
            self.add(item, f"worn_{number}x.png", "human", (20, 50))

    def concat(self, **options: object) -> dict:
        write_photos(self.root / "work" / "catalogue" / "photos.jsonl", self.photos)
        return concat(self.config(**options)).finish()

    def config(self, **options: object) -> ConcatConfig:
        return ConcatConfig(
            work=self.root / "work", **{"model": "pocket", "panel_width": 32, "panel_height": 48} | options
        )

    @property
    def folder(self) -> Path:
        return self.root / "work" / "triptychs"

    def tree(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_panels_hold_the_right_photos_whole(shop: Shop) -> None:
    shop.full("item1")
    summary = shop.concat()
    assert (summary["items"], summary["triptychs"], summary["made"], summary["rejected"]) == (1, 1, 1, 0)
    [picture] = shop.folder.glob("*.png")
    layout = TRY_ON.layout(32, 48)
    panels = split(Image.open(picture), layout)
    for name, panel in zip(["front.png", "back.png", "worn_0x.png"], panels, strict=True):
        assert panel.tobytes() == fit(Image.open(shop.root / "raw" / "item1" / name), 32, 48).tobytes()
    [row] = read_jsonl(shop.folder / "metadata.jsonl")
    assert row["file_name"] == picture.name and row["id"] == picture.stem and row["item"] == "item1"
    assert [Path(row[role]).name for role in ("front", "back", "worn")] == [
        "front.png",
        "back.png",
        "worn_0x.png",
    ]
    assert all(row[f"{role}_sha256"] == sha256_file(Path(row[role])) for role in ("front", "back", "worn"))
    assert PanelLayout.from_dict(row["layout"]) == layout
    chunk = json.loads(Image.open(picture).info["triptych"])
    assert chunk["worn_sha256"] == row["worn_sha256"] and str(shop.root) not in json.dumps(
        chunk
    )  # no paths inside pictures
    [pair] = read_jsonl(shop.root / "work" / "catalogue" / "pairs.jsonl")
    assert pair == {key: row[key] for key in ("id", "item", "front", "back", "worn")}
    assert (shop.root / "work" / "triptychs_sheet.jpg").exists()
    assert {path.suffix for path in shop.folder.iterdir() if path.suffix in (".png", ".jpg")} == {".png"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["IMG_2081.jpg"], ("IMG_2081.jpg", "IMG_2081.jpg")),
        (["IMG_2081.jpg", "IMG_2090.jpg"], ("IMG_2081.jpg", "IMG_2090.jpg")),
        (["coat_back.jpg", "coat_front.jpg"], ("coat_front.jpg", "coat_back.jpg")),
        (["coat_back.jpg", "other.jpg"], ("other.jpg", "coat_back.jpg")),
        (["a.jpg", "b_detail.jpg", "c_back.jpg", "d_front.jpg"], ("d_front.jpg", "c_back.jpg")),
        (["x_front.jpg", "y_front.jpg", "z_detail.jpg"], ("x_front.jpg", "y_front.jpg")),
        (["x_back.jpg", "y_back.jpg"], ("x_back.jpg", "y_back.jpg")),
    ],
)
def test_sides_by_file_name(names: list[str], expected: tuple[str, str]) -> None:
    (front, _), (back, _) = choose_views([photo("i", name) for name in names], TRY_ON.photo_roles).values()
    assert (Path(front.path).name, Path(back.path).name) == expected


def test_override_beats_file_names() -> None:
    photos = [
        photo("i", "front.jpg", reason="override: back"),
        photo("i", "back.jpg"),
        photo("i", "zz.jpg", reason="override: front"),
    ]
    (front, _), (back, _) = choose_views(photos, TRY_ON.photo_roles).values()
    assert (front.path, back.path) == ("raw/i/zz.jpg", "raw/i/front.jpg")


def test_single_garment_photo_is_used_twice(shop: Shop) -> None:
    shop.add("i", "only.png", "garment")
    shop.add("i", "worn.png", "human")
    shop.concat()
    front, back, worn = split(Image.open(next(shop.folder.glob("*.png"))), TRY_ON.layout(32, 48))
    assert front.tobytes() == back.tobytes() != worn.tobytes()


def test_items_that_lack_a_view_are_reported_and_the_rest_goes_on(shop: Shop) -> None:
    shop.full("good")
    shop.add("bare", "front.png", "garment")
    shop.add("bare", "what.png", "unsure")
    shop.add("people", "worn.png", "human")
    shop.add("junk", "x.png", "rejected", reason="too small")
    shop.photos.append(Photo("", "raw/stray.png", "", "rejected", None, "not in an item folder"))
    summary = shop.concat()
    assert summary["triptychs"] == 1 and summary["items"] == 4 and summary["rejected"] == 3
    assert summary["reasons"] == {
        "no photo of a person wearing it": 1,
        "no photo of the garment alone": 1,
        "no usable photo": 1,
    }
    rows = {
        row["item"]: row for row in read_jsonl(shop.folder / "concat.rejects.jsonl") if not row.get("spare")
    }
    assert set(rows) == {"bare", "people", "junk"} and rows["bare"]["unsure"] == 1


def test_broken_missing_and_changed_photos_are_rejected(shop: Shop) -> None:
    for item in ("broken", "missing", "changed", "good"):
        shop.full(item)
    (shop.root / "raw/broken/front.png").write_bytes(b"<html>not found</html>")
    (shop.root / "raw/missing/back.png").unlink()
    Image.new("RGB", (9, 9)).save(shop.root / "raw/changed/worn_0x.png")
    summary = shop.concat()
    assert summary["triptychs"] == 1 and summary["rejected"] == 3
    reasons = {row["item"]: row["reason"] for row in read_jsonl(shop.folder / "concat.rejects.jsonl")}
    assert set(reasons) == {"broken", "missing", "changed"} and "has changed since" in reasons["changed"]
    assert [row["item"] for row in read_jsonl(shop.folder / "metadata.jsonl")] == ["good"]


def test_every_photo_is_used_or_accounted_for(shop: Shop) -> None:
    shop.full("a", worn=5)
    shop.add("a", "third.png", "garment")
    copy = shop.add("a", "worn_copy.png", "human")
    copy.write_bytes((shop.root / "raw/a/worn_0x.png").read_bytes())
    shop.photos[-1] = Photo("a", str(copy), sha256_file(copy), "human")
    summary = shop.concat(max_concat_n=2)
    assert summary["triptychs"] == 2
    used = {
        row[role] for row in read_jsonl(shop.folder / "metadata.jsonl") for role in ("front", "back", "worn")
    }
    spare = [row["path"] for row in read_jsonl(shop.folder / "concat.rejects.jsonl")]
    assert sorted([*used, *spare]) == sorted(p.path for p in shop.photos)
    assert summary["spare_photos"] == len(spare) == 5


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5), st.integers(0, 8))
@settings(max_examples=60)
def test_worn_choice_is_independent_of_everything_else(
    count: int, at_most: int, seed: int, gone: int
) -> None:
    humans = [photo("item", f"{number}.jpg", "human") for number in range(count)]
    chosen = choose_people(humans, "item", at_most, seed)
    assert len(chosen) == min(count, at_most) and chosen == [p for p in humans if p in chosen]
    rest = [p for number, p in enumerate(humans) if number != gone or p in chosen]
    assert choose_people(rest, "item", at_most, seed) == chosen  # a photo that was not chosen may vanish
    garment = [photo("item", "g.jpg"), photo("other", "g.jpg"), photo("other", "w.jpg", "human")]
    with_other, *_ = plan([*humans, *garment], TRY_ON.photo_roles, at_most, seed)
    alone, *_ = plan([*humans, garment[0]], TRY_ON.photo_roles, at_most, seed)
    assert [t for t in with_other if t.item == "item"] == alone


def test_seed_changes_the_choice() -> None:
    humans = [photo("item", f"{number}.jpg", "human") for number in range(6)]
    assert len({tuple(choose_people(humans, "item", 2, seed)) for seed in range(10)}) > 3


NASTY = [
    "../../etc/passwd",
    "",
    "..",
    "-rf",
    ".hidden",
    "a/b",
    "a\\b",
    "emoji \N{DRESS}",
    "模特",
    "x" * 300,
    "new\nline",
    "CON",
    "Ä b",
    "a__b",
    "%s",
]


def test_ids_are_safe_and_unique_for_any_item_name() -> None:
    ids = [triptych_id(item, sha) for item in [*NASTY, "a b", "A b"] for sha in ("1", "2")]
    assert len({one.lower() for one in ids}) == len(ids)
    for one in ids:
        assert one.isascii() and set("/\\\n %:") & set(one) == set() and one[0].isalnum() and len(one) < 70
    assert triptych_id("coat_7", "1").startswith("coat_7-")


def test_odd_item_names_end_to_end(shop: Shop) -> None:
    items = ["a [b] 'c' \N{DRESS}", "模特", "-x", "tab\tnewline\n"]
    for item in items:
        shop.full(item)
    assert shop.concat()["triptychs"] == len(items)
    assert {row["item"] for row in read_jsonl(shop.folder / "metadata.jsonl")} == set(items)
    assert all(path.parent == shop.folder for path in shop.folder.rglob("*.png"))


def test_second_run_keeps_everything_and_changes_no_byte(shop: Shop) -> None:
    shop.full("a", 3)
    shop.full("b")
    shop.concat()
    before, times = shop.tree(), {path: path.stat().st_mtime_ns for path in shop.folder.glob("*.png")}
    summary = shop.concat()
    assert (summary["kept"], summary["made"]) == (4, 0)
    assert shop.tree() == before and times == {
        path: path.stat().st_mtime_ns for path in shop.folder.glob("*.png")
    }


def test_captions_survive_until_their_picture_changes(shop: Shop) -> None:
    shop.full("a")
    shop.full("b")
    shop.concat()
    rows = read_jsonl(shop.folder / "metadata.jsonl")
    text = "".join(json.dumps(row | {"text": "a caption", "caption_by": "user"}) + "\n" for row in rows)
    (shop.folder / "metadata.jsonl").write_text(text)
    shop.photos = [
        p for p in shop.photos if not (p.item == "a" and "back" in p.path)
    ]  # another back, same worn photo: same id
    summary = shop.concat()
    assert (summary["made"], summary["kept"], summary["stale"]) == (1, 1, [])
    after = {row["item"]: row for row in read_jsonl(shop.folder / "metadata.jsonl")}
    assert "text" not in after["a"] and "caption_by" not in after["a"] and after["b"]["text"] == "a caption"


def test_stale_edited_and_foreign_pictures_are_never_touched(shop: Shop) -> None:
    shop.full("a")
    shop.full("b")
    shop.concat()
    ids = {row["item"]: row["id"] for row in read_jsonl(shop.folder / "metadata.jsonl")}
    Image.new("RGB", (96, 48), "red").save(shop.folder / f"{ids['b']}.png")  # retouched in an editor
    Image.new("RGB", (96, 48), "blue").save(shop.folder / "mine.png")
    shop.photos = [p for p in shop.photos if p.item != "a"]
    before = {name: data for name, data in shop.tree().items() if name.endswith(".png")}
    summary = shop.concat()
    assert summary["stale"] == [ids["a"]] and summary["triptychs"] == 3
    assert {name: data for name, data in shop.tree().items() if name.endswith(".png")} == before
    assert sorted(row["file_name"] for row in read_jsonl(shop.folder / "metadata.jsonl")) == sorted(before)


def test_rejected_by_caption_does_not_come_back_unless_its_photos_change(shop: Shop) -> None:
    shop.full("a")
    shop.concat()
    [row] = read_jsonl(shop.folder / "metadata.jsonl")
    (shop.folder / f"{row['id']}.png").unlink()
    (shop.folder / "caption.jsonl").write_text(json.dumps({"kind": "rejected"} | row) + "\n")
    summary = shop.concat()
    assert (summary["failed_before"], summary["made"], summary["triptychs"]) == (1, 0, 0)
    shop.photos = [p for p in shop.photos if "back" not in p.path]
    assert shop.concat()["made"] == 1


def test_killed_run_is_finished_by_the_next_and_equals_an_undisturbed_one(shop: Shop) -> None:
    shop.full("a", 3)
    shop.full("b", 2)
    undisturbed = Shop(shop.root)
    undisturbed.photos = shop.photos
    shop.concat()
    expected = shop.tree()
    other = shop.config(triptychs=shop.root / "work" / "again")
    run = concat(other)
    events = iter(run)
    for _ in range(2):
        next(events)
    code = (
        "import os, sys; from triptych.verbs.concat import *\n"
        f"config = ConcatConfig.model_validate_json({other.model_dump_json()!r})\n"
        "for number, _ in enumerate(concat(config)):\n"
        "    if number == 2: os.kill(os.getpid(), 9)\n"
    )
    events.close()  # lets the lock go
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    summary = concat(other).finish()
    assert summary["kept"] == 3 and summary["made"] == 2
    again = {path.name: path.read_bytes() for path in (shop.root / "work" / "again").iterdir()}
    assert again == expected


def test_one_lock_one_identity(shop: Shop) -> None:
    shop.full("a", 2)
    shop.concat()
    with pytest.raises(WorkError, match="max_concat_n"):
        shop.concat(max_concat_n=1)
    with pytest.raises(InputError, match="grid"):
        shop.concat(panel_width=33)
    running = iter(concat(shop.config()))
    next(running)
    with pytest.raises(WorkError, match="Another run"):
        concat(shop.config()).finish()


def test_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(WorkError):
        concat(ConcatConfig(work=tmp_path, model="pocket"))
    write_photos(tmp_path / "catalogue" / "photos.jsonl", [])
    with pytest.raises(WorkError, match="no items"):
        concat(ConcatConfig(work=tmp_path, model="pocket"))


def test_configs_import_no_torch() -> None:
    heavy = ("torch", "transformers", "openai")
    code = (
        f"import sys, triptych.verbs.concat, triptych.verbs.caption; print([m for m in {heavy} if m in "
        "sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


def test_items_of_any_script_stay_whole_in_the_metadata(shop: Shop) -> None:
    items = [
        "红色连衣裙",
        "蓝色外套",
        "Жакет",
        "تنورة",
        "ワンピース",
        "x" * 60 + "1",
        "x" * 60 + "2",
        "ru\u0308ck",
        "r\u00fcck",
    ]
    for item in items:
        shop.full(item)
    shop.concat()
    rows = read_jsonl(shop.folder / "metadata.jsonl")
    assert sorted(row["item"] for row in rows) == sorted(items) and len({row["id"] for row in rows}) == len(
        items
    )
