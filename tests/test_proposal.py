"""`--mask auto`: polygons proposed by a parser."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_known_worlds import like_a_photo
from triptych.errors import InputError
from triptych.evaluation.rendered import dressed, held_out_items
from triptych.pictures.masks import grow, repaint_mask
from triptych.pictures.polygons import read_outlines
from triptych.pocket import parser_path
from triptych.pocket.parts import PARTS as WORLD
from triptych.pocket.render import render
from triptych.pocket.world import sample_garment, sample_scene
from triptych.session import load_models
from triptych.verbs.reproduce import ReproduceConfig, reproduce
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vision.parsing import open_parser
from triptych.vton.config import is_proposed
from triptych.vton.proposal import asked_for, proposed


def test_what_is_auto_and_of_which_kind() -> None:
    masks = "auto", Path("auto:dress"), "points:3,4", "me.png", Path("auto.png"), None
    assert [is_proposed(mask) for mask in masks] == [True, True, True, False, False, False]
    assert asked_for(Path("auto:Dress"), "one t-shirt <IMAGE 1> …") == "dress"
    assert asked_for("auto", "one t-shirt <IMAGE 1> …") == "t-shirt"
    with pytest.raises(InputError, match=r"no kind of garment 'hat'.* --mask auto:KIND with one of upper, "):
        asked_for("auto:hat", "")
    with pytest.raises(InputError, match="does not say what is put on"):
        asked_for("auto", "<IMAGE 1> a hat")


def test_the_polygons_cover_the_old_garment_and_leave_the_face() -> None:
    for item in held_out_items(6, seed=3):
        before = item.view(2, item.other())
        photo = before.image.resize((before.image.width * 2, before.image.height * 2))
        polygons, holes, _ = proposed(photo, item.garment.type)
        area = repaint_mask(polygons, photo.size, holes=holes)
        worn = np.asarray(before.mask.resize(photo.size)) > 127
        assert area[worn].mean() > 0.98
        assert area.mean() < 0.55
        assert sum(map(len, polygons)) < 400


def test_the_embedded_parser_refuses_photographs() -> None:
    with pytest.raises(InputError, match="looks like a photograph, and the pocket parser has only"):
        proposed(like_a_photo(1), "dress", name="me.jpg")


def test_the_embedded_parser_names_the_parts_of_people_it_has_not_seen() -> None:
    parser = open_parser()
    assert parser.knows == "rendered"
    assert sum(path.stat().st_size for path in parser_path().iterdir()) < 3 << 20
    rng, both, either = random.Random(3), np.zeros(len(WORLD)), np.zeros(len(WORLD))
    for number in range(12):
        garment, scene = sample_garment(rng, held_out=True), sample_scene(rng, "worn", held_out=True)
        drawn = render(garment, scene, number, (1, 4)[number % 2], labels=True)
        found = parser.parts(drawn.image)
        for part in range(len(WORLD)):
            one, other = found == part, drawn.labels == part
            both[part] += (one & other).sum()
            either[part] += (one | other).sum()
    overlap = dict(zip(WORLD, both / either, strict=True))
    assert min(overlap[name] for name in ("top", "dress", "skirt", "trousers", "face", "hair")) > 0.8, overlap
    assert min(overlap.values()) > 0.3, overlap  # a hand is three pixels wide


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Path]:
    """Product photos of the rendered world, and somebody who wears something else."""
    item = held_out_items(1, seed=9)[0]
    pictures = {"front": item.front, "back": item.back, "person": item.view(2, item.other()).image}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in pictures}


PROMPT = "one dress <IMAGE 1> its front <IMAGE 2> its back <IMAGE 3> somebody in the dress"


def options(tiny_flux: Path, shop: dict[str, Path], **changes: object) -> TryonConfig:
    known = {"prompt": PROMPT, "model": str(tiny_flux), "device": "cpu", "dtype": "fp32"}
    return TryonConfig(**known | shop | {"num_inference_steps": 2, "mask": Path("auto")} | changes)


def test_tryon_writes_the_proposal_as_polygons_that_give_the_same_picture(
    tiny_flux: Path, shop: dict[str, Path], tmp_path: Path
) -> None:
    tryon(options(tiny_flux, shop, out=tmp_path / "new.png")).finish()
    drawn = tmp_path / "new-mask.json"
    about = json.loads(Image.open(tmp_path / "new.png").text["triptych"])
    assert about["sha256"].keys() == {"front", "back", "person", "polygon"}
    assert about["sha256"]["polygon"] == hashlib.sha256(drawn.read_bytes()).hexdigest()
    before, after = (np.asarray(Image.open(path)) for path in (shop["person"], tmp_path / "new.png"))
    outlines, holes, sized = read_outlines(drawn, Image.open(shop["person"]).size)
    far = grow(repaint_mask(outlines, before.shape[1::-1], holes=holes), 8) == 0
    assert sized and np.array_equal(before[far], after[far]) and 0.2 < far.mean() < 0.95
    given = options(tiny_flux, shop, out=tmp_path / "given.png", mask=None, polygon=drawn)
    tryon(given).finish()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "given.png")), after)
    again = reproduce(ReproduceConfig(image=tmp_path / "new.png", photos=[tmp_path], model=str(tiny_flux)))
    assert again.finish()["identical"]


def test_a_proposal_gives_way_to_the_next_one_until_somebody_corrects_it(
    tiny_flux: Path, shop: dict[str, Path], tmp_path: Path
) -> None:
    drawn, out = tmp_path / "a-mask.json", tmp_path / "a.png"
    for kind in ("dress", "skirt"):
        tryon(options(tiny_flux, shop, out=out, mask=Path(f"auto:{kind}"))).finish()
        before = json.loads(drawn.read_text())
    before["polygons"][0][0][0] += 1
    drawn.write_text(json.dumps(before))
    with pytest.raises(InputError, match="holds something else"):
        tryon(options(tiny_flux, shop, out=out)).finish()


def test_a_line_of_a_batch_may_have_a_kind_of_its_own(
    tiny_flux: Path, shop: dict[str, Path], tmp_path: Path
) -> None:
    like_a_photo(1).save(tmp_path / "me.png")
    rows = ["id,person,mask", "one,person.png,auto:dress", "two,me.png,", "three,person.png,auto:hat"]
    (tmp_path / "jobs.csv").write_text("\n".join(rows))
    out, jobs = tmp_path / "new", tmp_path / "jobs.csv"
    config = options(tiny_flux, {**shop, "person": None}, batch=jobs, out=out)
    summary = tryon(config).finish()
    assert (summary["made"], summary["failed"]) == (1, 2)
    reasons = (out / "results.csv").read_text()
    assert "me.png looks like a photograph, and the pocket parser" in reasons
    assert "There is no kind of garment 'hat'" in reasons
    assert {path.name for path in out.glob("*.json")} == {"one-mask.json"}
    assert tryon(config).finish()["kept"] == 1


def test_what_is_missing_is_said_before_a_model_is_opened(shop: dict[str, Path], tmp_path: Path) -> None:
    nowhere = options(Path("nowhere"), shop, out=tmp_path / "a.png", prompt="<IMAGE 1> x")
    with pytest.raises(InputError, match="does not say what is put on"):
        tryon(nowhere)


def test_evaluate_dresses_people_within_proposed_regions() -> None:
    items, session = held_out_items(2, seed=4), load_models("pocket", [])
    sampling = session.sampling(num_inference_steps=1, strength=0.95)
    drawn = dressed(session, sampling, items, 0)
    proposal = dressed(session, sampling, items, 0, parser=open_parser())
    assert proposal.outside == drawn.outside == 0
    moved = [
        np.mean(np.asarray(one) != np.asarray(item.view(2, item.other()).image))
        for one, item in zip(proposal.panels, items, strict=True)
    ]
    assert 0.1 < min(moved) < max(moved) < 0.7
    assert any(one.tobytes() != two.tobytes() for one, two in zip(proposal.panels, drawn.panels, strict=True))
