"""The tab *Catalogue* on a small shop of the rendered world: corrections that `clean` and `concat` follow,
captions that `caption` keeps and `embed` reads; and the keys in a real browser.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_page import running
from triptych.data.catalogue import Photo, read_photos, write_photos
from triptych.data.triptychs import TriptychFolder
from triptych.errors import InputError
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.server.page.captions import Captions
from triptych.server.page.places import folder_named, shown
from triptych.server.page.review import TAKEN_BACK, Review
from triptych.server.page.review_board import board, summary, text_of
from triptych.verbs.caption import CaptionConfig, caption
from triptych.verbs.clean import CleanConfig, clean
from triptych.verbs.concat import ConcatConfig, concat


def sorted_again(home: Path, unsure: float = 0.1) -> list[Photo]:
    shop = home / "shop"
    config = CleanConfig(
        photos=shop / "photos",
        human=shop / "labels/human",
        garment=shop / "labels/garment",
        work=home / "work",
        unsure=unsure,
    )
    clean(config).finish()
    return read_photos(home / "work/catalogue/photos.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of five items, sorted, put side by side and described."""
    home = tmp_path_factory.mktemp("shop")
    write_raw_catalogue(home / "shop", 5, 3, labels=8)
    sorted_again(home)
    concat(ConcatConfig(work=home / "work", model="pocket")).finish()
    caption(CaptionConfig(work=home / "work", model="pocket", vlm_model="pocket")).finish()
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made / "work", tmp_path / "work")
    (tmp_path / "shop").symlink_to(made / "shop")
    sorted_again(tmp_path)
    return tmp_path


def review_of(home: Path) -> Review:
    return Review(home / "work/catalogue", home / "work/triptychs")


def test_unsure_photos_come_first_and_corrections_are_what_clean_reads(home: Path) -> None:
    sorted_again(home, unsure=1.0)
    review = review_of(home)
    keys = review.state().listed("all")
    labels = [review.state().card(key).photo.label for key in keys]
    unsure = labels.count("unsure")
    assert unsure and labels[:unsure] == ["unsure"] * unsure and labels[-1] == "rejected"
    before, cards = review.decide({keys[0]: "human"})
    assert before == {keys[0]: ""} and {card.photo.item for card in cards} == {cards[0].photo.item}
    card = review.state().card(keys[0])
    assert (card.photo.label, card.said) == ("human", "human")
    assert "New corrections: 1" in summary(review.state())
    assert review.state().listed("all") == keys, "it stays where it is"
    review.decide({keys[1]: "rejected", keys[2]: "garment"})
    assert review.decide({keys[1]: ""})[0] == {keys[1]: "rejected"}, "undone"
    assert review.state().listed("corrected") == [keys[0], keys[2]]
    rows = {row.path: row for row in sorted_again(home, unsure=1.0)}
    wanted = {keys[0]: "human", keys[1]: "unsure", keys[2]: "garment"}
    made_by = {key: review.state().card(key) for key in wanted}
    assert {key: card.photo.label for key, card in made_by.items()} == wanted
    assert rows[made_by[keys[0]].photo.path].reason == "override: human"
    assert review.state().waiting == 0
    review.decide({keys[0]: ""})
    assert review.state().card(keys[0]).said == TAKEN_BACK


def test_swapped_sides_are_what_concat_uses(home: Path) -> None:
    review, folder = review_of(home), home / "work/triptychs"
    guessed = review.state().listed("guessed")
    state = review.state()
    pairs = {state.card(key).photo.item for key in guessed}
    rows = {row["item"]: row for row in TriptychFolder(folder).rows() if row["item"] in pairs}
    item, row = next(iter(rows.items()))
    key = next(key for key in guessed if state.card(key).photo.item == item)
    before, cards = review.swap(key)
    assert set(before.values()) == {""} and len(before) == 2
    assert {card.side for card in cards if card.key in before} == {"front: you said so", "back: you said so"}
    sorted_again(home)
    concat(ConcatConfig(work=home / "work", model="pocket")).finish()
    after = next(one for one in TriptychFolder(folder).rows() if one["item"] == item)
    names = [[Path(one[role]).name for role in ("front", "back")] for one in (row, after)]
    assert names[0] == names[1][::-1]


