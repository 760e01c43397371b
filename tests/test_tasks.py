"""The task is data: what is given, what is made, what a captioner is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from triptych.backbones.registry import load_backbone
from triptych.captioning.questions import questions_about
from triptych.captioning.write import check_order
from triptych.errors import ConfigError, InputError
from triptych.lora.adapter import add_lora, lora_state, read_lora, save_lora
from triptych.pictures.panels import PanelLayout, split
from triptych.tasks import TASKS, task_named, task_of
from triptych.tasks.outfit import OUTFIT
from triptych.tasks.tryoff import TRY_OFF
from triptych.tasks.tryon import TRY_ON
from triptych.training.data import draw_active
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.reproduce import ReproduceConfig, reproduce
from triptych.verbs.train import train
from triptych.verbs.tryon import TryonConfig, tryon

from .test_train import config, training_set, write_records

PROMPT = "A red shirt. <IMAGE 1> its front <IMAGE 2> its back <IMAGE 3> somebody wears it"
SCENES = ("scene1", "scene2", "scene3")
ALL = PanelLayout(32, 48, SCENES, 1, SCENES)
LAYOUTS = {
    "try-on": TRY_ON.layout(32, 48),
    "try-off": TRY_OFF.layout(32, 48),
    "outfit": OUTFIT.layout(32, 48).among(["top", "bottom", "worn"]),
    "imported": ALL,
}


def test_a_layout_says_what_is_made_and_older_ones_mean_the_last() -> None:
    old = {"width": 32, "height": 48, "roles": ["front", "back", "worn"], "columns": 3}
    layout = PanelLayout.from_dict(old)
    assert layout.made == ("worn",) and layout.given == ("front", "back") and layout.to_dict() == old
    assert layout == PanelLayout.from_dict(old | {"made": ["worn"]})
    off = TRY_OFF.layout(32, 48)
    assert off.given == ("worn",) and off != layout
    assert PanelLayout.from_dict(json.loads(json.dumps(off.to_dict()))) == off
    assert PanelLayout.from_dict(old | {"made": ["back", "front"]}) == off, "in reading order"
    for made in ("worn", ["dog"], [1], {"worn": 1}):
        with pytest.raises(ValueError, match="made"):
            PanelLayout.from_dict(old | {"made": made})


def test_tasks_are_known_by_their_panels() -> None:
    assert {name: task_of(LAYOUTS[name]).name for name in TASKS} == {name: name for name in TASKS}
    assert task_of(PanelLayout(16, 16, ("front", "worn"), 2)) is TRY_ON
    assert task_of(PanelLayout(16, 16, ("front", "worn"), 2, ("front",))) is TRY_OFF
    assert task_of(ALL).roles == SCENES and task_of(ALL).made == SCENES
    assert TRY_ON.filled({"front": 1}) == {"front": 1, "back": 1}
    assert TRY_OFF.filled({"worn": 1}) == {"worn": 1}
    assert TRY_OFF.on(LAYOUTS["try-on"]) == LAYOUTS["try-off"]
    with pytest.raises(ConfigError, match="no task 'dog'") as caught:
        task_named("dog")
    assert "try-off" in caught.value.hint


def test_a_lora_of_one_task_is_told_from_another() -> None:
    assert TRY_ON.trained(LAYOUTS["try-on"]) == LAYOUTS["try-on"]
    everything = PanelLayout(16, 16, ("front", "back", "worn"), 3, ("front", "back", "worn"))
    assert TRY_ON.trained(everything).made == ("worn",), "it has learned to make that too"
    with pytest.raises(InputError, match="trained to make front and back from worn") as caught:
        TRY_ON.trained(LAYOUTS["try-off"])
    assert "--panel worn=PHOTO" in caught.value.hint and "--task try-on" in caught.value.hint
    with pytest.raises(InputError, match="they are no garment and who wears it"):
        TRY_ON.trained(ALL)


def test_captioners_are_asked_what_the_task_says() -> None:
    asked = questions_about(LAYOUTS["try-on"])
    assert asked == questions_about(LAYOUTS["try-off"])
    assert asked.check.startswith(
        "The picture is made of three panels side by side. For each panel, from left to right, answer one "
        "word: garment if it is a product photo of clothing with no person in it, person if somebody wears"
    )
    assert "Example: garment, garment, person." in asked.check and "Example" in asked.check_again
    assert (
        "side by side: the front of a garment, its back, and a person wearing it. Describe it"
        in asked.caption
    )
    assert "; then <IMAGE 3> and the person wearing it: pose" in asked.caption
    pair = questions_about(PanelLayout(16, 16, ("front", "worn"), 1))
    assert pair.expected == ("garment", "person") and "two panels one below the other" in pair.caption
    assert "from top to bottom" in pair.check and "<IMAGE 3>" not in pair.caption
    check_order(lambda _: "garment, person", pair)
    with pytest.raises(InputError, match="person, garment instead of garment, person"):
        check_order(lambda _: "person, garment", pair)
    scenes = questions_about(ALL)
    assert "then <IMAGE 2> and the panel called scene2" in scenes.caption
    check_order(lambda _: pytest.fail("nobody knows what to expect"), scenes)
    grid = questions_about(PanelLayout(16, 16, ("a", "b", "c", "d"), 2))
    assert "four panels in 2 rows of 2" in grid.caption


def test_active_tokens_of_a_batch_are_those_of_the_panels_it_makes() -> None:
    layout, seen = LAYOUTS["try-off"], set()
    for seed in range(60):
        drawn, active = draw_active(layout, 16, torch.Generator().manual_seed(seed))
        seen.add((drawn.made, int(active.sum())))
        assert drawn.roles == layout.roles and {*drawn.made} <= {"front", "back"}
        assert not (active & ~torch.from_numpy(drawn.mask(drawn.made, 16))).any() and active.any()
    assert {made for made, _ in seen} == {("front", "back"), ("front",), ("back",)}
    assert min(count for _, count in seen) < 6, "a box of one of them"
    assert all(count == 12 for made, count in seen if len(made) == 2)


@pytest.mark.parametrize("context", ["noisy", "clean"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_task_trains_and_shows_itself(name: str, context: str, tmp_path: Path, tiny: Path) -> None:
    """Of the same records; the LoRA says what it makes."""
    stored = LAYOUTS["try-on" if name == "try-off" else name]
    folder = write_records(tmp_path, ["id-1", "id-2", "id-3"], tiny, stored)
    records = {file: file.read_bytes() for file in folder.glob("*.safetensors")}
    clean = {"context_reading": "products", "noise_levels": 2} if context == "clean" else {}
    options = config(
        tmp_path,
        tiny,
        task=name if name in TASKS else None,
        context=context,
        max_train_steps=3,
        validation_steps=3,
        num_validation_triptychs=1,
        num_validation_images=1,
        **clean,
    )
    summary = train(options).finish()
    assert summary["train_steps"] == 3 and summary["validation_loss"] > 0
    about = read_lora(tmp_path / "lora")[1]
    layout = PanelLayout.from_dict(about["layout"])
    assert layout == LAYOUTS[name] and about["layout"]["made"] == list(LAYOUTS[name].made)
    assert len([*(tmp_path / "lora" / "samples").glob("*.png")]) == 2, "before and after"
    assert {file: file.read_bytes() for file in folder.glob("*.safetensors")} == records
    assert train(options).finish()["train_steps"] == 3


def test_a_task_of_other_panels_is_refused(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux, ALL)
    with pytest.raises(InputError, match="The panels are scene1, scene2, scene3"):
        train(config(tmp_path, tiny_flux, task="try-off"))
    with pytest.raises(ConfigError, match="no task"):
        train(config(tmp_path, tiny_flux, task="try"))


def test_batches_of_clean_context_say_what_they_make(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    data = training_set(tmp_path, config(tmp_path, tiny_flux, task="try-off", context="clean"))
    made = set()
    for step in range(30):
        batch = data.draw(backbone, step, 0, 1)
        made.add(batch.layout.made)
        assert batch.active is not None and not batch.active[:, 4:].any(), "worn is given"
    assert made == {("front", "back"), ("front",), ("back",)}
    assert data.fixed(backbone, "id-1", 0.5).layout == LAYOUTS["try-off"]


@pytest.mark.parametrize("context", ["noisy", "clean"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_task_generates_from_what_it_is_given(
    name: str, context: str, tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = LAYOUTS[name]
    lora = write_lora_of(tiny, tmp_path, layout, context)
    given = {
        "try-on": {"front": "red"},
        "try-off": {"worn": "green"},
        "outfit": {"bottom": "red"},
        "imported": {"scene2": "blue"},
    }[name]
    options: dict[str, Any] = {"model": str(tiny), "lora": lora, "device": "cpu", "dtype": "fp32"}
    options |= {"num_inference_steps": 2, "prompt": PROMPT, "work": tmp_path}
    for role, colour in given.items():
        Image.new("RGB", (32, 48), colour).save(tmp_path / f"{role}.png")
    shown = [f"{role}={tmp_path / role}.png" for role in given]
    if context == "clean":
        options |= {"context_guidance_scale": 2.0, "drop_background": True}
    (image,) = generate(GenerateConfig(panel=shown, **options)).finish()["images"]
    layout = layout.among(["bottom", "worn"]) if name == "outfit" else layout
    panels = dict(zip(layout.roles, split(Image.open(image), layout), strict=True))
    kept = {**given, **({"back": "red"} if name == "try-on" else {})}
    for role, panel in panels.items():
        plain = len(panel.getcolors(10_000)) == 1
        assert plain == (role in kept), role
        if role in kept:
            assert panel.getpixel((0, 0)) == Image.new("RGB", (1, 1), kept[role]).getpixel((0, 0))
    assert "trained to make" not in caplog.text
    made = reproduce(
        ReproduceConfig(
            image=Path(image),
            photos=[tmp_path / f"{role}.png" for role in given] + [lora],
            model=str(tiny),
            device="cpu",
            out=tmp_path / "again",
        )
    ).finish()
    assert made["identical"]


def test_a_lora_used_for_another_task_says_so(
    tmp_path: Path, tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 48), "red").save(photo)
    options: dict[str, Any] = {"model": str(tiny_flux), "device": "cpu", "num_inference_steps": 1}
    options |= {"prompt": PROMPT, "work": tmp_path, "dtype": "fp32"}
    noisy, clean = (
        write_lora_of(tiny_flux, tmp_path, LAYOUTS["try-on"], context) for context in ("noisy", "clean")
    )
    said = "trained to make worn from front and back, not front and back from worn"
    summary = generate(GenerateConfig(lora=noisy, panel=[f"worn={photo}"], **options)).finish()
    assert said in summary["warnings"][0] and said in caplog.text
    with pytest.raises(InputError, match=said):
        generate(GenerateConfig(lora=clean, panel=[f"worn={photo}"], **options))
    off = write_lora_of(tiny_flux, tmp_path, LAYOUTS["try-off"], "noisy")
    for run in (
        lambda: generate(GenerateConfig(lora=off, front=photo, **options)),
        lambda: tryon(
            TryonConfig(lora=off, front=photo, person=photo, polygon=tmp_path / "none.json", **options)
        ),
    ):
        with pytest.raises(
            InputError, match="trained to make front and back from worn, and try-on"
        ) as caught:
            run()
        assert "--panel worn=PHOTO" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"panel": ["dog=photo.png"]}, "no panel dog"),
        ({"panel": ["worn"]}, "no panel's photo"),
        ({"panel": ["=photo.png"]}, "no panel's photo"),
        ({"panel": {"front": "photo.png"}, "front": "photo.png"}, "Two photos"),
        ({"panel": {"front": "photo.png", "back": "photo.png", "worn": "photo.png"}}, "nothing to make"),
        ({"back": "photo.png"}, "back view without a front"),
    ],
)
def test_photos_that_are_of_no_panel_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 48), "red").save("photo.png")
    with pytest.raises(InputError, match=said) as caught:
        generate(GenerateConfig(model=str(tiny_flux), prompt=PROMPT, device="cpu", **changes))
    assert caught.value.hint


def test_prompts_have_the_markers_of_the_lora(
    tmp_path: Path, tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = write_lora_of(tiny_flux, tmp_path, ALL, "noisy", markers=["[S-1]", "[S-2]", "[S-3]"])
    options: dict[str, Any] = {
        "model": str(tiny_flux),
        "device": "cpu",
        "num_inference_steps": 1,
        "lora": lora,
    }
    words = "A film. [S-1] <Leo> comes [S-2] sees [S-3] leaves"
    summary = generate(GenerateConfig(prompt=words, work=tmp_path, dtype="fp32", **options)).finish()
    assert not [one for one in summary["warnings"] if "marker" in one or "markup" in one]
    summary = generate(GenerateConfig(prompt=PROMPT, work=tmp_path, dtype="fp32", **options)).finish()
    assert not any("marker" in one for one in summary["warnings"]), "those of the house will do as well"
    half = PROMPT.split("<IMAGE 2>")[0]
    summary = generate(GenerateConfig(prompt=half, work=tmp_path, dtype="fp32", **options)).finish()
    assert "The prompt: marker [S-2] is missing." in summary["warnings"]


def write_lora_of(
    model: Path, folder: Path, layout: PanelLayout, context: str, markers: list[str] | None = None
) -> Path:
    """A LoRA that changes nothing and says that it was trained on this layout."""
    backbone = load_backbone(str(model), "cpu", "fp32")
    transformer = backbone.load_transformer()
    add_lora(transformer, backbone.lora_layers(transformer), 1, 1, 0.0, 0)
    about: dict[str, Any] = {"layout": layout.to_dict() | {"made": list(layout.made)}, "context": context}
    about |= {"family": backbone.name, "base_model": "tiny"} | ({"markers": markers} if markers else {})
    path = folder / f"{context}-{'-'.join(layout.made)}.safetensors"
    save_lora(path, lora_state(transformer), 1, 1, about)
    return path
