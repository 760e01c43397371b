"""The page of `app` in a real browser: by mouse, by keyboard, by touch; nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.canvas_page import chromium
from tests.test_page import TOKEN, running
from tests.test_serve import Client, photos  # noqa: F401 - a fixture
from triptych.session import Session
from triptych.verbs.tryon import TryonConfig, tryon

pytestmark = pytest.mark.browser
SOON, LATER = 60_000, 120_000
"""Most milliseconds to wait for the page, and for a picture, on a machine that has other things to do."""


class Page:
    """The page in a window of its own, with all that it asks for and complains about."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address, self.client = address, Client(address)
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_default_timeout(SOON)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda told: told.type == "error" and self.complaints.append(told.text))

    def open(self) -> Any:
        self.page.goto(self.address)
        self.at("go").wait_for(timeout=SOON)
        self.page.wait_for_timeout(1000)  # until its events are bound
        return self.page

    def at(self, name: str, inside: str = "") -> Any:
        return self.page.locator(f"#tryon-{name} {inside}".strip())

    def outlines(self) -> str:
        """What the canvas says about itself."""
        return str(self.at("canvas", ".status").inner_text())

    def steps(self, number: int) -> None:
        """Open the settings and set the steps. What is typed while they are still being drawn is lost."""
        self.at("settings", "button").first.click()
        field = self.at("num-inference-steps", "input")
        for _ in range(20):
            field.fill(str(number))
            self.page.wait_for_timeout(500)
            if field.input_value() == str(number):
                return
        raise AssertionError("the field does not keep what is typed")

    def made(self) -> list[dict[str, Any]]:
        """The jobs, newest first, once the newest one's pictures are shown."""
        self.at("pictures", "img").first.wait_for(timeout=LATER)
        return list(self.client.json("GET", "/v1/jobs")[1]["jobs"])

    def close(self) -> None:
        self.context.close()
        own = [url for url in self.requests if url.startswith((self.address, "data:", "blob:"))]
        assert own == self.requests, "nothing leaves the machine"
        assert not self.complaints


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    pages: list[Page] = []

    def open_(**options: Any) -> Page:
        pages.append(Page(browser, address, **options))
        pages[-1].open()
        return pages[-1]

    yield open_
    for page in pages:
        page.close()


