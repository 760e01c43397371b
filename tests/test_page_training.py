"""The tab *Train*: trainings as processes of their own that a page starts, stops, goes on with and finds
again; their losses and pictures; and the whole in a real browser.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_page import running
from tests.test_train import write_records
from triptych.errors import ConfigError, InputError, ModelError, WorkError
from triptych.server.config import AppConfig
from triptych.server.page.curves import Line, chart, smoothed
from triptych.server.page.training_form import in_words_of_the_page
from triptych.server.page.training_view import curves_of, status_of
from triptych.server.page.trainings import Trainings
from triptych.training.checkpoints import steps_saved

QUICK: dict[str, Any] = {"dtype": "fp32", "checkpointing_steps": 1000, "validation_steps": 0, "batch_size": 1}


def until(what: Callable[[], Any], seconds: float = 90) -> Any:
    """What a function returns as soon as it is true."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_flux: Path) -> Path:
    """A work folder with embeddings."""
    folder = tmp_path_factory.mktemp("work")
    write_records(folder, [f"id-{n}" for n in range(3)], tiny_flux)
    return folder


@pytest.fixture
def trainings(work: Path, tiny_flux: Path) -> Trainings:
    return Trainings(AppConfig(work=work, model=str(tiny_flux), device="cpu"))


def test_start_save_stop_and_go_on(trainings: Trainings, tiny_flux: Path, work: Path) -> None:
    """A second page, or a server that was started again, does with the training what the first one could."""
    config = trainings.config(
        "one", {**QUICK, "model": tiny_flux.name, "max_train_steps": 100_000, "rank": 4}
    )
    trainings.check(config)
    fits, told = trainings.memory(config)
    assert fits and "GiB" in told
    trainings.start(config)
    assert trainings.status("one").state == "starting"
    with pytest.raises(WorkError, match="is running in 'one'"):
        trainings.start(config)
    until(lambda: trainings.status("one").step >= 3)
    again = Trainings(trainings.app)
    status = again.status("one")
    assert (status.state, status.of, again.names()) == ("running", 100_000, ["one"])
    with pytest.raises(WorkError, match="is running"):
        again.check(config)
    again.save("one")
    until(lambda: list((work / "one/saved").glob("step-*/pytorch_lora_weights.safetensors")))
    assert not again.status("one").saving and any("one/saved/step-" in name for name in again.loras("one"))
    again.stop("one")
    until(lambda: not again.status("one").goes)
    status = until(lambda: (found := trainings.status("one")).state == "stopped" and found)
    assert steps_saved(work / "one/checkpoints") == [status.step], "as after Ctrl-C"
    with pytest.raises(WorkError, match="No training is running"):
        again.stop("one")
    longer = again.config("one", {**again.settings("one"), "max_train_steps": status.step + 2})
    assert (longer.rank, longer.model) == (4, str(tiny_flux))
    assert again.settings("one")["model"] == tiny_flux.name
    again.start(longer)
    done = until(lambda: (found := again.status("one")).state == "done" and found)
    assert (done.step, done.of) == (status.step + 2, status.step + 2)
    rows = again.rows("one")
    assert [row["step"] for row in rows] == list(range(1, done.step + 1))
    drawn = curves_of({"one": rows, "two": rows})
    assert all(name in drawn for name in ("one: front", "one: t 0.75-1.00", "two: all", "stroke-dasharray"))
    assert str(work) not in status_of(again, "one", done)


def test_a_process_that_fails_says_why(trainings: Trainings, tiny_flux: Path, work: Path) -> None:
    """And a stop before its first step ends it too; `go_on` begins it again."""
    config = trainings.config("two", {**QUICK, "model": tiny_flux.name, "max_train_steps": 3})
    trainings.start(config)
    trainings.stop("two")
    until(lambda: trainings.status("two").state == "stopped")
    (work / "two/train.yaml").write_text("train:\n  rank: none\n")
    trainings.go_on("two")
    status = until(lambda: (found := trainings.status("two")).state == "failed" and found)
    assert "'rank'" in status.error and status.hint
    assert "&#x27;rank&#x27;" in status_of(trainings, "two", status)


