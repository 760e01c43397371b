"""A model that only knows drawings refuses photographs, wherever it would see one; `--anyway` goes on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from triptych.backbones.settings import model_settings
from triptych.cli import main
from triptych.errors import ModelError
from triptych.evaluation.rendered import held_out_items
from triptych.pictures.panels import concatenate
from triptych.pocket import checkpoint_path
from triptych.pocket.drawings import is_drawing
from triptych.pocket.known_worlds import check_pictures, known_by
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.pocket.render import render
from triptych.pocket.world import POSES, VIEWS, sample_garment, sample_scene
from triptych.tasks.tryon import TRY_ON

PROMPT = "x <IMAGE 1> x <IMAGE 2> x <IMAGE 3> x"


def like_a_photo(seed: int, background: int | None = None) -> Image.Image:
    """Soft light over a textured shape, with grain, before a wall or on plain white or grey."""
    rng = np.random.default_rng(seed)
    height, width = 384, 256
    y, x = np.mgrid[0:height, 0:width] / 256
    wall = (
        np.stack([150 + 60 * np.sin(2 * x + rng.random()) + 30 * y] * 3, -1)
        if background is None
        else np.full((height, width, 3), background)
    )
    light = 0.55 + 0.35 * np.sin(3 * x + 2 * y + rng.random() * 6)[..., None]
    cloth = np.array(rng.integers(40, 220, 3)) * light + 12 * np.sin(60 * x + 40 * y)[..., None]
    inside = (((x - 0.5) / 0.33) ** 2 + ((y - 0.75) / 0.55) ** 2 < 1)[..., None]
    grain = rng.normal(0, 4, (height, width, 3)) * (inside | (background is None))
    picture = Image.fromarray(np.clip(np.where(inside, cloth, wall) + grain, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(0.7))


def as_jpeg(image: Image.Image, path: Path, quality: int) -> Image.Image:
    image.save(path, quality=quality)
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("pose", POSES)
def test_drawings_pass_at_every_size_and_quality(pose: str, tmp_path: Path) -> None:
    rng = random.Random(pose)
    for number in range(24):
        scene = sample_scene(
            rng, VIEWS[number % 3], held_out=None, **({"pose": pose} if number % 3 == 2 else {})
        )
        image = render(sample_garment(rng, held_out=None), scene, number, 1 + number % 5).image
        larger = image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC)
        jpegs = [as_jpeg(image, tmp_path / "a.jpg", 85), as_jpeg(larger, tmp_path / "b.jpg", 60)]
        assert [is_drawing(one) for one in (image, larger, *jpegs)] == [True] * 4, (scene, number)


def test_a_shops_drawings_pass(tmp_path: Path) -> None:
    files = [
        path
        for path in write_raw_catalogue(tmp_path, items=12, seed=3, spoilt=0).photos.rglob("*")
        if path.is_file()
    ]
    assert len(files) > 30
    assert all(is_drawing(Image.open(path)) for path in files)


@pytest.mark.parametrize("background", [None, 255, 236, 192])
def test_what_looks_like_a_photograph_does_not_pass(background: int | None, tmp_path: Path) -> None:
    passed = 0
    for seed in range(6):
        image = like_a_photo(seed, background)
        small = image.resize((48, 72), Image.Resampling.LANCZOS)
        larger = image.resize((768, 1152), Image.Resampling.BICUBIC)
        passed += sum(map(is_drawing, (image, small, larger, as_jpeg(image, tmp_path / "a.jpg", 50))))
    assert passed <= (6 if background == 192 else 0), (
        "a dark garment before the very grey of the drawings may pass"
    )
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    assert not is_drawing(Image.fromarray(noise))
    assert is_drawing(Image.new("RGB", (5, 2), "white")), "nothing is to be seen on it"


@pytest.mark.photos
def test_photographs_do_not_pass(photos: Path, tmp_path: Path) -> None:
    """All of them as they are; of crops, small, large and spoilt ones 99 in 100."""
    rng, wrong, count = random.Random(0), [], 0
    for path in sorted(photos.rglob("*.jpg")):
        image = Image.open(path).convert("RGB")
        assert not is_drawing(image), path
        left, top = (rng.randint(0, side // 3) for side in image.size)
        crop = image.crop((left, top, left + image.width * 2 // 3, top + image.height * 2 // 3))
        for one in (crop, image.resize((48, 72)), as_jpeg(crop, tmp_path / "a.jpg", 40), image.reduce(2)):
            count += 1
            wrong += [path] if is_drawing(one) else []
    assert len(wrong) <= count / 100, wrong


# --- the refusals
# -----------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A drawn front, photographs of a back and a person, and a triptych of each kind."""
    monkeypatch.chdir(tmp_path)
    item, layout = held_out_items(1, seed=3)[0], TRY_ON.layout(48, 72)
    item.front.save("front.png")
    item.worn.save("worn.png")
    for number, name in enumerate(("back.png", "me.png")):
        like_a_photo(number).resize((192, 288)).save(name)
    Path("p.json").write_text('{"polygons": [[[40, 60], [150, 60], [150, 200], [40, 200]]]}')
    Path("work/triptychs").mkdir(parents=True)
    concatenate([item.front, item.back, item.worn], layout).save("work/triptychs/drawn.png")
    concatenate([item.front, item.back, like_a_photo(2)], layout).save("work/triptychs/taken.png")
    Path("jobs.csv").write_text("id,front,person\ndrawn,front.png,worn.png\ntaken,front.png,me.png\n")
    return tmp_path


