"""What says which area is repainted: masks as picture files, and the polygons that are given back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.test_tryon import PROMPT, options, photo
from triptych import Session
from triptych.errors import InputError
from triptych.pictures import masks
from triptych.pictures.given_masks import read_mask
from triptych.pictures.polygons import read_outlines, write_polygons
from triptych.verbs.tryon import tryon
from triptych.vton.area import area_of
from triptych.vton.request import repainted

SIZE = (211, 307)
SHIRT = [(60.0, 80.0), (140.0, 80.0), (150.0, 200.0), (50.0, 190.0)]
HOLE = [(80.0, 100.0), (100.0, 100.0), (90.0, 150.0)]


def drawn() -> Image.Image:
    """White shirt on black, with a hole."""
    picture = Image.new("L", SIZE)
    ImageDraw.Draw(picture).polygon(SHIRT, 255)
    ImageDraw.Draw(picture).polygon(HOLE, 0)
    return picture


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one >= 0.5, other >= 0.5
    return float((one & other).sum() / (one | other).sum())


def cut_out(alpha: Image.Image) -> Image.Image:
    """A colour picture that is opaque where the mask is white."""
    picture = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    picture.putalpha(alpha)
    return picture


def sideways(path: Path) -> Path:
    """The mask as a camera would store it: lying, with a tag that says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def test_a_mask_in_a_file(tmp_path: Path) -> None:
    white = np.asarray(drawn()) > 127
    for name, picture in {
        "grey.png": drawn(),
        "one.png": drawn().convert("1"),
        "palette.png": drawn().convert("P"),
        "colour.webp": drawn().convert("RGB"),
        "alpha.png": cut_out(drawn()),
        "grey-alpha.png": Image.merge("LA", (Image.new("L", SIZE), drawn())),
    }.items():
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        found, warnings = read_mask(tmp_path / name, SIZE)
        assert np.array_equal(found, white) and warnings == [], name
    drawn().save(tmp_path / "noisy.jpg", quality=70)
    assert overlap(read_mask(tmp_path / "noisy.jpg", SIZE)[0], white) > 0.99
    assert overlap(read_mask(sideways(tmp_path / "turned.jpg"), SIZE)[0], white) > 0.98
    larger = drawn().resize((422, 614), Image.Resampling.NEAREST)
    larger.save(tmp_path / "larger.png")
    assert overlap(read_mask(tmp_path / "larger.png", SIZE)[0], white) > 0.98


def test_what_is_no_mask_of_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", SIZE, 127).save(path)
    with pytest.raises(InputError, match="is black"):
        read_mask(path, SIZE)
    drawn().resize((307, 211)).save(path)
    with pytest.raises(InputError, match="has 307×211 px, the photo 211×307"):
        read_mask(path, SIZE)
    Image.fromarray(255 - np.asarray(drawn())).save(path)
    (told,) = read_mask(path, SIZE)[1]
    assert "repaints 85% of the photo" in told


def test_a_mask_can_be_widened_like_polygons() -> None:
    mask = np.asarray(drawn()) > 127
    assert np.array_equal(repainted(SIZE, None, mask, grow=3), masks.grow(mask.astype(np.float32), 3))
    hull = repainted(SIZE, None, mask, expand="hull")
    assert overlap(hull, masks.polygon_mask([SHIRT], SIZE)) > 0.96, "the hole lies inside the hull"


def test_labels_need_a_file() -> None:
    with pytest.raises(InputError, match="files of polygons alone"):
        area_of(SIZE, [SHIRT], None, labels="dress")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return {
        "front": photo(tmp_path / "front.jpg", (120, 160), 1),
        "person": photo(tmp_path / "me.png", SIZE, 3),
    }