def test_mistakes_change_nothing(home: Path) -> None:
    review = review_of(home)
    state = review.state()
    broken = next(key for key in state.listed("rejected") if state.card(key).fixed)
    some = state.listed("garment")[0]
    for words in ({"0" * 16: "human"}, {some: "hat"}, {broken: "human"}, {some: "human\nx/y.jpg human"}):
        with pytest.raises(InputError):
            review.decide(words)
    assert not review.overrides.exists()
    review.overrides.write_text("a/x.jpg hat\n")
    with pytest.raises(InputError, match="line 1"):
        review.state()


def test_what_is_poor_is_brought_back_and_what_is_flagged_comes_early(tmp_path: Path) -> None:
    rows = [
        Photo("a", "p/a/good.jpg", "1" * 64, "garment", 0.4),
        Photo("a", "p/a/flagged.jpg", "2" * 64, "human", 0.99, flags="small: 90×120 px"),
        Photo("a", "p/a/unsure.jpg", "3" * 64, "unsure", 0.5),
        Photo("b", "p/b/blurred.jpg", "4" * 64, "rejected", None, "blurred: sharpness 0.20"),
        Photo("b", "p/b/broken.jpg", "5" * 64, "rejected", None, "truncated or damaged"),
    ]
    write_photos(tmp_path / "photos.jsonl", rows)
    review = Review(tmp_path, tmp_path)
    cards = review.state().cards(review.state().listed("all"))
    names = [Path(card.name).stem for card in cards]
    assert names == ["unsure", "flagged", "good", "blurred", "broken"]
    assert [card.fixed for card in cards] == [False] * 4 + [True]
    assert "small: 90×120 px" in text_of(cards[1])
    assert review.state().listed("flagged") == [cards[1].key]
    review.decide({cards[3].key: "garment"})
    assert review.state().card(cards[3].key).photo.label == "garment"


def test_names_of_files_are_no_html(tmp_path: Path) -> None:
    odd = Photo("<b>i</b>", "p/<b>i<_b>/<img src=x onerror=alert(1)>.jpg", "a" * 64, "unsure", 0.5)
    write_photos(tmp_path / "photos.jsonl", [odd])
    state = Review(tmp_path, tmp_path).state()
    shown_here = board(state.cards(state.listed("all")), summary(state), "", ("front",))
    assert "onerror=alert" in shown_here and "<img src=x" not in shown_here and "<b>i" not in shown_here


def test_five_thousand_photos_answer_at_once(tmp_path: Path) -> None:
    rows = [
        Photo(f"item{n // 4}", f"/shop/photos/item{n // 4}/IMG_{n}.jpg", f"{n:064x}", label, 0.2 * (n % 5))
        for n in range(5000)
        for label in [("garment", "garment", "human", "unsure")[n % 4]]
    ]
    write_photos(tmp_path / "photos.jsonl", rows)
    (tmp_path / "overrides.txt").write_text(
        "".join(f"item{n // 4}/IMG_{n}.jpg human\n" for n in range(0, 5000, 2))
    )
    review = Review(tmp_path, tmp_path)
    keys = review.state().listed("all")
    begun = time.process_time()
    review.decide({keys[0]: "human"})
    review.state().listed("guessed")
    assert time.process_time() - begun < 2.0
    assert len(keys) == 5000


