"""The polygon canvas: its Python side as a browser would drive it, and the real thing in a real browser."""

from __future__ import annotations

import base64
import http.server
import io
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

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
CHROMIUM = "/usr/bin/chromium"
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
    book = nbformat.read(Path(__file__).parents[1] / "notebooks" / "tryon.ipynb", as_version=4)
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


# --- in a browser
# -----------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><meta charset="utf-8"><title>canvas</title><body style="margin:20px">
<div id="here" style="width:400px"></div>
<script type="module">
import widget, { mountPolygonCanvas } from "./polygon_canvas.js";
const here = document.getElementById("here");
window.calls = [];
if (location.hash === "#widget") {
  const values = { image_url: "photo.png", width: 800, height: 1200, polygons: [] };
  const listeners = new Set();
  window.model = {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; listeners.forEach((listener) => listener()); },
    save_changes: () => window.calls.push(values.polygons),
    on: (name, listener) => listeners.add(listener),
    off: (name, listener) => listeners.delete(listener),
    listeners,
  };
  window.leave = widget.render({ model: window.model, el: here });
} else {
  const onChange = (polygons) => window.calls.push(polygons);
  window.canvas = mountPolygonCanvas(here, { imageUrl: "photo.png", width: 800, height: 1200, onChange });
}
window.ready = true;
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A static page with the canvas 400 px wide on a photo of 800 × 1200 px: one CSS pixel is two photo
    pixels.
    """
    folder = tmp_path_factory.mktemp("site")
    (folder / "polygon_canvas.js").write_text(
        (resources.files("triptych") / "web" / "polygon_canvas.js").read_text(encoding="utf-8")
    )
    (folder / "index.html").write_text(PAGE)
    photo = Image.linear_gradient("L").resize((400, 600)).convert("RGB")  # a preview, half the photo's size
    photo.paste((200, 120, 60), (100, 150, 300, 450))
    photo.save(folder / "photo.png")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no chromium at {CHROMIUM}")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        yield (started := playwright.chromium.launch(executable_path=CHROMIUM, args=flags))
        started.close()


class Canvas:
    """A page with the canvas, addressed in pixels of the photo."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 700, "height": 1000}, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_function("window.ready")
        self.measure()

    def measure(self) -> None:
        self.box = self.page.locator("canvas").bounding_box()
        self.scale = self.box["width"] / 800

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.box["x"] + x * self.scale, self.box["y"] + y * self.scale

    def click(self, *points: tuple[float, float]) -> None:
        for point in points:
            self.page.mouse.click(*self.at(*point))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=4)
        self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    calls = property(lambda self: self.page.evaluate("window.calls"))
    status = property(lambda self: self.page.locator(".status").inner_text())


@pytest.fixture
def mount(browser: Any, site: str) -> Iterator[Callable[..., Canvas]]:
    opened: list[Canvas] = []

    def open_(fragment: str = "", **options: Any) -> Canvas:
        opened.append(Canvas(browser, site + fragment, **options))
        return opened[-1]

    yield open_
    for canvas in opened:
        assert all(url.startswith(site.removesuffix("index.html")) for url in canvas.requests), (
            "no request leaves the page"
        )
        assert not canvas.errors
        canvas.context.close()


def same(drawn: Any, expected: Any) -> bool:
    """Equal to within one photo pixel: the mouse stands on whole CSS pixels of a scaled canvas."""
    sizes = [[len(corners) for corners in polygons] for polygons in (drawn, expected)]
    return sizes[0] == sizes[1] and all(
        np.allclose(a, b, atol=1) for a, b in zip(drawn, expected, strict=True)
    )


SQUARE = [(200, 300), (600, 300), (600, 900), (200, 900)]


