"""A static page around the polygon canvas, and a hand on it: mouse, fingers and keys."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = "/usr/bin/chromium"
SIZE = (800, 1200)  # of the photo; the picture the page gets is a preview of half the size

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>canvas</title>
<meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width">
<body style="margin:20px; font-family:sans-serif"><main><h1 style="font-size:20px">Canvas</h1>
<div id="here" style="max-width:400px"></div></main>
<script type="module">
import widget, { mountPolygonCanvas } from "./polygon_canvas.js";
const here = document.getElementById("here");
const size = { width: 800, height: 1200 };
window.calls = []; // [polygons, holes] of every change
const onChange = (...drawn) => window.calls.push(drawn);
if (location.hash === "#widget") {
  const values = { image_url: "photo.png", ...size, polygons: [], holes: [] };
  const listeners = new Set();
  window.model = {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; listeners.forEach((listener) => listener()); },
    save_changes: () => window.calls.push([values.polygons, values.holes]),
    on: (name, listener) => listeners.add(listener),
    off: (name, listener) => listeners.delete(listener),
    listeners,
  };
  window.leave = widget.render({ model: window.model, el: here });
} else {
  const holes = location.hash === "#plain" ? undefined : [];
  window.canvas = mountPolygonCanvas(here, { imageUrl: "photo.png", ...size, holes, onChange });
}
window.ready = true;
</script></body></html>"""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a page in `folder` with the canvas 400 px wide: one CSS pixel is two photo pixels."""
    module = resources.files("triptych") / "web" / "polygon_canvas.js"
    (folder / "polygon_canvas.js").write_text(module.read_text(encoding="utf-8"))
    (folder / "index.html").write_text(PAGE)
    photo = Image.linear_gradient("L").resize((400, 600)).convert("RGB")
    photo.paste((200, 120, 60), (100, 150, 300, 450))
    photo.save(folder / "photo.png")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        yield (started := playwright.chromium.launch(executable_path=CHROMIUM, args=flags))
        started.close()


class Canvas:
    """A page with the canvas. Points are (x, y) in pixels of the photo, wherever the view shows them."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 700, "height": 1000}, **options})
        self.context.set_default_timeout(60_000)  # of milliseconds, for a machine that has other things to do
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_function("window.ready")
        self.measure()

    def measure(self) -> None:
        """Find the canvas again, after the page has changed; the view must show the whole photo."""
        self.box = self.page.locator("canvas").bounding_box()
        self.scale = self.box["width"] / SIZE[0]

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.box["x"] + x * self.scale, self.box["y"] + y * self.scale

    def click(self, *points: tuple[float, float]) -> None:
        for point in points:
            self.page.mouse.click(*self.at(*point))

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down(button=button)
        self.page.mouse.move(*self.at(*end), steps=4)
        self.page.mouse.up(button=button)

    def tap(self, *points: tuple[float, float]) -> None:
        for point in points:
            self.page.touchscreen.tap(*self.at(*point))

    def fingers(self, *steps: list[tuple[float, float]]) -> None:
        """Put fingers down at the points of the first step, move them to those of the others, lift them.

        They rest before they are lifted: a browser takes a tap right after a quick move for the end of it.
        """
        session = self.context.new_cdp_session(self.page)
        for number, points in enumerate([*steps, []]):
            if not points:
                self.page.wait_for_timeout(150)
            kind = "touchEnd" if not points else "touchStart" if number == 0 else "touchMove"
            places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(self.at(*one) for one in points)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
        session.detach()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def colour(self, x: float, y: float) -> tuple[int, int, int]:
        """What the screen shows at a point of the photo."""
        left, top = self.at(x, y)
        clip = {"x": left, "y": top, "width": 1, "height": 1}
        shot = Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")
        return shot.getpixel((0, 0))

    @property
    def calls(self) -> int:
        """How many changes the host has been told."""
        return self.page.evaluate("window.calls.length")

    @property
    def drawn(self) -> Any:
        """The polygons that the host has been told last."""
        return self.page.evaluate("window.calls.at(-1)[0]")

    @property
    def holes(self) -> Any:
        """The holes that the host has been told last."""
        return self.page.evaluate("window.calls.at(-1)[1]")

    @property
    def status(self) -> str:
        return self.page.locator(".status").inner_text()
