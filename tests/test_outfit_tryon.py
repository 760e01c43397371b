"""Try-on of several garments in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InputError
from triptych.pictures.images import read_settings
from triptych.pictures.panels import fit, split
from triptych.session import Session
from triptych.tasks.outfit import OUTFIT
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.reproduce import ReproduceConfig, reproduce
from triptych.verbs.tryon import TryonConfig, tryon

from .test_tasks import write_lora_of
from .test_tryon import photo

PROMPT = "An outfit. <IMAGE 1> a red top <IMAGE 2> a blue skirt <IMAGE 3> somebody wears both"
TOP, SKIRT = [[60, 60], [140, 60], [140, 150], [60, 150]], [[50, 190], [150, 190], [160, 290], [40, 290]]
TRAINED = OUTFIT.layout(32, 48).among(["top", "bottom", "bag", "worn"])


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    polygon = tmp_path / "polygon.json"
    polygon.write_text(json.dumps({"polygons": [TOP, SKIRT]}))
    top, skirt = photo(tmp_path / "top.png", (40, 60), 1), photo(tmp_path / "skirt.png", (50, 60), 2)
    return {
        "garment": [f"bottom={skirt}", f"top={top}"],
        "person": photo(tmp_path / "person.png", (211, 307), 3),
        "polygon": polygon,
    }


def options(model: Path, inputs: dict[str, Any], tmp_path: Path, **changes: Any) -> TryonConfig:
    base = {"prompt": PROMPT, "model": str(model), "device": "cpu", "dtype": "fp32", "num_inference_steps": 2}
    base |= {"out": tmp_path / "out.png", "panel_width": 32, "panel_height": 48, "crop": "none"}
    return TryonConfig(**{**base, **inputs, **changes})


@pytest.mark.parametrize("trained", [False, True])
def test_an_outfit_is_put_on_in_one_run(
    trained: bool, inputs: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """klein reads any photos as references; FLUX.1 with a LoRA of the task, which knows a bag besides."""
    model = request.getfixturevalue("tiny_flux" if trained else "tiny_flux2")
    lora = write_lora_of(model, tmp_path, TRAINED, "noisy") if trained else None
    tryon(options(model, inputs, tmp_path, lora=lora, feather=0)).finish()
    layout = OUTFIT.layout(32, 48).among(["top", "bottom", "worn"])
    panels = split(Image.open(tmp_path / "out-triptych.png"), layout)
    for name, panel in zip(["top", "skirt"], panels, strict=False):
        assert panel.tobytes() == fit(Image.open(tmp_path / f"{name}.png"), 32, 48).tobytes(), name
    before, after = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("person", "out"))
    changed = (before != after).any(axis=-1)
    for left, top, right, bottom in ((60, 60, 140, 150), (50, 190, 150, 290)):
        assert changed[top + 1 : bottom - 1, left + 1 : right - 1].mean() > 0.9, "each polygon is repainted"
    assert not changed[155:185].any() and not changed[:55].any(), "and nothing between them"
    about = read_settings(tmp_path / "out.png")
    assert about is not None
    assert {*about["sha256"]} - {"lora"} == {"garment top", "garment bottom", "person", "polygon"}
    again = ReproduceConfig(
        image=tmp_path / "out.png",
        photos=[tmp_path],
        model=str(model),
        device="cpu",
        out=tmp_path / "again.png",
    )
    assert reproduce(again).finish()["identical"]


def test_a_session_takes_the_same_garments(inputs: dict[str, Any], tmp_path: Path, tiny_flux2: Path) -> None:
    tryon(options(tiny_flux2, inputs, tmp_path, panel_width=None, panel_height=None)).finish()
    session = Session(str(tiny_flux2), device="cpu", dtype="fp32")
    shown = {name: Image.open(tmp_path / f"{name}.png") for name in ("top", "skirt", "person")}
    (made,) = session.try_on(
        garments={"top": shown["top"], "bottom": shown["skirt"]},
        person=shown["person"],
        polygons=[TOP, SKIRT],
        prompt=PROMPT,
        crop="none",
        num_inference_steps=2,
    )
    assert np.array_equal(np.asarray(made.image), np.asarray(Image.open(tmp_path / "out.png")))
    with pytest.raises(InputError, match="needs a person and a garment"):
        session.try_on(person=shown["person"], polygons=[TOP], prompt=PROMPT)


def test_lines_of_a_batch_name_garments(inputs: dict[str, Any], tmp_path: Path, tiny_flux2: Path) -> None:
    (tmp_path / "lines.csv").write_text(
        "id,garment,person\na,top=top.png|bottom=skirt.png,person.png\nb,top=none.png,person.png\n"
    )
    config = options(tiny_flux2, inputs, tmp_path, batch=tmp_path / "lines.csv", out=tmp_path / "made")
    summary = tryon(config.model_copy(update={"garment": [], "person": None})).finish()
    assert (summary["made"], summary["failed"]) == (1, 1)
    tryon(options(tiny_flux2, inputs, tmp_path)).finish()
    alone, line = (np.asarray(Image.open(path)) for path in (tmp_path / "out.png", tmp_path / "made/a.png"))
    assert np.array_equal(alone, line)
    assert "skirt.png" in (tmp_path / "made/index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"garment": ["shoes=top.png"]}, "no panel for a photo of shoes; the panels are top, bottom, bag"),
        ({"garment": ["worn=top.png"]}, "no panel for a photo of worn"),
        ({"garment": ["top"]}, "--garment top is no garment's photo"),
        ({"garment": ["top=a.png", "top=b.png"]}, "Two photos are given of one garment"),
        ({"rough": "paint"}, "A rough edit shows one garment, and there are 2"),
    ],
)
def test_garments_that_the_lora_does_not_know_are_refused(
    changes: dict[str, Any], said: str, inputs: dict[str, Any], tmp_path: Path, tiny_flux: Path
) -> None:
    lora = write_lora_of(tiny_flux, tmp_path, TRAINED, "noisy")
    with pytest.raises(InputError, match=said) as caught:
        tryon(options(tiny_flux, inputs, tmp_path, lora=lora, **changes))
    assert caught.value.hint
    other = write_lora_of(tiny_flux, tmp_path, TRY_ON.layout(32, 48), "noisy")
    with pytest.raises(InputError, match="the panels are front, back and worn"):
        tryon(options(tiny_flux, inputs, tmp_path, lora=other))


@pytest.mark.parametrize("family", ["flux2", "flux"])
def test_a_new_combination_costs_only_its_steps(
    family: str, inputs: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the reading `each` everything that is known is found again: references of klein, panels on the
    canvas of FLUX.1. A garment that is new is read, and nothing else.
    """
    model, lora = request.getfixturevalue(f"tiny_{family}"), None
    if family == "flux":
        lora = write_lora_of(model, tmp_path, TRAINED, "clean")
    shown = {name: Image.open(tmp_path / f"{name}.png") for name in ("top", "skirt", "person")}
    other_top, other_skirt = (Image.open(photo(tmp_path / f"{n}.png", (44, 60), n)) for n in (8, 9))
    placement = "reference" if family == "flux2" else "canvas"

    def dress(session: Session, top: Image.Image, skirt: Image.Image) -> np.ndarray:
        (made,) = session.try_on(
            garments={"top": top, "bottom": skirt},
            person=shown["person"],
            polygons=[TOP, SKIRT],
            prompt=PROMPT,
            crop="none",
            num_inference_steps=2,
            context="clean",
            context_placement=placement,
            context_reading="each",
        )
        return np.asarray(made.image)

    session = Session(str(model), lora, device="cpu", dtype="fp32")
    dress(session, shown["top"], shown["skirt"])
    dress(session, other_top, other_skirt)
    read, cache = session.contexts.misses, session.contexts
    combined = dress(session, shown["top"], other_skirt)
    assert cache.misses == read, "both garments and the person were read before"
    dress(session, shown["skirt"], other_skirt)
    assert cache.misses == read + 1, "in another place a garment's keys and values are others"
    fresh = Session(str(model), lora, device="cpu", dtype="fp32", context_cache_gib=0)
    assert np.array_equal(combined, dress(fresh, shown["top"], other_skirt))
