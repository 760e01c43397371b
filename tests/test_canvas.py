"""The polygon canvas in Debian's Chromium: by mouse, by touch, by keyboard alone, and with its host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.canvas_page import CHROMIUM, SIZE, Canvas, chromium, serve
from triptych.notebook import PolygonMaskAnnotator
from triptych.pictures.polygons import read_outlines
from triptych.verbs.tryon import TryonConfig, tryon

pytest.importorskip("playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no chromium at {CHROMIUM}"),
]
SQUARE = [(200, 300), (600, 300), (600, 900), (200, 900)]
HOLE = [(300, 500), (500, 500), (500, 700), (300, 700)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("site")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def mount(browser: Any, site: str) -> Iterator[Callable[..., Canvas]]:
    opened: list[Canvas] = []

    def open_(fragment: str = "", **options: Any) -> Canvas:
        opened.append(Canvas(browser, site + fragment, **options))
        return opened[-1]

    yield open_
    for canvas in opened:
        home = site.removesuffix("index.html")
        assert all(url.startswith(home) for url in canvas.requests), "no request leaves the page"
        assert not canvas.errors
        canvas.context.close()


def same(drawn: Any, expected: Any, atol: float = 1) -> bool:
    """Equal to within one photo pixel: the mouse stands on whole CSS pixels of a scaled canvas."""
    sizes = [[len(corners) for corners in polygons] for polygons in (drawn, expected)]
    return sizes[0] == sizes[1] and all(
        np.allclose(a, b, atol=atol) for a, b in zip(drawn, expected, strict=True)
    )


def moved(corners: list[tuple[float, float]], dx: float, dy: float) -> list[tuple[float, float]]:
    return [(x + dx, y + dy) for x, y in corners]


# --- by mouse
# ---------------------------------------------------------------------------------------------------


def test_draw_close_drag(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    assert canvas.box["width"] == pytest.approx(400, abs=1)
    canvas.click(*SQUARE)
    assert canvas.calls == 0, "an open outline does not count"
    assert "4 corners, not closed yet" in canvas.status
    canvas.drag((200, 900), (250, 850))
    canvas.drag((250, 850), (200, 900))
    canvas.click(SQUARE[0])
    assert canvas.calls == 1 and same(canvas.drawn, [SQUARE])
    assert canvas.status.startswith("Outline closed. 1 outline. Outline 1 is selected")
    canvas.drag(SQUARE[2], (700, 1000))
    assert same(canvas.drawn, [[SQUARE[0], SQUARE[1], (700, 1000), SQUARE[3]]])
    canvas.press("Control+z")
    assert same(canvas.drawn, [SQUARE])
    canvas.press("Control+y")
    canvas.drag((700, 1000), (900, 1400))
    assert canvas.drawn[0][2] == [800, 1200], "kept inside the photo"
    inside, outside = canvas.colour(400, 500), canvas.colour(100, 500)
    assert inside[0] > inside[1] + 60, "tinted"
    assert max(outside) - min(outside) < 5, "grey as it was"
    canvas.press("Control+z", "Control+z", "Control+z")
    assert canvas.drawn == [] and "4 corners, not closed yet" in canvas.status
    canvas.press("Control+z", "Escape")
    assert "Nothing is repainted yet" in canvas.status


def test_an_outline_is_moved_and_its_corners_come_and_go(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click(*SQUARE, SQUARE[0])
    canvas.drag((400, 700), (500, 600))
    assert same(canvas.drawn, [moved(SQUARE, 100, -100)])
    canvas.drag((400, 700), (800, 700))
    assert same(canvas.drawn, [moved(SQUARE, 200, -100)]), "as a whole it stops at the edge of the photo"
    canvas.press("Control+z", "Control+z")
    canvas.page.mouse.move(*canvas.at(400, 600))
    canvas.page.mouse.down()
    canvas.page.mouse.move(*canvas.at(500, 600), steps=3)
    canvas.press("Escape")
    canvas.page.mouse.up()
    assert same(canvas.drawn, [SQUARE]) and canvas.button("Redo").is_enabled(), "Esc puts it back"
    canvas.click((250, 600))  # inside: an undone change has selected nothing
    canvas.click((600, 600))  # its right edge
    five = [*SQUARE[:2], (600, 600), *SQUARE[2:]]
    assert same(canvas.drawn, [five]) and "corner 3 of 5" in canvas.status
    canvas.drag((400, 300), (400, 200))  # its upper edge, in one go
    assert same(canvas.drawn, [[SQUARE[0], (400, 200), *five[1:]]])
    canvas.press("Control+z", "Control+z")
    assert same(canvas.drawn, [SQUARE])
    canvas.click(SQUARE[1])
    canvas.button("Delete selected").click()
    assert same(canvas.drawn, [[SQUARE[0], *SQUARE[2:]]]) and canvas.status.startswith("Corner deleted.")
    canvas.press("Delete")
    assert canvas.drawn == [], "two corners enclose nothing"


def test_a_hole_is_drawn_and_stays_as_it_is(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click(*SQUARE, SQUARE[0])
    canvas.button("Hole").click()
    assert canvas.button("Hole").get_attribute("aria-pressed") == "true"
    canvas.click(*HOLE, HOLE[0])
    assert same(canvas.drawn, [SQUARE]) and same(canvas.holes, [HOLE])
    assert canvas.status.startswith("Hole closed. 1 outline, 1 hole. Hole 1 is selected")
    assert canvas.button("Hole").get_attribute("aria-pressed") == "false", "for one hole"
    assert canvas.colour(400, 600) == (200, 120, 60), "the photo's own colour in the hole"
    assert canvas.colour(400, 800)[0] > 210
    canvas.drag((400, 600), (400, 650))
    assert same(canvas.holes, [moved(HOLE, 0, 50)]) and same(canvas.drawn, [SQUARE])
    canvas.drag((300, 550), (250, 400))
    assert same(canvas.holes, [[(250, 400), *moved(HOLE, 0, 50)[1:]]])
    canvas.press("Control+z", "Control+z", "Control+z")
    assert canvas.holes == [] and canvas.status.startswith("Hole: 4 corners, not closed yet")
    canvas.press("Control+y", "Escape")
    assert same(canvas.holes, [HOLE])
    canvas.click((400, 600))
    canvas.press("Delete")
    assert canvas.holes == [] and same(canvas.drawn, [SQUARE])


def test_a_host_that_knows_no_holes_is_offered_none(mount: Callable[..., Canvas]) -> None:
    canvas = mount("#plain")
    assert canvas.button("Hole").count() == 0
    canvas.page.locator("canvas").focus()
    canvas.press("h")
    canvas.click(*SQUARE, SQUARE[0])
    assert same(canvas.drawn, [SQUARE])


def test_a_hole_that_hangs_on_its_outline(mount: Callable[..., Canvas]) -> None:
    """As `outlines` writes it: it is not tinted, and the two corners at each end of its cut move together."""
    joined = [SQUARE[0], (200, 500), *HOLE, HOLE[0], (200, 500), SQUARE[3], SQUARE[2], SQUARE[1]]
    canvas = mount()
    canvas.page.evaluate("(polygons) => window.canvas.setPolygons(polygons)", [joined])
    assert canvas.colour(400, 600) == (200, 120, 60) and canvas.colour(400, 800)[0] > 210
    canvas.drag((300, 500), (350, 550))
    now = [(350, 550) if corner == HOLE[0] else corner for corner in joined]
    assert same(canvas.drawn, [now])
    canvas.press("Shift+ArrowRight")
    assert same(canvas.drawn, [[(390, 550) if corner == (350, 550) else corner for corner in now]])


def test_several_outlines_select_delete_clear(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click((100, 100), (300, 100))
    canvas.page.mouse.dblclick(*canvas.at(300, 300))
    assert same(canvas.drawn, [[(100, 100), (300, 100), (300, 300)]]), (
        "a double click sets one corner and closes"
    )
    canvas.click((500, 500), (700, 500), (700, 700), (100, 1000))
    canvas.press("Backspace", "Enter")
    assert len(canvas.drawn) == 2
    assert "2 outlines" in canvas.status
    canvas.click((280, 150))  # inside the first
    canvas.press("Delete")
    assert same(canvas.drawn, [[(500, 500), (700, 500), (700, 700)]])
    canvas.button("Undo").click()
    assert len(canvas.drawn) == 2
    canvas.button("Clear all").click()
    assert canvas.drawn == []
    assert canvas.status.startswith("All cleared. Nothing is repainted yet")
    canvas.click((500, 500), (700, 500))
    canvas.press("Enter")
    assert canvas.status.startswith("2 corners"), "two corners enclose nothing"


def test_a_closer_look_changes_no_coordinates(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click(*SQUARE, SQUARE[0])
    canvas.press("Escape")
    assert canvas.button("Fit: show the whole photo").is_disabled()
    canvas.page.mouse.move(*canvas.at(200, 300))
    event = "new WheelEvent('wheel', {deltaY: 1, cancelable: true})"
    wheel = f"document.querySelector('canvas').dispatchEvent({event})"
    assert canvas.page.evaluate(wheel), "the whole photo is in view: the page scrolls"
    canvas.page.keyboard.down("Control")
    for _ in range(3):
        canvas.page.mouse.wheel(0, -100)
    canvas.page.keyboard.up("Control")
    zoomed = np.exp(0.9)
    canvas.page.wait_for_function("!document.querySelector('[aria-label=\"Zoom out\"]').disabled")
    # The corner is still under the mouse, and a CSS pixel is now fewer photo pixels.
    canvas.drag((200, 300), (240, 340))
    assert same([canvas.drawn[0][:1]], [[(200 + 40 / zoomed, 300 + 40 / zoomed)]])
    canvas.press("Control+z")
    canvas.drag((400, 600), (300, 600), button="middle")
    canvas.page.keyboard.down("Shift")
    canvas.drag((300, 600), (300, 640))
    canvas.page.keyboard.up("Shift")
    assert same(canvas.drawn, [SQUARE]), "the view moved alone"
    canvas.drag((100, 340), (140, 380))
    assert same([canvas.drawn[0][:1]], [[(200 + 40 / zoomed, 300 + 40 / zoomed)]])
    canvas.press("Control+z")
    canvas.button("Fit: show the whole photo").click()
    canvas.drag(SQUARE[2], (700, 1000))
    assert same(canvas.drawn, [[*SQUARE[:2], (700, 1000), SQUARE[3]]])
    canvas.press("Escape", "+", "+")
    assert not canvas.page.evaluate(wheel.replace("deltaY: 1", "deltaY: -9")), "the wheel moves the view"
    canvas.press(*["Shift+ArrowLeft"] * 25)
    assert "Cross at 256, 1000." in canvas.status
    canvas.click((48, 1000), (300, 1000), (48, 1060), (48, 1000))
    assert canvas.drawn[1][0][0] == pytest.approx(256, abs=1), "the view has followed the cross"


# --- by touch, by keyboard alone
# ---------------------------------------------------------------------------------------------------


def test_touch_on_a_dense_screen(mount: Callable[..., Canvas]) -> None:
    canvas = mount(has_touch=True, device_scale_factor=2)
    assert canvas.page.evaluate("document.querySelector('canvas').width") == pytest.approx(800, abs=2), (
        "drawn in device pixels"
    )
    canvas.tap(*SQUARE, (220, 320))  # a finger that meets the first corner only roughly
    assert same(canvas.drawn, [SQUARE])
    canvas.fingers([(610, 890)], [(650, 900)], [(710, 990)])
    assert same(canvas.drawn, [[*SQUARE[:2], (700, 1000), SQUARE[3]]])
    calls = canvas.calls
    canvas.fingers([(100, 600), (200, 600)], [(50, 600), (300, 600)], [(0, 600), (400, 600)])
    assert canvas.calls == calls and canvas.status.startswith("1 outline."), "two fingers set no corner"
    assert canvas.button("Zoom out").is_enabled()
    canvas.tap((600, 600))  # in the photo (250, 600): what was between the fingers has stayed there
    canvas.fingers([(600, 600)], [(600, 640)], [(600, 680)])
    assert same(canvas.drawn, [moved([*SQUARE[:2], (700, 1000), SQUARE[3]], 0, 20)]), "at four times the size"
    canvas.button("Fit: show the whole photo").tap()
    canvas.button("Hole").tap()
    canvas.tap(*HOLE)
    canvas.button("Close outline").tap()
    assert same(canvas.holes, [HOLE])
    canvas.button("Delete selected").tap()
    assert canvas.holes == [] and len(canvas.drawn) == 1


def test_keyboard_alone(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.page.evaluate("document.querySelector('[aria-label=\"Zoom in\"]').focus()")
    canvas.press("Tab")
    assert "Cross at 400, 600." in canvas.status, "the cross is there with the focus"
    assert canvas.page.evaluate("getComputedStyle(document.querySelector('canvas')).outlineWidth") == "3px"
    canvas.press("Space", *["Shift+ArrowRight"] * 5, "Space", *["Shift+ArrowDown"] * 5, "Space", "Enter")
    triangle = [(400, 600), (600, 600), (600, 800)]
    assert same(canvas.drawn, [triangle])
    canvas.press("n", "n", "Shift+ArrowUp", "ArrowUp")
    assert same(canvas.drawn, [[(400, 600), (600, 556), (600, 800)]])
    assert "corner 2 of 3, is selected. It is at 600, 556." in canvas.status
    canvas.press("Control+z")
    assert same(canvas.drawn, [triangle]), "one step to undo, however many arrows"
    canvas.press("n", "i", "Shift+N", "Delete")
    assert same(canvas.drawn, [[(500, 600), *triangle[1:]]]), "a corner in the middle of the first edge"
    canvas.press("o", "Shift+ArrowLeft")
    assert same(canvas.drawn, [moved([(500, 600), *triangle[1:]], -40, 0)])
    canvas.press("Escape", "h", "Space", "Shift+ArrowRight", "Space", "Shift+ArrowDown", "Space", "Enter")
    assert same(canvas.holes, [[(460, 600), (500, 600), (500, 640)]]), "from where the outline's corner was"
    canvas.press("+", "+", *["Shift+ArrowRight"] * 12)
    assert "Cross at 713, 640." in canvas.status
    canvas.press("0", "o", "o", "Delete", "o", "Delete")
    assert canvas.drawn == [] and canvas.holes == []


def test_keys_do_not_reach_the_notebook(mount: Callable[..., Canvas]) -> None:
    """In JupyterLab D D on anything that is no text field deletes the cell."""
    canvas = mount()
    canvas.page.evaluate(
        "window.seen = []; document.addEventListener('keydown', (event) => window.seen.push(event.key))"
    )
    canvas.page.locator("canvas").focus()
    canvas.press("d", "d", "b", "Enter", "Escape", "ArrowDown", "Control+z", "Control+s")
    canvas.button("Clear all").dispatch_event("keydown", {"key": "d", "bubbles": True})
    assert [key for key in canvas.page.evaluate("window.seen") if key != "Control"] == ["s"]


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing_serious(mount: Callable[..., Canvas], look: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    canvas = mount(viewport={"width": 390, "height": 844}, color_scheme=look)
    canvas.page.locator("summary").click()
    canvas.press("Shift+Tab", "h")
    found = axe.run(canvas.page).response
    assert len(found["passes"]) > 10
    assert [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")] == []
    assert canvas.page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing stands over the edge"


# --- hosts
# ---------------------------------------------------------------------------------------------------


def test_a_resize_moves_nothing(mount: Callable[..., Canvas]) -> None:
    canvas = mount()
    canvas.click(*SQUARE, SQUARE[0])
    before = canvas.drawn
    canvas.page.evaluate("document.getElementById('here').style.width = '200px'")
    canvas.page.wait_for_function("document.querySelector('canvas').getBoundingClientRect().width < 210")
    canvas.measure()
    assert canvas.page.evaluate("window.canvas.getPolygons()") == before
    canvas.drag(SQUARE[0], (100, 100))
    assert np.allclose(canvas.drawn[0][0], (100, 100), atol=4)
    assert canvas.drawn[0][1:] == before[0][1:]
    canvas.page.evaluate("window.canvas.destroy()")
    assert canvas.page.locator("canvas").count() == 0


def test_the_widget_talks_to_its_model(mount: Callable[..., Canvas]) -> None:
    canvas = mount("#widget")
    canvas.click(*SQUARE)
    canvas.press("Enter")
    assert same(canvas.drawn, [SQUARE])
    canvas.page.evaluate("model.set('polygons', [[[0, 0], [100, 0], [100, 100]]])")  # as Python would
    assert canvas.status.startswith("1 outline.")
    canvas.page.evaluate("model.set('holes', [[[50, 20], [80, 20], [80, 60]]])")
    assert canvas.status.startswith("1 outline, 1 hole.")
    assert canvas.calls == 1, "what came from Python is not sent back"
    canvas.button("Clear all").click()
    assert (canvas.calls, canvas.drawn, canvas.holes) == (2, [], [])
    canvas.button("Undo").click()
    assert (canvas.calls, len(canvas.drawn), len(canvas.holes)) == (3, 1, 1), "both at once"
    canvas.page.evaluate("leave()")
    assert canvas.page.locator("canvas").count() == 0
    assert canvas.page.evaluate("model.listeners.size") == 0


def test_what_is_drawn_is_what_tryon_repaints(
    mount: Callable[..., Canvas], tiny_flux: Path, tmp_path: Path
) -> None:
    """From the mouse to the pixels: canvas, annotator, file, `tryon --polygon`, and the file tryon writes."""
    canvas = mount("#widget")
    canvas.click(*SQUARE, SQUARE[0])
    canvas.press("h")
    canvas.click(*HOLE, HOLE[0])
    photo = tmp_path / "me.png"
    Image.effect_noise(SIZE, 90).convert("RGB").save(photo)
    annotator = PolygonMaskAnnotator(photo)
    annotator.widget.set_state({"polygons": canvas.drawn, "holes": canvas.holes})
    mask = annotator.get_mask()
    assert (mask[450, 400], mask[600, 400], mask[100, 100]) == (255, 0, 0)
    saved = annotator.save(tmp_path / "me.json")
    assert read_outlines(saved, SIZE)[:2] == (annotator.polygons, annotator.holes)
    config = TryonConfig(
        front=photo,
        person=photo,
        polygon=saved,
        mask_out=tmp_path / "out.json",
        prompt="two pictures <IMAGE 1> a dress <IMAGE 2> a person wearing the dress",
        model=str(tiny_flux),
        device="cpu",
        dtype="fp32",
        num_inference_steps=1,
        feather=0,
        out=tmp_path / "out.png",
    )
    tryon(config).finish()
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(saved.read_text())
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (photo, tmp_path / "out.png"))
    changed = (before != after).any(axis=2)
    assert not changed[mask == 0].any() and changed[mask == 255].mean() > 0.9
