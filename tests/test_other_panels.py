"""concat for another model: pictures are made anew, what was paid for stays; and pictures that say odd things
of themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.test_concat import Shop
from triptych.data.pairing import earlier_pictures
from triptych.errors import WorkError
from triptych.pictures.panels import PanelLayout
from triptych.store.files import read_jsonl, sha256_file, write_jsonl
from triptych.store.journal import Journal
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.caption import CaptionConfig, caption


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_other_panels_keep_ids_captions_and_rejects(shop: Shop) -> None:
    """Captions are paid for: a model with other panels makes the pictures anew and asks nobody."""
    for item in ("a", "b", "c", "d"):
        shop.full(item)
    shop.concat()
    metadata = read_jsonl(shop.folder / "metadata.jsonl")
    ids = {row["item"]: row["id"] for row in metadata}
    journal = Journal(shop.folder / "caption.jsonl")
    for item in ("a", "b"):  # captions of ours, as `caption` writes them
        picture = shop.folder / f"{ids[item]}.png"
        picture.with_suffix(".txt").write_text(f"a caption of {item} <IMAGE 1> <IMAGE 2> <IMAGE 3>\n")
        row = {
            "kind": "caption",
            "id": ids[item],
            "image_sha256": sha256_file(picture),
            "captioner": "server m",
        }
        journal.append(row | {"text_sha256": sha256_file(picture.with_suffix(".txt"))})
    write_jsonl(
        shop.folder / "metadata.jsonl", [row | {"text": "t", "caption_by": "server m"} for row in metadata]
    )
    (shop.root / "failed").mkdir()
    (shop.folder / f"{ids['c']}.png").rename(shop.root / "failed" / f"{ids['c']}.png")
    journal.append({"kind": "rejected"} | next(row for row in metadata if row["item"] == "c"))
    Image.new("RGB", (96, 48), "red").save(shop.folder / f"{ids['d']}.png")  # retouched: stays as it is
    paid = {
        path: path.read_bytes()
        for path in shop.folder.iterdir()
        if path.suffix == ".txt" or path.name == "caption.jsonl"
    }

    for width, height in ((48, 64), (32, 48), (64, 96)):
        summary = shop.concat(panel_width=width, panel_height=height)
        assert (summary["made"], summary["made_anew_for_other_panels"], summary["failed_before"]) == (2, 2, 1)
        rows = {row["item"]: row for row in read_jsonl(shop.folder / "metadata.jsonl")}
        assert {item: row["id"] for item, row in rows.items()} == {
            item: ids[item] for item in ("a", "b", "d")
        }
        for item in ("a", "b"):
            drawn = Image.open(shop.folder / f"{ids[item]}.png").size
            assert drawn == PanelLayout.from_dict(rows[item]["layout"]).size == (3 * width, height)
            assert rows[item]["text"] == "t" and rows[item]["caption_by"] == "server m"
        assert PanelLayout.from_dict(rows["d"]["layout"]).size == (96, 48)
        assert {path: path.read_bytes() for path in paid} == paid
        assert (shop.root / "failed" / f"{ids['c']}.png").exists()
        again = shop.concat(panel_width=width, panel_height=height)
        assert (again["made"], again["kept"]) == (0, 3)

    (shop.root / "own").mkdir()
    (shop.root / "own" / "d.txt").write_text("mine <IMAGE 1> <IMAGE 2> <IMAGE 3>\n")
    nobody = {"vlm_model": "m", "base_url": "http://127.0.0.1:9/v1", "attempts": 1}
    told = caption(
        CaptionConfig(work=shop.root / "work", model="pocket", captions=shop.root / "own", **nobody)
    ).finish()
    assert (told["kept"], told["brought"], told["captioned"]) == (2, 1, 0), "nobody is asked"


def test_a_folder_of_an_older_version_goes_on(shop: Shop) -> None:
    shop.full("a")
    shop.concat()
    manifest = shop.folder / "concat.manifest.json"
    about = json.loads(manifest.read_text())
    manifest.write_text(
        json.dumps(about | {"identity": about["identity"] | {"layout": TRY_ON.layout(16, 16).to_dict()}})
    )
    assert shop.concat()["kept"] == 1
    with pytest.raises(WorkError, match="max_concat_n") as caught:
        shop.concat(max_concat_n=1)
    assert "delete" not in caught.value.hint and "--captions" in caught.value.hint


CHUNKS = [
    "[" * 100_000,
    "[]",
    "null",
    '{"layout": {"width": 1' + "0" * 5000 + "}}",
    '{"earlier_sha256": {"a": 1}}',
]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_a_picture_says_of_itself_ends_nothing(chunk: str, shop: Shop) -> None:
    shop.full("a")
    shop.full("b")
    shop.concat()
    ids = {row["item"]: row["id"] for row in read_jsonl(shop.folder / "metadata.jsonl")}
    info = PngInfo()
    info.add_text("triptych", chunk)
    Image.new("RGB", (96, 48)).save(shop.folder / f"{ids['a']}.png", pnginfo=info)
    Image.new("RGB", (96, 48)).save(shop.folder / "foreign.png", pnginfo=info)
    summary = shop.concat()
    assert (summary["made"], summary["kept"], summary["triptychs"]) == (1, 1, 3)
    assert earlier_pictures(shop.folder / "foreign.png") == []