def test_polygons_are_written_and_given_back(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """A mask picture, then its polygons: the same preview; and what was corrected is not overwritten."""
    drawn().save(tmp_path / "mask.png")
    out = tmp_path / "sub" / "me.json"
    first = tryon(options(tiny_flux, inputs, tmp_path, mask=tmp_path / "mask.png", mask_out=out, grow=5))
    about = json.loads(Image.open(first.finish()["images"][0]).text["triptych"])
    assert set(about["sha256"]) == {"front", "person", "mask"}
    written = read_outlines(out, SIZE)
    filled = masks.repaint_mask(written.polygons, SIZE, holes=written.holes)
    assert written.sized and overlap(filled, np.asarray(drawn()) / 255) >= 0.995, "before it grows"
    tryon(options(tiny_flux, inputs, tmp_path, mask=tmp_path / "mask.png", mask_out=out)).finish()
    write_polygons(out, [SHIRT], SIZE, [HOLE])
    with pytest.raises(InputError, match="is there already, and holds something else"):
        tryon(options(tiny_flux, inputs, tmp_path, mask=tmp_path / "mask.png", mask_out=out))
    again = tmp_path / "again.json"
    tryon(options(tiny_flux, inputs, tmp_path, polygon=out, mask_out=again, expand="hull")).finish()
    assert json.loads(again.read_text()) == json.loads(out.read_text()), "as it was drawn, with its hole"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--polygon is missing"),
        ({"mask": "mask.png", "polygon": "me.json"}, "a polygon and a mask"),
        ({"mask": "none.png"}, "none.png is not a usable photo"),
        ({"mask": "mask.png", "mask_out": "me.png"}, "no name for a JSON file"),
        ({"polygon": "me.json", "mask_out": "me.json"}, "would overwrite one of the files given"),
        ({"mask": "mask.png", "polygon_label": "dress"}, "files of polygons alone"),
    ],
)
def test_what_does_not_go_together(
    tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    drawn().save(tmp_path / "mask.png")
    write_polygons(tmp_path / "me.json", [SHIRT], SIZE)
    own = {name: value if name == "polygon_label" else tmp_path / value for name, value in changes.items()}
    with pytest.raises(InputError, match=words):
        tryon(options(tiny_flux, inputs, tmp_path, **own))


def labelme(path: Path) -> Path:
    shapes = [{"label": "shirt", "points": SHIRT}, {"label": "hat", "points": HOLE}]
    about = {"imagePath": "me.png", "imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    path.write_text(json.dumps({"shapes": shapes} | about))
    return path


def test_files_in_a_batch(tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    drawn().save(tmp_path / "mask.png")
    labelme(tmp_path / "labelme.json")
    lines = [
        "id,polygon,polygon_label,mask",
        "a,,,mask.png",
        "b,labelme.json,shirt,",
        "c,labelme.json,,",
        "d,,,",
    ]
    (tmp_path / "jobs.csv").write_text("\n".join(lines))
    write_polygons(tmp_path / "me.json", [SHIRT], SIZE)
    config = options(
        tiny_flux,
        inputs,
        tmp_path,
        batch=tmp_path / "jobs.csv",
        out=tmp_path / "out",
        polygon=tmp_path / "me.json",
        mask_out=tmp_path / "drawn",
        num_inference_steps=1,
    )
    summary = tryon(config).finish()
    assert (summary["made"], summary["failed"]) == (3, 1)
    assert "several labels: shirt (1), hat (1)" in (tmp_path / "out" / "results.csv").read_text()
    assert [path.name for path in sorted((tmp_path / "drawn").iterdir())] == ["a.json", "b.json", "d.json"]
    assert read_outlines(tmp_path / "drawn" / "b.json", SIZE).polygons == [SHIRT]
    assert tryon(config).finish()["kept"] == 3
    with pytest.raises(InputError, match="give a folder with --mask-out"):
        tryon(config.model_copy(update={"mask_out": tmp_path / "me.json"}))


def test_files_in_a_session(tiny_flux: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    session = Session(str(tiny_flux), device="cpu", dtype="fp32")
    front, person = (Image.open(inputs[name]) for name in ("front", "person"))
    known = {"prompt": PROMPT, "num_inference_steps": 1}
    path = labelme(tmp_path / "labelme.json")
    (by_file,) = session.try_on(front, None, person, polygons=path, polygon_label="shirt", **known)
    (by_hand,) = session.try_on(front, None, person, polygons=[SHIRT], **known)
    assert np.array_equal(np.asarray(by_file.image), np.asarray(by_hand.image))
    assert by_file.settings["polygon_label"] == "shirt" and "polygon_label" not in by_hand.settings
    drawn().save(tmp_path / "mask.png")
    (by_mask,) = session.try_on(front, None, person, mask=str(tmp_path / "mask.png"), feather=0, **known)
    assert np.array_equal(by_mask.mask > 0, np.asarray(drawn()) > 0)
