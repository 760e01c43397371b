"""What stands behind the fields of the page: prompts, painted photos, settings from a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.test_serve import photos  # noqa: F401 - a fixture
from triptych.errors import InputError
from triptych.pictures.images import load_original
from triptych.server.api import Server
from triptych.server.config import AppConfig
from triptych.server.jobs import JobStore
from triptych.server.page import form, prompts
from triptych.server.page.context import Context
from triptych.server.requests import RequestReader
from triptych.server.uploads import Uploads
from triptych.server.worker import Worker
from triptych.session import Session
from triptych.vton.region import KINDS


def context_of(work: Path, model: str = "pocket-klein", **options: str) -> Context:
    """The page's context without a server."""
    home, config = work / "serve", AppConfig(work=work, model=model, device="cpu", **options)
    store, uploads, results = JobStore(home / "jobs.sqlite"), Uploads(home / "uploads"), home / "results"
    results.mkdir()
    session = Session(model, device="cpu")
    worker = Worker(store, RequestReader({}, uploads, results), [])
    return Context(Server(store, uploads, worker, results, {}, 10, 20 << 20), session, config)


@pytest.mark.parametrize("model", ["pocket", "pocket-klein"])
def test_templates_have_no_problems(tmp_path: Path, model: str) -> None:
    context = context_of(tmp_path, model)
    for kind in ("", *KINDS):
        prompt = prompts.template(context, kind)
        assert prompts.problems(context, prompt) == [] and prompts.is_template(context, prompt)
    assert ("<IMAGE 3>" in prompt) == (model == "pocket")
    assert prompts.problems(context, "") == ["it is empty"]
    assert prompts.problems(context, "**a** <b>") and not prompts.is_template(context, "a red dress")


def test_an_open_outline_is_told_before_anything_is_queued() -> None:
    ids = {"front": "0" * 64, "person": "1" * 64}
    for corners, hint in ((1, "Set three corners"), (3, "Press “Close outline”")):
        with pytest.raises(InputError, match=f"not closed yet: it has {corners} corner") as caught:
            form.tryon_request(ids, {"open": corners}, form.AUTO, {})
        assert hint in caught.value.hint
    assert form.tryon_request(ids, {"open": 0}, form.AUTO, {})["mask"] == "auto"


def test_captions_of_the_work_folder_and_a_captioner(tmp_path: Path, photos: dict[str, Path]) -> None:  # noqa: F811
    folder = tmp_path / "triptychs"
    folder.mkdir()
    Image.new("RGB", (96, 64)).save(folder / "item7.png")
    (folder / "item7.txt").write_text("a  caption\nof two lines")
    context = context_of(tmp_path, vlm_model="pocket")
    sources = dict(prompts.sources(context))
    assert sources["The caption of item7"] == "item:item7"
    assert prompts.taken_from(context, "item:item7", "", {}) == "a caption of two lines"
    assert "garment" in prompts.taken_from(context, "item:../../etc/passwd", "", {}), "no file: the template"
    with pytest.raises(InputError, match="looks at the photos"):
        prompts.taken_from(context, prompts.CAPTIONER, "", {})
    ids = {name: str(form.uploaded(context, str(path))) for name, path in photos.items()}
    written = prompts.taken_from(context, prompts.CAPTIONER, "", ids)
    assert "<IMAGE 3>" in written and prompts.problems(context, written) == []


def test_painting_changes_the_pixels_under_the_strokes_alone(tmp_path: Path, photos: dict[str, Path]) -> None:  # noqa: F811
    context = context_of(tmp_path)
    person = str(form.uploaded(context, str(photos["person"])))
    width, height = Image.open(photos["person"]).size
    layer = np.zeros((height // 2, width // 2, 4), np.uint8)
    assert form.painted(context, person, [layer]) == person, "nothing is painted"
    layer[10:20, 10:20] = (255, 0, 0, 255)
    made = load_original(context.uploads.path(form.painted(context, person, [layer]), "person")).image
    before, after = np.asarray(Image.open(photos["person"]).convert("RGB")), np.asarray(made)
    changed = (before != after).any(axis=2)
    assert tuple(after[30, 30]) == (255, 0, 0) and not changed[:18].any() and not changed[42:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "does not say how it was made"),
        ({"verb": "generate", "prompt": "a"}, "made by generate"),
        ({"prompt": "a", "out": "/etc/passwd"}, "has the setting 'out'"),
        ({"prompt": "a", "strength": 7}, "impossible setting, strength"),
        ({"prompt": ""}, "carries no prompt"),
    ],
)
def test_a_picture_of_anybody_s_is_looked_at(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    context, chunks = context_of(tmp_path), PngInfo()
    if settings is not None:
        about = {"verb": "tryon", "sha256": {"person": "0" * 64, "front": "1" * 64}, "made_on": {}}
        chunks.add_text("triptych", json.dumps({**about, **settings}))
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=chunks)
    with pytest.raises(InputError, match=message) as caught:
        form.again(context, str(tmp_path / "theirs.png"))
    assert str(tmp_path) not in str(caught.value)
