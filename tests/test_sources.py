"""Triptychs that anybody has put into a folder: taken, or left out with a reason, and never guessed where it
matters.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.data.triptychs import Grid, TriptychFolder, grid_of
from triptych.errors import ConfigError, WorkError
from triptych.pictures.panels import PanelLayout
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.train import train

from .test_train import config

USUAL = Grid(("front", "back", "worn"), 3)
CAPTION = "A dress. <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn"
GOOD = {"width": 32, "height": 48, "roles": ["front", "back", "worn"], "columns": 3}


def put(folder: Path, name: str, size: tuple[int, int] = (96, 48), caption: str | None = CAPTION) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), len(name) * 9, dtype=np.uint8)).save(
        folder / name, Path(name).suffix[1:].upper().replace("JPG", "JPEG")
    )
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def put_rows(folder: Path, *rows: Any) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pictures_of_every_usual_ending_are_taken_and_others_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", "c.jpg", "d.JPEG", "e.webp"):
        put(tmp_path, name)
    put(tmp_path, "f.bmp")
    put(tmp_path, "a.jpg")
    (tmp_path / "c.txt").rename(tmp_path / "c.TXT")
    sources, rejects = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert [source.image.name for source in sources] == ["a.jpg", "b.PNG", "c.jpg", "d.JPEG", "e.webp"]
    assert {row["id"]: row["reason"] for row in rejects} == {
        "f.bmp": "no PNG, JPEG or WebP",
        "a.png": "a.jpg has the same name",
    }
    only = tmp_path / "only"
    put(only, "x.bmp")
    with pytest.raises(WorkError, match="no triptychs") as caught:
        TriptychFolder(only).sources(16)
    assert "x.bmp" in caught.value.hint


# Single photos, upright and square, a pair, a stack, and what is far too wide.
@pytest.mark.parametrize(
    "size", [(768, 1024), (960, 960), (1536, 1024), (1920, 1080), (96, 72), (96, 144), (960, 160), (95, 48)]
)
def test_what_does_not_look_like_three_panels_in_a_row_is_not_guessed(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    put(tmp_path, "a.png", size)
    sources, (reject,) = TriptychFolder(tmp_path).sources(8, usual=USUAL)
    assert sources == []
    assert "does not look like three panels in a row" in reject["reason"] and "--columns" in reject["reason"]


@pytest.mark.parametrize("size", [(1728, 768), (144, 72), (1440, 640), (1536, 512), (1536, 768)])
def test_what_does_is_guessed_and_says_so(tmp_path: Path, size: tuple[int, int]) -> None:
    put(tmp_path, "a.png", size)
    ((source,), _) = TriptychFolder(tmp_path).sources(8, usual=USUAL)
    assert (source.layout.size, source.layout_by) == (size, "guess")


def test_a_layout_for_the_whole_folder(tmp_path: Path) -> None:
    put(tmp_path, "stack.png", (32, 144))
    put(tmp_path, "told.png", (96, 48))
    put_rows(tmp_path, {"file_name": "told.png", "layout": GOOD})
    sources, rejects = TriptychFolder(tmp_path).sources(16, grid_of(1, None, USUAL))
    assert rejects == []
    assert [(source.id, source.layout, source.layout_by) for source in sources] == [
        ("stack", PanelLayout(32, 48, ("front", "back", "worn"), 1), "option"),
        ("told", TRY_ON.layout(32, 48), "metadata"),
    ]
    assert grid_of(None, ["front", "worn"], USUAL) == Grid(("front", "worn"), 2)
    for columns, roles in ((2, None), (1, ["a", "a"]), (None, ["a/b", "c"])):
        with pytest.raises(ValueError):
            grid_of(columns, roles, USUAL)
    with pytest.raises(ConfigError, match="fill rows of 2"):
        embed(EmbedConfig(work=tmp_path, model="pocket", columns=2))


BAD_LAYOUTS: dict[str, Any] = {
    "three roles alike": GOOD | {"roles": ["scene"] * 3},
    "columns that do not fill": GOOD | {"columns": 2},
    "no columns": GOOD | {"columns": 0},
    "negative": GOOD | {"width": -32},
    "numbers as text": GOOD | {"width": "32"},
    "fractions": GOOD | {"height": 48.0},
    "true": GOOD | {"columns": True},
    "huge": GOOD | {"width": 10**9, "height": 10**9},
    "a word for roles": GOOD | {"roles": "abc"},
    "roles that are paths": GOOD | {"roles": ["../../x", "back", "worn"]},
    "roles of other kinds": GOOD | {"roles": [1, 2, 3]},
    "no roles": GOOD | {"roles": []},
    "a key less": {"width": 32, "height": 48},
    "a list": [32, 48],
    "a word": "3x1",
    "another size": GOOD | {"width": 16},
}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_a_bad_row_leaves_out_its_picture_alone(tmp_path: Path, case: str) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    put_rows(
        tmp_path, {"file_name": "a.png", "layout": BAD_LAYOUTS[case]}, {"file_name": "b.png", "layout": GOOD}
    )
    sources, rejects = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert [source.id for source in sources] == ["b"]
    assert [row["id"] for row in rejects] == ["a"] and rejects[0]["reason"]


@pytest.mark.parametrize(
    "row",
    [
        {"file_name": "../a.png"},
        {"file_name": "/x/a.png"},
        {"file_name": "sub/a.png"},
        {"file_name": "..\\a.png"},
        {"file_name": 3},
    ],
)
def test_rows_of_no_picture_here_are_named(tmp_path: Path, row: dict[str, Any]) -> None:
    put(tmp_path, "a.png")
    put_rows(tmp_path, row | {"layout": {"width": 1}})
    sources, rejects = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert [(source.id, source.layout_by) for source in sources] == [("a", "guess")], (
        "such a row says nothing of a.png"
    )
    assert len(rejects) == 1 and "metadata.jsonl" in rejects[0]["reason"]


@pytest.mark.parametrize(
    "rows",
    [
        '[1, 2]\n{"file_name": "a.png"}\n',
        '{"file_name": "a.png"}\n"a.png"\n',
        '{"file_name": "a.png"}\n{oops\n',
        "7",
    ],
)
def test_a_line_that_is_no_object_is_told_wherever_it_stands(tmp_path: Path, rows: str) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(rows)
    with pytest.raises(WorkError, match=r"metadata\.jsonl is damaged at line [12]") as caught:
        TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert "Mend that line" in caught.value.hint


def test_rows_with_a_byte_order_mark_and_half_a_row_at_the_end(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    rows = (
        "\ufeff" + json.dumps({"file_name": "a.png", "layout": GOOD, "item": "x"}) + '\r\n{"file_na'
    )  # an append that was killed
    (tmp_path / "metadata.jsonl").write_text(rows, encoding="utf-8")
    ((source,), rejects) = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert (source.item, source.layout_by, rejects) == ("x", "metadata", [])


def test_two_rows_that_differ_and_rows_of_other_kinds_leave_the_picture_out(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    put(tmp_path, "c.png", caption=None)
    rows = [
        {"file_name": "a.png", "item": "x"},
        {"file_name": "a.png", "item": "y"},
        {"file_name": "b.png", "item": 7},
    ]
    put_rows(tmp_path, *rows, {"file_name": "c.png", "text": ["no"]})
    sources, rejects = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert sources == []
    assert sorted(row["id"] for row in rejects) == ["a.png", "b", "c"]


def test_the_text_of_a_row_is_a_caption_and_a_file_wins(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        put(tmp_path, name, caption=None)
    (tmp_path / "b.txt").write_text("\ufeffof the file\r\n", encoding="utf-8")
    put_rows(
        tmp_path, {"file_name": "a.png", "text": " of the row "}, {"file_name": "b.png", "text": "of the row"}
    )
    sources, rejects = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert {source.id: source.caption for source in sources} == {"a": "of the row", "b": "of the file"}
    assert rejects == [{"id": "c", "reason": "no caption: c.txt is missing"}]


def test_a_picture_too_large_to_be_true_is_one_reject(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4) + (30_000).to_bytes(4)
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4)
    (tmp_path / "b.png").write_bytes(data)
    sources, (reject,) = TriptychFolder(tmp_path).sources(16, usual=USUAL)
    assert [source.id for source in sources] == ["a"]
    assert "too large" in reject["reason"]


# --- What train makes of it
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path, tiny_flux: Path) -> Path:
    for number in range(4):
        put(tmp_path / "triptychs", f"item-{number}.png", caption=f"{number} {CAPTION}")
    put(tmp_path / "triptychs", "photo.png", (96, 144))
    put_rows(
        tmp_path / "triptychs", *({"file_name": f"item-{number}.png", "layout": GOOD} for number in range(4))
    )
    return tmp_path


def embedded(work: Path, model: Path, stop_after: int | None = None) -> None:
    run = embed(EmbedConfig(work=work, model=str(model), device="cpu", dtype="fp32", batch_size=1))
    for number, _ in enumerate(run, 1):
        if number == stop_after:
            run.close()
            return


def test_half_an_embed_and_stale_ones_are_refused(work: Path, tiny_flux: Path) -> None:
    triptychs = work / "triptychs"
    embedded(work, tiny_flux, stop_after=3)  # a reject and two records
    with pytest.raises(WorkError, match=r"of the 5 captioned triptychs .*: 3 are not embedded\.") as caught:
        train(config(work, tiny_flux))
    assert "triptych embed" in caught.value.hint
    embedded(work, tiny_flux)
    train(config(work, tiny_flux))  # the photo was left out by embed, which has said so
    (triptychs / "item-0.txt").write_text("edited")
    put(triptychs, "item-1.png", (96, 48), f"1 {CAPTION}")
    Image.new("RGB", (96, 48), "red").save(triptychs / "item-1.png")
    (triptychs / "item-2.png").unlink()
    put(triptychs, "new.png")
    with pytest.raises(WorkError, match="1 is not embedded, 2 have changed since, 1 is gone"):
        train(config(work, tiny_flux))
    embedded(work, tiny_flux, stop_after=3)
    with pytest.raises(
        WorkError, match="captioned"
    ):  # the second embed was killed: the index is older than the records
        train(config(work, tiny_flux))
    embedded(work, tiny_flux)
    train(config(work, tiny_flux))


def test_without_the_triptychs_a_warning_says_what_cannot_be_told(
    work: Path, tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedded(work, tiny_flux)
    (work / "triptychs").rename(work / "elsewhere")
    train(config(work, tiny_flux))
    assert "the embeddings cannot be compared" in caplog.text


def test_clean_context_does_not_hang_on_a_guess(
    work: Path, tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedded(work, tiny_flux)
    assert "guessed" not in caplog.text
    (work / "triptychs" / "metadata.jsonl").unlink()
    embedded(work, tiny_flux)
    assert (
        "Of 4 of 4 pictures (item-0.png …) it is only guessed that they are three panels in a row"
        in caplog.text
    )
    train(config(work, tiny_flux))
    with pytest.raises(ConfigError, match="only guessed") as caught:
        train(config(work, tiny_flux, context="clean"))
    assert "--columns" in caught.value.hint
    summary = embed(
        EmbedConfig(work=work, model=str(tiny_flux), device="cpu", dtype="fp32", columns=3)
    ).finish()
    assert (summary["kept"], summary["layouts_guessed"]) == (4, 0)
    train(config(work, tiny_flux, context="clean"))


def test_other_triptychs_are_counted(work: Path, tiny_flux: Path) -> None:
    embedded(work, tiny_flux)
    train(config(work, tiny_flux, max_train_steps=1)).finish()
    put(work / "triptychs", "new-1.png")
    put(work / "triptychs", "new-2.png")
    (work / "triptychs" / "item-0.png").unlink()
    embedded(work, tiny_flux)
    with pytest.raises(WorkError, match=r"\(triptychs: 2 new, 1 gone\)") as caught:
        train(config(work, tiny_flux, max_train_steps=1))
    assert "--init-lora" in caught.value.hint and "delete" not in caught.value.hint
