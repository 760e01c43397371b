"""Outfits: items of several garments, from their catalogue to a person who wears them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.captioning.order import read_order
from triptych.captioning.questions import questions_about
from triptych.data.catalogue import Photo, override_labels, read_overrides, read_photos, write_photos
from triptych.data.pairing import UNSAID
from triptych.data.photo_folders import scan
from triptych.data.views import choose_views, mixed_items, view_hint
from triptych.errors import ConfigError, InputError, WorkError
from triptych.lora.adapter import read_lora
from triptych.pictures.panels import PanelLayout, fit, split
from triptych.store.files import read_jsonl, sha256_file
from triptych.tasks import layout_with, task_named, task_of
from triptych.tasks.outfit import OUTFIT
from triptych.tasks.tryon import TRY_ON
from triptych.terminal.same_options import same_options
from triptych.training.config import TrainConfig
from triptych.verbs.clean import CleanConfig, clean
from triptych.verbs.concat import ConcatConfig, concat
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.train import train
from triptych.vision import features

from .test_clean import Counting, draw
from .test_train import config, training_set, write_records

ROLES = OUTFIT.photo_roles


def garments(*names: str, said: dict[str, str] | None = None) -> list[Photo]:
    reasons = {name: f"override: {role}" for name, role in (said or {}).items()}
    return [
        Photo("i", f"p/i/{name}", f"sha of {name}", "garment", 0.1, reasons.get(name, "")) for name in names
    ]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("top.jpg", "top"),
        ("red_shirt.jpg", "top"),
        ("Jeans-2.png", "bottom"),
        ("ankle boots.jpg", "shoes"),
        ("handbag_front.jpg", "bag"),  # a piece counts more than its side
        ("bag_detail.jpg", "detail"),  # and a detail more than the piece
        ("front.jpg", "front"),
        ("coat_back.jpg", "top"),
        ("top and bottom.jpg", None),
        ("front_back.jpg", None),
        ("IMG_1.jpg", None),
        ("1.jpg", None),
        ("swatch.jpg", "part"),
    ],
)
def test_names_say_a_role(name: str, role: str | None) -> None:
    assert view_hint(name, ROLES) == role


def chosen(photos: list[Photo]) -> dict[str, tuple[str, str]]:
    found = choose_views(photos, ROLES).items()
    return {role: (one.photo.path.removeprefix("p/i/"), one.by) for role, one in found}


def test_roles_come_from_names_folders_and_overrides() -> None:
    assert chosen(garments("a_top.jpg", "bottom/IMG_2.jpg", "Shoes/front.jpg", "IMG_9.jpg")) == {
        "top": ("a_top.jpg", "name"),
        "bottom": ("bottom/IMG_2.jpg", "name"),
        "shoes": ("Shoes/front.jpg", "name"),
    }
    said = {"IMG_9.jpg": "bag", "a_top.jpg": "bottom"}
    assert chosen(garments("a_top.jpg", "IMG_9.jpg", "shirt.jpg", "trousers.jpg", said=said)) == {
        "top": ("shirt.jpg", "name"),
        "bottom": ("a_top.jpg", "override"),
        "bag": ("IMG_9.jpg", "override"),
    }
    assert chosen(garments("IMG_1.jpg", "IMG_2.jpg")) == {}
    several = garments("top_back.jpg", "top_front.jpg", "top_1.jpg", "skirt_back.jpg", "skirt_front.jpg")
    assert chosen(several) == {"top": ("top_1.jpg", "name"), "bottom": ("skirt_front.jpg", "name")}
    assert chosen(garments("top/1.jpg", "top/2.jpg")) == {"top": ("top/1.jpg", "name")}
    assert chosen(garments("red_top_front.jpg", "red_top_back.jpg")) == {
        "front": ("red_top_front.jpg", "name"),  # what all names say is the product's name
        "back": ("red_top_back.jpg", "name"),
    }


def test_folders_say_front_and_back_too() -> None:
    photos = garments("back/IMG_1.jpg", "front/IMG_1.jpg", "details/IMG_1.jpg")
    found = choose_views(photos, TRY_ON.photo_roles)
    assert {role: (one.photo, one.by) for role, one in found.items()} == {
        "front": (photos[1], "name"),
        "back": (photos[0], "name"),
    }


def test_many_garments_are_no_mistake_in_an_outfit() -> None:
    people = [Photo("i", f"p/i/w{n}x.jpg", f"w{n}", "human", 0.9) for n in range(4)]
    photos = [*garments(*(f"IMG_{n}9.jpg" for n in range(4))), *people]
    assert mixed_items(photos, TRY_ON.photo_roles, None) == {"i"}
    assert mixed_items(photos, ROLES, None) == set()


def shop(root: Path, items: dict[str, list[str]]) -> ConcatConfig:
    """A catalogue of noise; a photo with `worn` in its name shows a person."""
    photos, rng = [], np.random.default_rng(0)
    for item, names in items.items():
        for name in names:
            path = root / "photos" / item / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
            label = "human" if "worn" in name else "garment"
            photos.append(Photo(item, str(path), sha256_file(path), label, 0.5))
    write_photos(root / "work/catalogue/photos.jsonl", photos)
    return ConcatConfig(work=root / "work", model="pocket", task="outfit", panel_width=32, panel_height=48)


def test_an_outfit_has_the_panels_of_its_photos(tmp_path: Path) -> None:
    config = shop(
        tmp_path,
        {
            "a": ["bag.png", "bottom/x.png", "top.png", "worn.png", "IMG_7.png"],
            "b": ["top.png", "worn.png"],
            "c": ["IMG_1.png", "worn.png"],
        },
    )
    summary = concat(config).finish()
    assert (summary["triptychs"], summary["rejected"], summary["reasons"]) == (2, 1, {UNSAID: 1})
    assert "'item1/a.jpg front'" in summary["next"] and "Of 1 item no product" in summary["next"]
    rows = {row["item"]: row for row in read_jsonl(config.triptych_folder / "metadata.jsonl")}
    assert {item: row["layout"]["roles"] for item, row in rows.items()} == {
        "a": ["top", "bottom", "bag", "worn"],
        "b": ["top", "worn"],
    }
    layout = PanelLayout.from_dict(rows["a"]["layout"])
    assert layout == OUTFIT.layout(32, 48).among(layout.roles) and layout.made == ("worn",)
    panels = split(Image.open(config.triptych_folder / rows["a"]["file_name"]), layout)
    for role, panel in zip(layout.roles, panels, strict=True):
        photo = Image.open(rows["a"][role])
        assert panel.tobytes() == fit(photo, 32, 48).tobytes(), role
        assert rows["a"][f"{role}_sha256"] == sha256_file(Path(rows["a"][role]))
    spare = [row for row in read_jsonl(config.triptych_folder / "concat.rejects.jsonl") if "spare" in row]
    assert [Path(row["path"]).name for row in spare if row["item"] == "a"] == ["IMG_7.png"]
    again = concat(config).finish()
    assert (again["kept"], again["made"]) == (2, 0)
    photos = read_photos(config.catalogue_folder / "photos.jsonl")
    write_photos(config.catalogue_folder / "photos.jsonl", [one for one in photos if "bag" not in one.path])
    again = concat(config).finish()
    assert (again["kept"], again["made"]) == (1, 1), "one panel less"
    with pytest.raises(WorkError):
        concat(config.model_copy(update={"task": "try-on"}))
    with pytest.raises(ConfigError, match="no task 'dog'"):
        concat(config.model_copy(update={"task": "dog"}))


def test_captioners_are_asked_about_every_panel() -> None:
    layout = OUTFIT.layout(32, 48).among(["top", "bottom", "shoes", "worn"])
    assert task_of(layout) is OUTFIT is task_named("outfit")
    asked = questions_about(layout)
    assert "four panels side by side: a top, trousers, a skirt or another bottom, shoes, and a person" in (
        asked.caption
    )
    assert "then <IMAGE 4> and the person wearing it all" in asked.caption
    assert asked.expected == ("garment", "garment", "garment", "person")
    assert asked.numbers["bottom"] == 2


def test_folders_of_roles_are_no_items(tmp_path: Path) -> None:
    for name in ("look1/top/1.jpg", "look1/shoes/1.jpg", "look1/worn/1.jpg", "look2/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert {item for item, _ in scan(tmp_path, ROLES)} == {"look1", "look2"}
    assert {item for item, _ in scan(tmp_path, TRY_ON.photo_roles)} == {
        "look1__top",
        "look1__shoes",
        "look1__worn",
        "look2",
    }


def test_overrides_name_the_roles_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("i/a.jpg top\ni/b.jpg BAG\n")
    assert read_overrides(tmp_path / "o.txt", ROLES.names) == {"i/a.jpg": "top", "i/b.jpg": "bag"}
    assert override_labels(ROLES.names)["shoes"] == "garment"
    with pytest.raises(InputError) as caught:
        read_overrides(tmp_path / "o.txt", TRY_ON.photo_roles.names)
    assert caught.value.hint.endswith("labels: human, garment, front, back, rejected.")


def test_a_training_has_outfits_of_any_garments(tmp_path: Path, tiny_flux2: Path) -> None:
    """And its LoRA says all panels that it has seen, in reading order."""
    whole = OUTFIT.layout(32, 48)
    for id, roles in (
        ("id-1", ["bottom", "worn"]),
        ("id-2", ["top", "worn"]),
        ("id-3", ["bag", "top", "worn"]),
    ):
        write_records(tmp_path, [id], tiny_flux2, whole.among(roles))
    options = config(tmp_path, tiny_flux2, task="outfit", context="clean", max_train_steps=3, batch_size=1)
    assert train(options).finish()["next"].count("--panel") == 3
    layout = PanelLayout.from_dict(read_lora(tmp_path / "lora")[1]["layout"])
    assert layout == whole.among(["top", "bottom", "bag", "worn"]) and layout.columns == 4
    data = training_set(tmp_path, options.model_copy(update={"task": None}))
    assert data.layout == layout and len(data.buckets) == 3


def test_only_the_panels_of_the_photos_stand_on_a_canvas() -> None:
    trained = OUTFIT.layout(32, 48).among(["top", "bottom", "bag", "worn"])
    assert layout_with(trained, ["bag", "top"], trained=True).roles == ("top", "bag", "worn")
    assert layout_with(trained, [], trained=True) == trained
    assert layout_with(trained, ["shoes"], trained=True) == trained, "which the message names"
    usual = TRY_ON.layout(32, 48)
    assert layout_with(usual, ["shoes"], trained=False).roles == ("shoes", "worn")
    assert layout_with(usual, ["shoes"], trained=True) == layout_with(usual, ["dog"], trained=False) == usual
    assert layout_with(usual, ["front"], trained=False) == usual


def test_from_photos_to_a_picture(tmp_path: Path, tiny_flux2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "load_extractor", lambda name: Counting().extractor)
    for number in range(5):
        draw(tmp_path / f"human/{number}.png", True, 100 + number)
        draw(tmp_path / f"garment/{number}.png", False, 100 + number)
    photos = tmp_path / "photos"
    for number, name in enumerate(
        ("look1/top/IMG_1", "look1/IMG_2", "look1/shoes", "look2/bag", "look2/IMG_3")
    ):
        draw(photos / f"{name}.png", False, 10 + number)
    for number in (1, 2):
        draw(photos / f"look{number}/IMG_9.png", True, 20 + number)
    (tmp_path / "overrides.txt").write_text("look1/IMG_2.png bottom\n")
    work: dict[str, Any] = {"work": tmp_path / "work"}
    model: dict[str, Any] = {"model": str(tiny_flux2), "device": "cpu", "dtype": "fp32"}
    clean(
        CleanConfig(
            photos=photos,
            human=tmp_path / "human",
            garment=tmp_path / "garment",
            overrides=tmp_path / "overrides.txt",
            task="outfit",
            **work,
        )
    ).finish()
    sheet = (tmp_path / "work/catalogue/contact_sheet.txt").read_text()
    assert "bottom: you said so" in sheet and "top: by its name" in sheet and "bag: by its name" in sheet
    concat(
        ConcatConfig(model=str(tiny_flux2), task="outfit", panel_width=32, panel_height=48, **work)
    ).finish()
    rows = read_jsonl(tmp_path / "work/triptychs/metadata.jsonl")
    panels = [row["layout"]["roles"] for row in sorted(rows, key=lambda row: row["item"])]
    assert panels == [["top", "bottom", "shoes", "worn"], ["bag", "worn"]]
    for row in rows:
        markers = " ".join(f"<IMAGE {number}> words" for number in range(1, len(row["layout"]["roles"]) + 1))
        (tmp_path / f"work/triptychs/{row['id']}.txt").write_text(f"Clothes. {markers}")
    assert embed(EmbedConfig(**model, **work)).finish()["embedded"] == 2
    train(
        TrainConfig(
            task="outfit", max_train_steps=2, batch_size=1, rank=2, validation_steps=0, **model, **work
        )
    ).finish()
    summary = generate(
        GenerateConfig(
            lora=tmp_path / "work/lora",
            panel=[f"bag={photos}/look2/bag.png", f"top={photos}/look1/top/IMG_1.png"],
            prompt="Clothes. <IMAGE 1> a top <IMAGE 2> a bag <IMAGE 3> a person wears both",
            num_inference_steps=1,
            **model,
            **work,
        )
    ).finish()
    assert Image.open(summary["images"][0]).size == (96, 48)
    assert not [warning for warning in summary["warnings"] if "marker" in warning]


@pytest.mark.parametrize(
    "answer",
    [
        "garment, garment, garment, garment, person",
        "1. garment\n2. garment\n3. garment\n4. garment\n5. person",
        "first: garment\nsecond: garment\nfifth: person\nthird: garment\nfourth: garment",
        "five: person, one: garment, two: garment, three: garment, four: garment",
    ],
)
def test_answers_about_five_panels_are_read(answer: str) -> None:
    assert read_order(answer, 5) == ["garment"] * 4 + ["person"]


def test_the_next_command_is_of_the_same_task() -> None:
    same = same_options([], {}, {"task": "outfit", "model": "m"})
    assert same("concat") == ["--task outfit", "--model m"]
    assert same("caption") == ["--model m", "--vlm-model VLM_MODEL"]