@pytest.mark.browser
def test_draw_close_drag(mount: Callable[..., Canvas], tmp_path: Path) -> None:
    canvas = mount()
    assert canvas.box["width"] == pytest.approx(400, abs=1)
    canvas.click(*SQUARE)
    assert canvas.calls == [], "an open outline does not count"
    assert "4 corners, not closed yet" in canvas.status
    canvas.click(SQUARE[0])
    assert len(canvas.calls) == 1
    assert same(canvas.calls[-1], [SQUARE])
    canvas.drag(SQUARE[2], (700, 1000))
    assert same(canvas.calls[-1], [[SQUARE[0], SQUARE[1], (700, 1000), SQUARE[3]]])
    canvas.press("Control+z")
    assert same(canvas.calls[-1], [SQUARE])
    canvas.press("Control+y")
    canvas.drag((700, 1000), (900, 1400))
    assert canvas.calls[-1][0][2] == [800, 1200], "kept inside the photo"
    assert "inside = repainted" in canvas.page.locator(".legend").inner_text()
    shot = Image.open(io.BytesIO(canvas.page.screenshot(path=tmp_path / "canvas.png"))).convert("RGB")
    inside, outside = (shot.getpixel(tuple(round(v) for v in canvas.at(x, 500))) for x in (400, 100))
    assert inside[0] > inside[1] + 60, "tinted"
    assert max(outside) - min(outside) < 5, "grey as it was"


@pytest.mark.browser
def test_a_hole_that_hangs_on_its_outline(mount: Callable[..., Canvas], tmp_path: Path) -> None:
    """As `outlines` writes it: it is not tinted, and the two corners at each end of its cut move together."""
    hole = [(300, 500), (500, 500), (500, 700), (300, 700)]
    joined = [SQUARE[0], (200, 500), hole[0], *hole[1:], hole[0], (200, 500), SQUARE[3], SQUARE[2], SQUARE[1]]
    canvas = mount()
    canvas.page.evaluate("(polygons) => window.canvas.setPolygons(polygons)", [joined])
    shot = Image.open(io.BytesIO(canvas.page.screenshot(path=tmp_path / "hole.png"))).convert("RGB")
    inside, hollow = (
        shot.getpixel(tuple(round(v) for v in canvas.at(*at))) for at in ((400, 800), (400, 600))
    )
    assert hollow == (200, 120, 60) and inside[0] > hollow[0] + 10, "the photo's own colour in the hole"
    canvas.drag((300, 500), (350, 550))
    moved = [(350, 550) if corner == hole[0] else corner for corner in joined]
    assert same(canvas.calls[-1], [moved])
    canvas.press("Shift+ArrowRight")
    assert same(canvas.calls[-1], [[(390, 550) if corner == (350, 550) else corner for corner in moved]])


