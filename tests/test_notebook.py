"""The polygon canvas from Python's side, as a browser would drive it; in a browser: test_canvas.py."""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

import triptych
from triptych import notebook
from triptych.errors import InputError, TriptychError
from triptych.events import Run
from triptych.notebook import PolygonMaskAnnotator
from triptych.pictures import masks
from triptych.pictures.outlines import outlines
from triptych.pictures.polygons import read_polygons, write_polygons

pytest.importorskip("anywidget")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TRIANGLE = [[[10, 10], [60, 10], [60.5, 80]]]


@pytest.fixture
def annotator() -> PolygonMaskAnnotator:
    return PolygonMaskAnnotator(Image.new("RGB", (100, 120), "navy"))


def test_what_the_browser_sets_becomes_the_mask(annotator: PolygonMaskAnnotator) -> None:
    assert annotator.polygons == []
    annotator.widget.set_state({"polygons": TRIANGLE})
    mask = annotator.get_mask()
    assert mask.shape == (120, 100)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    assert mask[12, 40] == 255
    assert mask[100, 20] == 0
    assert annotator.polygons == [[(10.0, 10.0), (60.0, 10.0), (60.5, 80.0)]]
    assert annotator.preview().size == (100, 120)


def test_a_saved_polygon_is_what_tryon_reads(annotator: PolygonMaskAnnotator, tmp_path: Path) -> None:
    annotator.widget.set_state({"polygons": TRIANGLE})
    path = annotator.save(tmp_path / "sub" / "polygon.json")
    assert read_polygons(path, (100, 120)) == annotator.polygons
    again = PolygonMaskAnnotator(annotator.image, read_polygons(path))
    assert (again.get_mask() == annotator.get_mask()).all()
    with pytest.raises(InputError, match="drawn on a photo of"):
        read_polygons(path, (50, 60))


def test_files_are_loaded_to_be_corrected(annotator: PolygonMaskAnnotator, tmp_path: Path) -> None:
    """A mask with a hole, as --mask-out writes it; a file with a hole of its own; one of another program."""
    mask = np.zeros((120, 100), bool)
    mask[10:90, 10:80] = True
    mask[30:60, 30:50] = False
    write_polygons(tmp_path / "out.json", outlines(mask), (100, 120))
    again = PolygonMaskAnnotator(annotator.image, tmp_path / "out.json")
    assert np.array_equal(again.get_mask() > 0, mask)
    assert len(again.widget.polygons) == 1, "the hole hangs on the outline, where the canvas shows it"
    square = [(10.0, 10.0), (80.0, 10.0), (80.0, 90.0), (10.0, 90.0)]
    hole = [(30.0, 30.0), (50.0, 30.0), (50.0, 60.0), (30.0, 60.0)]
    write_polygons(tmp_path / "hole.json", [square], (100, 120), [hole])
    again = PolygonMaskAnnotator(annotator.image, str(tmp_path / "hole.json"))
    assert np.array_equal(again.get_mask() > 0, mask)
    assert again.save(tmp_path / "new.json").read_text() == (tmp_path / "hole.json").read_text()
    again.clear()
    assert (again.polygons, again.holes) == ([], [])
    (tmp_path / "me.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    assert np.allclose(PolygonMaskAnnotator(annotator.image, tmp_path / "me.txt").polygons[0][1], (50, 12))


def test_nothing_drawn_is_a_sentence(annotator: PolygonMaskAnnotator, tmp_path: Path) -> None:
    annotator.polygons = [[(1.0, 1.0), (9.0, 1.0), (9.0, 9.0)]]
    annotator.clear()
    assert annotator.widget.polygons == []
    for use in (annotator.get_mask, annotator.preview, lambda: annotator.save(tmp_path / "polygon.json")):
        with pytest.raises(InputError, match="Nothing is drawn yet") as caught:
            use()
        assert "close" in caught.value.hint
    assert not (tmp_path / "polygon.json").exists()


def test_malformed_polygons_are_refused(annotator: PolygonMaskAnnotator) -> None:
    with pytest.raises(InputError, match="fewer than 3 corners"):
        annotator.polygons = [[(1, 1), (2, 2)]]
    annotator.polygons = [[(500, 500), (600, 500), (600, 600)]]
    with pytest.raises(InputError, match="outside the photo of 100×120"):
        annotator.get_mask()
    annotator.widget.set_state({"polygons": TRIANGLE, "holes": [[[20, 20], ["30", 20], [30, 30]]]})
    with pytest.raises(InputError, match="corner 2 of hole 1 is not a pair of numbers"):
        annotator.get_mask()


def test_show_displays_the_widget(annotator: PolygonMaskAnnotator, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    assert annotator.show() is None
    assert shown == [annotator.widget]
    assert "application/vnd.jupyter.widget-view+json" in annotator._repr_mimebundle_()[0]


def test_the_browser_gets_a_small_preview_but_full_coordinates(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000), "teal").save(tmp_path / "person.jpg")
    annotator = PolygonMaskAnnotator(tmp_path / "person.jpg")
    assert (annotator.widget.width, annotator.widget.height) == (4000, 3000)
    kind, data = annotator.widget.image_url.split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (1600, 1200)
    annotator.widget.set_state({"polygons": [[[3000, 2000], [3900, 2000], [3900, 2900]]]})
    assert annotator.get_mask().shape == (3000, 4000)
    assert annotator.get_mask()[2010, 3890] == 255


def test_a_path_is_turned_upright_as_tryon_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "red").save(tmp_path / "person.jpg", exif=exif)
    assert PolygonMaskAnnotator(str(tmp_path / "person.jpg")).image.size == (40, 80)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    assert PolygonMaskAnnotator(np.zeros(shape, np.uint8), [[(1, 1), (9, 1), (9, 9)]]).get_mask().shape == (
        20,
        30,
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 30, 3)),
        np.zeros((20, 30, 2), np.uint8),
        np.zeros((0, 3), np.uint8),
        np.zeros(5, np.uint8),
        7,
        None,
    ],
)
def test_what_is_no_picture(image: Any) -> None:
    with pytest.raises(InputError, match="not a picture") as caught:
        PolygonMaskAnnotator(image)
    assert caught.value.hint