def test_mistakes_are_told_before_anything_starts(trainings: Trainings, tiny_flux: Path, work: Path) -> None:
    given = {**QUICK, "model": tiny_flux.name}
    for name in ("../x", "a/b", "", "/tmp/x"):
        with pytest.raises(InputError, match="no name for a training"):
            trainings.config(name, given)
    for model in (str(tiny_flux), "/etc", "..", "../..", "serve/../..", "no/such/model"):
        with pytest.raises(InputError, match="There is no model"):
            trainings.config("x", given | {"model": model})
    with pytest.raises(ModelError):
        trainings.config("x", given | {"model": ""})
    with pytest.raises(ConfigError, match="rank") as caught:
        trainings.config("x", given | {"rank": "x"})
    told = in_words_of_the_page(caught.value)
    assert (told.message, told.hint) == ("Rank: give a whole number of at least 1.", "Now it is x.")
    with pytest.raises(ModelError) as unknown:
        trainings.memory(trainings.config("x", given | {"model": "nobody/nothing"}))
    told = in_words_of_the_page(unknown.value)
    assert "Nothing is known of this base model" in told.message and "plan" not in told.message + told.hint
    with pytest.raises(ConfigError, match="does nothing") as idle:
        trainings.check(trainings.config("x", given | {"noise_levels": 4}))
    told = in_words_of_the_page(idle.value)
    assert "“Noise levels”" in told.message and "--noise-levels" not in f"{told}"
    typed = in_words_of_the_page(ConfigError("Set --rank.", "Run `triptych embed --task outfit` first."))
    assert (typed.message, typed.hint) == ("Set “Rank”.", "Run `triptych embed --task outfit` first.")
    assert not (work / "x").exists()
    assert trainings.config("x", given | {"rank": "", "learning_rate": "2e-4"}).learning_rate == 2e-4
    huge = trainings.config("x", given | {"model": "black-forest-labs/FLUX.1-dev"})
    fits, told = trainings.memory(huge)
    assert fits == (not told.startswith("It does not fit"))


def test_curves() -> None:
    points = [(float(step), 1.0 + step % 2) for step in range(1, 1001)]
    found, span = smoothed(points)
    assert span == 50 and len(found) <= 240 and found[-1] == (1000.0, 1.5)
    drawn = chart("<Loss>", [Line("a<b", found, 0), Line("b", [(5.0, 2.0)], 1, True)])
    assert "<polyline" in drawn and "<circle" in drawn and "a<b" not in drawn and "<Loss>" not in drawn
    for values in (
        [],
        [(1.0, 1.0)],
        [(1.0, 0.0), (2.0, 0.0)],
        [(1.0, float("nan")), (2.0, 1.0)],
        [(1.0, -1e-9)],
    ):
        assert chart("x", [Line("a", values, 0)])


@pytest.mark.browser
def test_a_training_in_a_browser(work: Path, tiny_flux: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("Debian's chromium is not here")
    from axe_playwright_python.sync_playwright import Axe

    with running(work, model=str(tiny_flux)) as address, sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(f"{address}/page/")
        page.get_by_role("tab", name="Train").click()
        page.fill("#train-name textarea, #train-name input", "../out")
        page.click("#train-start")
        page.wait_for_selector(".triptych-message [role=alert]:has-text('no name for a training')")
        page.fill("#train-name textarea, #train-name input", "browser")
        page.fill("#train-max-train-steps textarea, #train-max-train-steps input", "3")
        page.click("#train-start")
        page.wait_for_selector("#train-curves svg", timeout=90_000)
        page.wait_for_selector("#train-status:has-text('Done.')", timeout=90_000)
        assert page.locator("#train-pictures img").count() == 2, "before the first step, and after the last"
        shown = page.locator("#train-pictures img").first
        shown.scroll_into_view_if_needed()
        assert shown.evaluate("one => one.decode().then(() => one.naturalWidth)") > 50
        for path in (work, tiny_flux):
            assert str(path) not in page.content() + page.input_value(
                "#train-model textarea, #train-model input"
            )
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390, (
            "pictures scroll, the page does not"
        )
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, json.dumps(serious, indent=1)[:3000]
        browser.close()