@pytest.mark.browser
def test_several_outlines_select_delete_clear(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click((100, 100), (300, 100))
    canvas.page.mouse.dblclick(*canvas.at(300, 300))
    assert same(canvas.calls[-1], [[(100, 100), (300, 100), (300, 300)]]), (
        "a double click sets one corner and closes"
    )
    canvas.click((500, 500), (700, 500), (700, 700))
    canvas.press("Enter")
    assert len(canvas.calls[-1]) == 2
    assert canvas.status.startswith("2 outlines")
    canvas.click((280, 150))  # inside the first
    canvas.press("Delete")
    assert same(canvas.calls[-1], [[(500, 500), (700, 500), (700, 700)]])
    canvas.page.get_by_role("button", name="Undo").click()
    assert len(canvas.calls[-1]) == 2
    canvas.page.get_by_role("button", name="Clear all").click()
    assert canvas.calls[-1] == []
    assert canvas.status.startswith("Nothing is repainted yet")


@pytest.mark.browser
def test_backspace_and_escape(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click((100, 100), (300, 100), (300, 300), (700, 700))
    canvas.press("Backspace", "Backspace", "Enter")
    assert canvas.status.startswith("2 corners"), "two corners enclose nothing"
    canvas.click((300, 300))
    canvas.press("Enter")
    assert same(canvas.calls[-1], [[(100, 100), (300, 100), (300, 300)]])
    canvas.click((500, 500), (700, 500), (700, 700))
    canvas.press("Escape")
    assert canvas.status.startswith("1 outline.")
    assert len(canvas.calls) == 1


@pytest.mark.browser
def test_keyboard_alone(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.page.locator("canvas").focus()
    canvas.press("Space", *["Shift+ArrowRight"] * 5, "Space", *["Shift+ArrowDown"] * 5, "Space", "Enter")
    assert same(canvas.calls[-1], [[(400, 600), (600, 600), (600, 800)]])
    canvas.press("n", "n", "Shift+ArrowUp", "ArrowUp")
    assert same(canvas.calls[-1], [[(400, 600), (600, 556), (600, 800)]])
    canvas.press("Delete")
    assert canvas.calls[-1] == []


@pytest.mark.browser
def test_keys_do_not_reach_the_notebook(mount: Callable[..., Canvas]) -> None:
    """In JupyterLab D D on anything that is no text field deletes the cell."""
    canvas = mount()
    canvas.page.evaluate(
        "window.seen = []; document.addEventListener('keydown', (event) => window.seen.push(event.key))"
    )
    canvas.page.locator("canvas").focus()
    canvas.press("d", "d", "b", "Enter", "Escape", "ArrowDown", "Control+z", "Control+s")
    canvas.page.get_by_role("button", name="Clear all").dispatch_event(
        "keydown", {"key": "d", "bubbles": True}
    )
    assert [key for key in canvas.page.evaluate("window.seen") if key != "Control"] == ["s"]


@pytest.mark.browser
def test_touch_on_a_dense_screen(mount: Callable[..., Canvas]) -> None:
    canvas = mount(has_touch=True, device_scale_factor=2)
    assert canvas.page.evaluate("document.querySelector('canvas').width") == pytest.approx(800, abs=2), (
        "drawn in device pixels"
    )
    for point in [*SQUARE, (220, 320)]:  # a finger that meets the first corner only roughly
        canvas.page.touchscreen.tap(*canvas.at(*point))
    assert same(canvas.calls[-1], [SQUARE])
    canvas.page.touchscreen.tap(*canvas.at(400, 600))
    canvas.page.get_by_role("button", name="Delete selected").tap()
    assert canvas.calls[-1] == []


@pytest.mark.browser
def test_a_resize_moves_nothing(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click(*SQUARE, SQUARE[0])
    before = canvas.calls[-1]
    canvas.page.evaluate("document.getElementById('here').style.width = '200px'")
    canvas.page.wait_for_function("document.querySelector('canvas').getBoundingClientRect().width < 210")
    canvas.measure()
    assert canvas.page.evaluate("window.canvas.getPolygons()") == before
    canvas.drag(SQUARE[0], (100, 100))
    assert np.allclose(canvas.calls[-1][0][0], (100, 100), atol=4)
    assert canvas.calls[-1][0][1:] == before[0][1:]
    canvas.page.evaluate("window.canvas.destroy()")
    assert canvas.page.locator("canvas").count() == 0


@pytest.mark.browser
def test_the_widget_talks_to_its_model(mount: Callable[..., Canvas]) -> None:
    canvas = mount("#widget")
    canvas.click(*SQUARE)
    canvas.press("Enter")
    assert same(canvas.calls[-1], [SQUARE])
    canvas.page.evaluate("model.set('polygons', [[[0, 0], [100, 0], [100, 100]]])")  # as Python would
    assert canvas.status.startswith("1 outline.")
    assert len(canvas.calls) == 1, "what came from Python is not sent back"
    canvas.page.evaluate("model.set('polygons', [])")
    assert canvas.status.startswith("Nothing")
    canvas.page.evaluate("leave()")
    assert canvas.page.locator("canvas").count() == 0
    assert canvas.page.evaluate("model.listeners.size") == 0
