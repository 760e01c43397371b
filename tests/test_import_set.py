"""import: pictures of several panels become triptychs on the model's grid, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.cli import main
from triptych.data.captions import in_house, lint, with_markers
from triptych.data.foreign_sets import markers_in, read_markers
from triptych.errors import ConfigError, InputError
from triptych.pictures.images import load_image
from triptych.pictures.panels import PanelLayout, split
from triptych.store.files import read_jsonl, sha256_file
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.import_set import ImportConfig, import_set

CAPTION = (
    "[MOVIE-SHOTS] In a quiet town, [SCENE-1] <Leo> opens a red door, [SCENE-2] walks through a green park, "
    "[SCENE-3] and looks at the blue sea."
)
SCENES = ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")


def shots(folder: Path, count: int = 2, size: tuple[int, int] = (101, 151)) -> Path:
    """Pictures as ali-vilab's: three rows, .jpg with captions as .txt; sides are no multiple of anything."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        for row in range(3):
            pixels[row * size[1] // 3 : (row + 1) * size[1] // 3, :, row] = 200 + number
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=100, subsampling=0)
        (folder / f"{number}.txt").write_text(CAPTION, encoding="utf-8")
    return folder


def run(folder: Path, work: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"layout": "3x1", "marker": "[SCENE-{n}]"}
    return import_set(ImportConfig(folder=folder, work=work, **{**options, **changes})).finish()


def test_three_rows_become_triptychs_that_embed_takes(tmp_path: Path, tiny_flux: Path) -> None:
    folder, work = shots(tmp_path / "movie-shots"), tmp_path / "work"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    summary = run(folder, work, roles=["door,park,sea"])
    assert (summary["imported"], summary["kept"], summary["rejected"]) == (2, 0, 0)
    assert summary["panels"] == {"101×50 px cropped to 96×48 px, 8.8% of each cut off at its edges": 2}
    assert {file: file.read_bytes() for file in folder.iterdir()} == before, "the set is only read"

    rows = read_jsonl(work / "triptychs" / "metadata.jsonl")
    layout = PanelLayout(96, 48, ("door", "park", "sea"), 1, ("door", "park", "sea"))
    assert [PanelLayout.from_dict(row["layout"]) for row in rows] == [layout, layout]
    assert all(row["markers"] == [*SCENES] and row["text"] == CAPTION for row in rows)
    for row in rows:
        panels = split(load_image(work / "triptychs" / row["file_name"]), layout)
        for number, panel in enumerate(panels):  # no seam runs into a panel
            mean = np.asarray(panel, float).mean((0, 1))
            assert (
                mean.argmax() == number and sorted(mean)[1] < 4 and np.asarray(panel)[..., number].min() > 190
            )
    assert (work / "triptychs" / "1.txt").read_text() == CAPTION + "\n"

    told = embed(EmbedConfig(work=work, model=str(tiny_flux), device="cpu", dtype="fp32")).finish()
    assert (told["embedded"], told["rejected"], told["layouts_guessed"]) == (2, 0, 0)


def test_again_keeps_pictures_and_captions_that_were_edited(tmp_path: Path) -> None:
    folder, work = shots(tmp_path / "set"), tmp_path / "work"
    run(folder, work)
    made = work / "triptychs" / "1.png"
    first = sha256_file(made)
    (work / "triptychs" / "1.txt").write_text("edited here\n")
    (folder / "2.txt").write_text(CAPTION.replace("town", "village"))
    (folder / "1.txt").write_text(CAPTION.replace("town", "village"))
    summary = run(folder, work)
    assert (summary["imported"], summary["kept"]) == (0, 2) and sha256_file(made) == first
    assert (work / "triptychs" / "1.txt").read_text() == "edited here\n"
    assert "village" in (work / "triptychs" / "2.txt").read_text()
    assert run(folder, work, panel_width=64)["imported"] == 2
    (layout,) = {json.dumps(row["layout"]) for row in read_jsonl(work / "triptychs" / "metadata.jsonl")}
    assert (
        json.loads(layout)
        == PanelLayout(64, 32, ("panel1", "panel2", "panel3"), 1, ("panel1", "panel2", "panel3")).to_dict()
    )