def test_a_caption_of_the_page_is_kept_by_caption_and_linted_as_there(home: Path) -> None:
    captions = Captions(home / "work/triptychs", "pocket")
    key, other = captions.listed("all")[:2]
    entry = captions.entry(key)
    assert entry.by == "the captioner" and not entry.problems and entry.roles == ("front", "back", "worn")
    assert captions.lint(key, "A coat.")[0].startswith("marker <IMAGE 1> is missing")
    text = entry.text.replace("<IMAGE 1>", "It is new.\n <IMAGE 1>")
    saved = captions.save(key, text, entry.was)
    assert saved.by == "you" and "It is new. <IMAGE 1>" in saved.text and saved.was != entry.was
    with pytest.raises(InputError, match="changed meanwhile"):
        captions.save(key, "something else", entry.was)
    with pytest.raises(InputError, match="empty"):
        captions.save(other, " \n", captions.entry(other).was)
    summary = caption(CaptionConfig(work=home / "work", model="pocket", vlm_model="pocket")).finish()
    assert (summary["captioned"], summary["brought"]) == (0, 1)
    assert TriptychFolder(home / "work/triptychs").caption(entry.id) == saved.text, "what embed reads"
    captions.job(other).text_file.unlink()
    assert captions.listed("missing") == [other] and captions.listed("all")[0] == other
    assert captions.listed("problems") == [other]
    captions.job(other).text_file.write_bytes(b"\xff\xfe")
    assert "no text" in captions.entry(other).problems[0]


def test_paths_of_the_server_are_not_told(tmp_path: Path) -> None:
    work = tmp_path / "a b"
    assert shown(f"{work}/catalogue/x.txt and {work}.", work) == "catalogue/x.txt and the work folder."
    assert shown(f"{work}2/x and /q{work}/y", work) == f"{work}2/x and /q{work}/y"
    work.mkdir()
    (work / "out").symlink_to(tmp_path)
    assert folder_named(work, " lora-2 ", "a training") == work / "lora-2"
    for name in ("", ".", "..", "../x", "a/b", "/etc", "out", ".hidden", "a\0b", "x" * 65, "a\\b"):
        with pytest.raises(InputError):
            folder_named(work, name, "a training")


@pytest.fixture
def page(home: Path) -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("Debian's chromium is not here")
    sorted_again(home, unsure=1.0)
    with running(home / "work") as address, sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(f"{address}/page/")
        page.get_by_role("tab", name="Catalogue").click()
        yield page
        browser.close()


@pytest.mark.browser
def test_keys_and_undo_in_a_browser(page: Any, home: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_selector(".review-card[aria-current=true]")
    keys = page.eval_on_selector_all(".review-card", "all => all.map(one => one.dataset.key)")
    label = lambda key: page.get_attribute(f"[data-key='{key}']", "data-label")  # noqa: E731
    assert label(keys[0]) == "unsure"
    for key in "123":
        page.keyboard.press(key)
    page.wait_for_function("document.querySelector('.review-said').textContent.includes('rejected')")
    assert [label(key) for key in keys[:3]] == ["human", "garment", "rejected"]
    assert page.get_attribute(f"[data-key='{keys[3]}']", "aria-current") == "true"
    overrides = home / "work/catalogue/overrides.txt"
    assert [line.split()[-1] for line in overrides.read_text().splitlines()[-3:]] == [
        "human",
        "garment",
        "rejected",
    ]
    page.keyboard.press("u")
    page.wait_for_function(f"document.querySelector('[data-key=\"{keys[2]}\"]').dataset.label === 'unsure'")
    assert "New corrections: 2" in page.inner_text(".review-summary")
    before = overrides.read_text()
    page.locator("#catalogue-search textarea, #catalogue-search input").first.press_sequentially("111")
    first = page.locator(".review-card img").first
    first.scroll_into_view_if_needed()
    assert first.evaluate("one => one.decode().then(() => one.naturalWidth)") > 50
    assert overrides.read_text() == before, "keys in a field are text"
    serious = [
        one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert not serious, json.dumps(serious, indent=1)[:3000]
    page.get_by_role("tab", name="Captions").click()
    field = page.locator(".caption-card textarea").first
    text = field.input_value()
    field.fill("A coat.")
    page.wait_for_selector(".caption-bad")
    field.fill(text + " It has a collar.")
    page.locator(".caption-card button").first.click()
    page.wait_for_function(
        "document.querySelector('.caption-card [role=status]').textContent.startsWith('saved')"
    )
    assert any("It has a collar." in path.read_text() for path in (home / "work/triptychs").glob("*.txt"))
    serious = [
        one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert not serious, json.dumps(serious, indent=1)[:3000]
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