TRYON = (
    "tryon",
    "--front",
    "front.png",
    "--polygon",
    "p.json",
    "--num-inference-steps",
    "1",
    "--out",
    "new.png",
)
REFUSED = [
    ((*TRYON, "--person", "me.png", "--prompt", PROMPT), "me.png"),
    ((*TRYON, "--person", "worn.png", "--back", "back.png", "--prompt", PROMPT), "back.png"),
    (
        (
            "generate",
            "--front",
            "front.png",
            "--back",
            "back.png",
            "--prompt",
            PROMPT,
            "--num-inference-steps",
            "1",
        ),
        "back.png",
    ),
    (("caption", "--vlm-model", "pocket"), "taken.png"),
    (("embed",), "taken.png"),
]


@pytest.mark.parametrize(
    ("words", "name"), REFUSED, ids=lambda value: value[0] if isinstance(value, tuple) else value
)
def test_the_pocket_refuses_a_photograph_wherever_it_would_see_one(
    desk: Path,
    words: tuple[str, ...],
    name: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if words[0] == "embed":
        for triptych in ("drawn", "taken"):
            (desk / f"work/triptychs/{triptych}.txt").write_text(PROMPT)
    before = {path for path in desk.rglob("*") if path.is_file()}
    assert main([*words, "--model", "pocket"]) == 1
    error = capsys.readouterr().err
    assert f"{name} looks like a photograph, and the pocket " in error and "--anyway" in error
    made = {path for path in desk.rglob("*") if path.is_file()} - before
    assert not [path for path in made if path.suffix in (".png", ".safetensors", ".txt")], (
        "nothing made, nothing moved"
    )
    assert main([*words, "--model", "pocket", "--anyway"]) == 0
    assert f"{name} looks like a photograph" in caplog.text


def test_a_line_of_a_batch_is_refused_and_the_others_are_made(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "tryon",
        "--batch",
        "jobs.csv",
        "--polygon",
        "p.json",
        "--prompt",
        PROMPT,
        "--model",
        "pocket",
        "--out",
        "out",
        "--json",
    ]
    main([*words, "--num-inference-steps", "1"])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["made"], summary["failed"]) == (1, 1)
    assert "me.png looks like a photograph" in (desk / "out/results.csv").read_text()


def test_a_captioner_that_knows_drawings_is_asked_about_no_photograph_by_tryon(
    desk: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRYON, "--person", "me.png", "--model", str(tiny_flux), "--vlm-model", "pocket"]) == 1
    assert "the pocket captioner has only seen drawings" in capsys.readouterr().err


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
def test_run_looks_at_a_few_photos_before_it_works(
    desk: Path, drawn: bool, own: bool, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's own two commands, on photographs: model or captioner says what it has never seen, before
    `clean` begins.
    """
    for number in range(4):
        folder = desk / "photos" / f"item{number}"
        folder.mkdir(parents=True)
        picture: Callable[[int], Image.Image] = (
            (lambda n: held_out_items(1, n)[0].worn) if drawn else like_a_photo
        )
        picture(number).save(folder / "a.png")
    model = tiny_flux if own else "pocket"
    Path("t.yaml").write_text(
        f"model: {model}\nclean: {{photos: photos, human: h, garment: g}}\ncaption: {{vlm_model: pocket}}\n"
    )
    before = sorted(desk.rglob("*"))
    assert main(["run", "--config", "t.yaml"]) == 1
    error = capsys.readouterr().err
    assert ("has only seen drawings" in error) != drawn
    assert drawn or ("the pocket captioner" if own else "the pocket model") in error
    assert sorted(desk.rglob("*")) == before
    assert main(["run", "--config", "t.yaml", "--anyway"]) == 1
    assert "has only seen drawings" not in "".join(
        line for line in capsys.readouterr().err.splitlines() if line.startswith("error")
    )


def test_what_a_folder_knows_is_read_from_it(tmp_path: Path, tiny_flux: Path) -> None:
    assert model_settings("pocket").knows == known_by(checkpoint_path()) == "rendered"
    assert model_settings(str(tiny_flux)).knows == known_by(tmp_path) == ""
    check_pictures("", [("a", like_a_photo(0))], "model", "any", False)
    copy = tmp_path / "mine"
    shutil.copytree(checkpoint_path(), copy)
    assert model_settings(str(copy)).knows == "rendered", "not the name counts"
    for text in ('{"knows": "moon"}', '{"knows": ["rendered"]}', "[]", "{"):
        (copy / "triptych.json").write_text(text)
        with pytest.raises(ModelError):
            known_by(copy)
        with pytest.raises(ModelError):
            model_settings(str(copy))
