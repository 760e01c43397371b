"""The site: it builds without a network, its links and anchors hold, nothing comes from another host; and
what is made from the source is not stale.
"""

from __future__ import annotations

import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from recipes.docs import errors, photos
from recipes.docs.site import CONFIG, problems, sources
from tests.canvas_page import CHROMIUM, chromium
from triptych.config.files import ORIGINAL_KEYS
from triptych.verbs import STAGES

ROOT = Path(__file__).parents[1]
needs_zensical = pytest.mark.skipif(
    find_spec("zensical") is None or find_spec("griffe") is None, reason="pip install '.[docs]'"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly and looked through by `build`, which ends at the first problem."""
    from recipes.docs.site import build

    return build(tmp_path_factory.mktemp("site"))


@needs_zensical
def test_the_site_has_every_page_with_its_pictures(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert "triptych" in home
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), page
    assert (site / "examples" / "back-view" / "worn.png").is_file()
    assert (site / "gallery" / "tryon.png").is_file()
    assert (site / "search.json").is_file()


@needs_zensical
def test_the_reference_has_every_command_config_and_public_name(site: Path) -> None:
    import triptych

    commands, configs, python = (
        (site / "reference" / f"{name}.html").read_text() for name in ("commands", "configs", "python")
    )
    for stage in STAGES:
        assert f'id="triptych-{"-".join(stage.words)}"' in commands
        assert f'id="{stage.config.lower()}"' in configs
        for name in stage.config_class().model_fields:
            assert f"<code>{name}</code>" in configs
    for name in triptych.__all__:
        assert name == "__version__" or name.endswith("Config") or f'id="{name.lower()}"' in python, name
    assert 'id="sessiontry_on"' in python and "bit for bit" in python


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r"^ +- [^:]+: (\S+\.md)$", CONFIG.read_text(), re.MULTILINE)
    pages = {str(page) for page in sources().values()}
    pages |= {f"reference/{name}.md" for name in ("commands", "configs", "python")}
    assert sorted(menu) == sorted(pages), "every page has its line in mkdocs.yml"


@needs_zensical
@pytest.mark.browser
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no chromium at {CHROMIUM}")
def test_a_browser_asks_no_other_host_and_finds_words(site: Path) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        asked: list[str] = []
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "gallery", "reference/python", "examples/greyscale"):
            page.goto(f"{here}{name}.html", wait_until="networkidle")
        page.keyboard.press("/")
        page.keyboard.type("blocks-to-swap")
        page.get_by_text("It does not fit into memory").first.wait_for(timeout=20_000)
        server.shutdown()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((here, "data:", "blob:"))] == []


def test_what_is_wrong_with_a_site_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">x</h1><a href="#top">good</a><a href="#gone">1</a><a href="b.html">2</a>'
        '<img src="c.png"><script src="https://cdn.example/x.js"></script>'
        '<link rel="stylesheet" href="//fonts.example/x.css"><a href="https://example.org">fine</a>'
        "<p>one <Brand> dress</p>"
    )
    (tmp_path / "a.css").write_text(
        "a { background: url('https://cdn.example/x.woff') } b { background: url(x) }"
    )
    assert len(list(problems(tmp_path))) == 7


def test_the_page_of_all_errors_is_not_stale() -> None:
    assert errors.PAGE.read_text(encoding="utf-8") == errors.page(), "run: python -m recipes.docs.errors"


def test_the_page_of_all_errors_knows_sentences_and_hints() -> None:
    page = errors.page()
    for said in (
        "| A try-on needs a person and a garment. | Give person=…, and front=… or garments=…. |",
        "| There is no LoRA at …. |",  # its hint is a variable, followed to the texts it may be
        "Save it again with peft:",
        "| there is no such file or folder | Check the path. |",
        "| … pictures from seed … on need seeds of more than 64 bits. | The largest seed is …. |",
    ):
        assert said in page
    assert len(page.splitlines()) > 350


def test_the_photos_of_the_examples_are_what_the_recipe_draws(tmp_path: Path) -> None:
    for name, draw in photos.EXAMPLES.items():
        draw(tmp_path / name)
        for path in (tmp_path / name).iterdir():
            assert path.read_bytes() == (ROOT / "examples" / name / path.name).read_bytes(), path
    photos.gallery(tmp_path / "gallery")
    for path in (tmp_path / "gallery").iterdir():
        assert path.read_bytes() == (ROOT / "docs" / "gallery" / path.name).read_bytes(), path


def test_the_page_for_those_who_come_from_the_original_names_every_key() -> None:
    page = (ROOT / "docs" / "original-project.md").read_text()
    assert [key for key in ORIGINAL_KEYS if f"`{key}`" not in page] == []


def test_pictures_of_gallery_and_examples_are_small() -> None:
    pictures = [*(ROOT / "docs" / "gallery").iterdir(), *(ROOT / "examples").glob("*/*.png")]
    assert sum(path.stat().st_size for path in pictures) < 600_000