def test_by_mouse_the_same_picture_as_everywhere(
    opened: Any,
    photos: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Drop, propose, correct, run, see, download: hash for hash what the API and the command line make."""
    page = opened()
    page.at("kind", "input").click()
    page.page.get_by_role("option", name="dress", exact=True).click()
    page.page.wait_for_function(
        "document.querySelector('#tryon-prompt textarea').value.includes('wearing the dress')"
    )
    for name, path in photos.items():
        page.at(name, "input[type=file]").set_input_files(path)
    page.at("canvas", "canvas").wait_for(timeout=SOON)
    page.page.wait_for_function(
        "document.querySelector('#tryon-canvas .status').innerText.startsWith('1 outline')"
    )
    page.at("canvas", "canvas").scroll_into_view_if_needed()
    box = page.at("canvas", "canvas").bounding_box()
    page.page.mouse.click(box["x"] + 8, box["y"] + 8)
    page.page.mouse.click(box["x"] + 48, box["y"] + 8)
    page.page.mouse.dblclick(box["x"] + 48, box["y"] + 48)
    page.steps(2)
    page.at("seed", "input").fill("4")
    page.at("go").click()
    (job, *_) = page.made()
    assert len(job["settings"]["polygons"]) >= 2, "the proposal and the outline that was added"
    assert job["settings"]["front"] == hashlib.sha256(photos["front"].read_bytes()).hexdigest()
    page.at("slider", "img").first.wait_for(timeout=SOON)
    with page.page.expect_download() as saved:
        page.at("pictures", "a").click()
    data = Path(saved.value.path()).read_bytes()
    assert data == page.client("GET", job["results"][0])[2], "the job's very file"

    assert job["settings"]["num_inference_steps"] == 2, "what was typed is what was asked for"
    area = {name: job["settings"][name] for name in ("polygons", "holes") if name in job["settings"]}
    settings = {"prompt": job["settings"]["prompt"], "num_inference_steps": 2, "seed": 4}
    ids = {name: job["settings"][name] for name in photos}
    _, other = page.client.json("POST", "/v1/tryon", {**settings, **ids, **area})
    assert page.client("GET", page.client.ended(other["id"])["results"][0])[2] == data, "the API"
    polygon = tmp_path / "polygon.json"
    polygon.write_text(json.dumps(area))
    own = {"model": "pocket-klein", "device": "cpu", "dtype": "fp32"}
    config = TryonConfig(**own, **settings, **photos, polygon=polygon, out=tmp_path / "new.png")
    (made,) = tryon(config).finish()["images"]
    theirs = np.asarray(Image.open(saved.value.path()))
    assert np.array_equal(np.asarray(Image.open(made)), theirs), "the command line"
    opened_photos = {name: Image.open(path).convert("RGB") for name, path in photos.items()}
    (picture,) = Session(**own).try_on(
        **opened_photos, polygons=polygon, prompt=settings["prompt"], seeds=[4], num_inference_steps=2
    )
    assert np.array_equal(np.asarray(picture.image), theirs), "the session"
    again(page, Path(saved.value.path()), tmp_path)


def again(page: Page, made: Path, tmp_path: Path) -> None:
    """The same picture once more, from its file alone, on a page that was opened anew."""
    before = page.client.json("GET", "/v1/jobs")[1]["jobs"][0]["number"]
    picture = tmp_path / "made.png"
    picture.write_bytes(made.read_bytes())
    page.open()
    page.at("again", "button").first.click()
    page.at("made", "input[type=file]").set_input_files(picture)
    page.page.wait_for_function("document.querySelector('#tryon-taken').innerText.includes('filled in')")
    page.at("canvas", "canvas").wait_for(timeout=SOON)
    assert "outlines" in page.outlines() and page.at("seed", "input").input_value() == "4"
    page.at("go").click()
    (job, *_) = page.made()
    assert job["number"] > before
    theirs = page.client("GET", job["results"][0])[2]
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(Path(_kept(tmp_path, theirs)))))


def _kept(folder: Path, data: bytes) -> Path:
    (folder / "again.png").write_bytes(data)
    return folder / "again.png"


def test_by_keyboard_alone(opened: Any) -> None:
    page = opened()

    def there(id: str, inside: str = "") -> bool:
        """Whether something inside has the focus."""
        return page.page.evaluate(f"Boolean(document.activeElement.closest('#tryon-{id}{inside}'))")

    def to(id: str, inside: str = "") -> None:
        """Tab to it."""
        for _ in range(150):
            page.page.keyboard.press("Tab")
            if there(id, inside):
                return
        raise AssertionError(f"{id} cannot be reached")

    to("examples")
    page.page.keyboard.press("Enter")
    page.at("canvas", "canvas").wait_for(timeout=SOON)
    page.page.wait_for_function(
        "document.querySelector('#tryon-canvas .status').innerText.startsWith('1 outline')"
    )
    to("canvas", " canvas")
    page.page.keyboard.press("n")
    page.page.keyboard.press("Shift+ArrowLeft")
    to("settings")
    page.page.keyboard.press("Enter")
    for _ in range(20):  # what is typed while the settings are still being drawn is lost, see `steps`
        if not there("num-inference-steps", " input"):
            to("num-inference-steps", " input")
        page.page.keyboard.press("Control+a")
        page.page.keyboard.type("2")
        page.page.wait_for_timeout(500)
        if page.at("num-inference-steps", "input").input_value() == "2":
            break
    to("go")
    page.page.keyboard.press("Enter")
    (job, *_) = page.made()
    assert job["state"] == "done" and job["settings"]["num_inference_steps"] == 2


def test_by_touch_on_a_phone(opened: Any) -> None:
    page = opened(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    page.at("examples").tap()
    page.at("canvas", "canvas").wait_for(timeout=SOON)
    page.page.wait_for_function(
        "document.querySelector('#tryon-canvas .status').innerText.startsWith('1 outline')"
    )
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    page.at("canvas").get_by_role("button", name="Clear all").tap()
    page.at("canvas", "canvas").scroll_into_view_if_needed()
    box = page.at("canvas", "canvas").bounding_box()

    def tap(x: float, y: float) -> None:
        page.page.touchscreen.tap(box["x"] + x * box["width"], box["y"] + y * box["height"])

    for x, y in ((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)):
        tap(x, y)
    page.at("go").tap()
    page.page.get_by_text("An outline is not closed yet: it has 4 corners.").wait_for(timeout=SOON)
    page.at("canvas").get_by_role("button", name="Close outline").tap()
    page.steps(2)
    page.at("go").tap()
    (job, *_) = page.made()
    assert [len(corners) for corners in job["settings"]["polygons"]] == [4]
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_all_tabs_have_one_width_and_empty_ones_show_no_idle_controls(opened: Any) -> None:
    page = opened()
    for width in (1280, 390):
        page.page.set_viewport_size({"width": width, "height": 844})
        edges = set()
        for tab in ("Try on", "Catalogue", "Captions", "Train", "Jobs"):
            page.page.get_by_role("tab", name=tab, exact=True).click()
            page.page.wait_for_timeout(300)  # the tab is laid out, and its files are looked at
            edges.add(page.page.evaluate("document.querySelector('h1').getBoundingClientRect().left"))
            assert page.page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
        assert len(edges) == 1, edges
    page.page.get_by_role("tab", name="Catalogue", exact=True).click()
    for tab, board in (("Photos", "catalogue"), ("Captions", "captions")):
        page.page.get_by_role("tab", name=tab, exact=True).click()
        page.page.locator(f"#{board}-board .triptych-empty").wait_for(timeout=SOON)
        assert not page.page.locator(f"#{board}-search:visible, #{board}-on:visible").count()


def test_mistakes_are_shown_in_place_and_jobs_are_listed(opened: Any, address: str) -> None:
    page = opened()
    page.at("go").click()
    page.page.get_by_text("There is no photo of the garment yet.").wait_for(timeout=SOON)
    page.at("examples").click()
    page.at("canvas", "canvas").wait_for(timeout=SOON)
    page.steps(100)
    page.at("go").click()
    page.at("cancel").click()
    page.page.get_by_text("Cancelled.").first.wait_for(timeout=SOON)
    page.page.get_by_role("tab", name="Jobs").click()
    page.page.locator("#jobs-list .is-cancelled").first.wait_for(timeout=SOON)


def test_axe_finds_nothing_serious_and_paint_is_taken(opened: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened()

    def check() -> None:
        found = axe.run(page.page).response["violations"]
        bad = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not bad, [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in bad]

    check()
    page.at("examples").click()
    page.at("canvas", "canvas").wait_for(timeout=SOON)
    page.steps(1)
    for button in ("again", "edit"):
        page.at(button, "button").first.click()
    page.at("editor", "canvas").first.wait_for(timeout=SOON)
    page.at("editor").scroll_into_view_if_needed()
    page.page.wait_for_timeout(1000)  # the editor is drawn when it is seen
    box = page.at("editor", "canvas").first.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.mouse.move(*middle)
    page.page.mouse.down()
    page.page.mouse.move(middle[0] + 30, middle[1] + 10, steps=5)
    page.page.mouse.up()
    page.at("go").click()
    (job, *others) = page.made()
    dropped = {one["settings"]["person"] for one in others}
    assert job["settings"]["person"] not in dropped, "the painted photo is another one"
    check()
    page.page.get_by_role("tab", name="Jobs").click()
    page.page.locator("#jobs-list .is-done").first.wait_for(timeout=SOON)
    check()


def test_a_token_is_asked_for(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", TOKEN)
    with running(tmp_path) as address:
        page = Page(browser, address)
        page.page.goto(address)
        page.page.get_by_label("Token").fill(TOKEN)
        page.page.get_by_role("button", name="Open").click()
        page.at("examples").click(timeout=SOON)
        page.at("canvas", "canvas").wait_for(timeout=SOON)
        page.close()