def test_what_is_not_of_the_set_stays(tmp_path: Path) -> None:
    folder, work = shots(tmp_path / "set", 3), tmp_path / "work"
    (work / "triptychs").mkdir(parents=True)
    Image.new("RGB", (96, 48), "red").save(work / "triptychs" / "1.png")
    Image.new("RGB", (96, 48), "red").save(work / "triptychs" / "own.png")
    (work / "triptychs" / "metadata.jsonl").write_text('{"file_name": "own.png", "id": "own"}\n')
    theirs = sha256_file(work / "triptychs" / "1.png")
    (folder / "2.jpg").write_bytes(b"no picture")
    (folder / "a b.png").write_bytes((folder / "3.jpg").read_bytes())
    Image.open(folder / "3.jpg").save(folder / "a-b.png")
    Image.open(folder / "3.jpg").save(folder / "c.gif")
    summary = run(folder, work)
    assert (summary["imported"], summary["rejected"], summary["without_caption"]) == (2, 4, 1)
    assert any("is there already" in reason for reason in summary["reasons"])
    assert any("same name" in reason for reason in summary["reasons"])
    assert sha256_file(work / "triptychs" / "1.png") == theirs
    names = [row["file_name"] for row in read_jsonl(work / "triptychs" / "metadata.jsonl")]
    assert names == ["own.png", "3.png", "a-b.png"]
    assert summary["next"] == "triptych caption"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layout": ""}, "No --layout is given"),
        ({"layout": "1x1"}, "no grid of panels"),
        ({"layout": "3"}, "no grid of panels"),
        ({"roles": ["a,b"]}, "do not name 3 panels"),
        ({"roles": ["a", "a", "b"]}, "do not name 3 panels"),
        ({"roles": ["a", "../b", "c"]}, "do not name 3 panels"),
        ({"made": ["worn"]}, "worn is no panel here"),
        ({"marker": ["[SCENE]"]}, "does not mark 3 panels"),
        ({"marker": ["[A]", "[A]", "[B]"]}, "does not mark 3 panels"),
        ({"panel_width": 100}, "does not fall on"),
    ],
)
def test_what_is_not_said_or_contradicts_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = shots(tmp_path / "set", 1)
    with pytest.raises((ConfigError, InputError), match=said) as caught:
        run(folder, tmp_path / "work", **changes)
    assert caught.value.hint
    assert not (tmp_path / "work").exists()


def test_folders_are_refused(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "none"):
        with pytest.raises(InputError, match="nothing to import"):
            import_set(ImportConfig(folder=folder, layout="3x1"))
    folder = shots(tmp_path / "triptychs")
    with pytest.raises(InputError, match="triptychs are written to"):
        import_set(ImportConfig(folder=folder, layout="3x1", triptychs=folder))


def test_markers_that_nobody_named_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shots(tmp_path / "set")
    summary = run(folder, tmp_path / "work", marker=[])
    assert summary["captions_without_markers"] == 2
    assert '--marker "[SCENE-{n}]"' in caplog.text
    assert (tmp_path / "work" / "triptychs" / "1.txt").read_text() == CAPTION + "\n"
    assert all("markers" not in row for row in read_jsonl(tmp_path / "work" / "triptychs" / "metadata.jsonl"))


def test_captions_with_other_markers_are_looked_through_like_ours() -> None:
    assert read_markers(["[SCENE-{n}]"], 3) == SCENES
    assert read_markers(["[TOP]", "[BOTTOM]"], 2) == ("[TOP]", "[BOTTOM]")
    assert read_markers(["<IMAGE {n}>"], 3) == ()
    assert markers_in(CAPTION, 3) == "[SCENE-{n}]" and markers_in(CAPTION, 4) == ""
    house = in_house(CAPTION, SCENES)
    assert lint(house) == [] and "<IMAGE 2> walks" in house and "<Leo>" not in house
    assert "marker <IMAGE 3> is missing" in lint(in_house(CAPTION.replace("[SCENE-3]", ""), SCENES))
    assert (
        with_markers("A set. <IMAGE 1> a <IMAGE 2> b", ("[TOP]", "[BOTTOM]")) == "A set. [TOP] a [BOTTOM] b"
    )
    ten = tuple(f"SCENE {number}" for number in range(1, 11))
    assert in_house("SCENE 10 SCENE 1", ten) == "<IMAGE 10> <IMAGE 1>"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, work = shots(tmp_path / "set"), tmp_path / "work"
    words = ["import", str(folder), "--layout", "3x1", "--roles", "a,b,c", "--made", "c", "--work", str(work)]
    assert main([*words, "--marker", "[SCENE-{n}]"]) == 0
    assert "triptych embed" in capsys.readouterr().out
    row = read_jsonl(work / "triptychs" / "metadata.jsonl")[0]
    assert row["layout"]["roles"] == ["a", "b", "c"] and PanelLayout.from_dict(row["layout"]).made == ("c",)