def test_without_anywidget_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)  # makes its import fail
    notebook._canvas_class.cache_clear()
    with pytest.raises(TriptychError, match="anywidget") as caught:
        PolygonMaskAnnotator(Image.new("RGB", (8, 8)))
    assert "pip install '.[notebook]'" in caught.value.hint


def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, with an outline set where a person would draw one and with a stand-in for the
    large model.
    """
    book = nbformat.read(NOTEBOOKS / "tryon.ipynb", as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)

    def stand_in(config: Any) -> Run:
        assert isinstance(config, triptych.TryonConfig)
        masks.polygon_mask(read_polygons(config.polygon, (60, 80)), (60, 80))
        shutil.copy(config.person, config.out)
        return Run("tryon", 0, iter(()), {"images": [str(config.out)]})

    (tmp_path / "photos").mkdir()
    for photo in ("front.jpg", "back.jpg", "person.jpg"):
        Image.new("RGB", (60, 80), "teal").save(tmp_path / "photos" / photo)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(triptych, "tryon", stand_in, raising=False)
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell.source, "tryon.ipynb", "exec"), names)
        if "annotator.show()" in cell.source:
            names["annotator"].widget.set_state({"polygons": [[[10, 10], [50, 10], [50, 70]]]})
    assert (tmp_path / "tryon.png").exists()


def test_the_first_tryon_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom in a kernel of its own, with nobody there to draw."""
    book = nbformat.read(NOTEBOOKS / "first_tryon.ipynb", as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    monkeypatch.setenv("PYTHONPATH", str(Path(triptych.__file__).parents[1]))
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert "%pip" in book.cells[1].source and not book.cells[1].outputs, "installed already: nothing to say"
    last = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})][-1]
    row = np.asarray(Image.open(io.BytesIO(base64.b64decode(last))).convert("RGB"), np.int16)
    before, mask, after = np.split(row, 3, axis=1)
    kept, repainted = mask[..., 0] == 0, mask[..., 0] == 255
    assert 0.05 < repainted.mean() < 0.4
    assert (before[kept] == after[kept]).all(), "bit for bit"
    saved = np.asarray(Image.open(tmp_path / "first_tryon.png").convert("RGB"))
    assert (saved == after).all()
    for colour in ((250, 215, 35), (35, 70, 215)):
        worn, old = (
            (np.abs(picture - colour)[repainted].max(axis=1) < 60).mean() for picture in (after, before)
        )
        assert worn > 0.1 > 0.01 > old, "stripes of both colours"
