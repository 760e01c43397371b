"""`roles`: a captioner tells the role of a product photo, and `concat` goes by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.caption_server import KEY, Call, Server
from triptych.captioning.roles import question, read_role
from triptych.cli import main
from triptych.data.catalogue import Photo, write_photos
from triptych.data.told_roles import told_roles
from triptych.data.views import choose_views, is_guess, unsaid
from triptych.errors import ModelError
from triptych.store.files import read_jsonl, sha256_file
from triptych.tasks.outfit import OUTFIT
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.concat import ConcatConfig, concat
from triptych.verbs.roles import RolesConfig, roles


@pytest.mark.parametrize(
    ("answer", "role"),
    [
        ("back", "back"),
        ("**Front.**", "front"),
        ("<think>the back? no</think>front", "front"),
        ('{"answer": "other"}', "other"),
        ("It shows the back of a coat.", "back"),
        ("front or back", None),
        ("", None),
        ("backpack", None),
        ("sleeve", None),
    ],
)
def test_answers_about_one_photo(answer: str, role: str | None) -> None:
    assert read_role(answer, TRY_ON) == role


def test_the_question_has_every_role() -> None:
    for task in (TRY_ON, OUTFIT):
        assert all(f" {role}: " in question(task) for role in (*task.photo_roles.names, "other"))


def garments(*names: str) -> list[Photo]:
    return [Photo("i", f"p/i/{name}", name, "garment", 0.1) for name in names]


def test_what_is_told_ranks_between_names_and_order() -> None:
    one, two, three = garments("IMG_71.jpg", "IMG_82.jpg", "IMG_93.jpg")
    roles = TRY_ON.photo_roles
    told = {one.sha256: "other", two.sha256: "back", three.sha256: "front"}
    assert choose_views([one, two, three], roles, told) == {
        "front": (three, "captioner"),
        "back": (two, "captioner"),
    }
    both = choose_views([one, two], roles, {one.sha256: "back", two.sha256: "back"})
    assert is_guess(both) and both["back"].photo is two, "one of them must be wrong"
    settled = choose_views([one, two], roles, {one.sha256: "back"})
    assert settled["front"].photo is two and not is_guess(settled)
    named, other = garments("coat_front.jpg", "IMG_82.jpg")
    assert choose_views([other, named], roles, {named.sha256: "back"})["front"] == (named, "name")
    by_user = Photo("i", "p/i/x.jpg", "x", "garment", 0.1, "override: front")
    assert choose_views([one, by_user], roles, {by_user.sha256: "back"})["front"] == (by_user, "override")
    outfit = choose_views([one, two], OUTFIT.photo_roles, {one.sha256: "bag", two.sha256: "bag"})
    assert outfit == {"bag": (one, "captioner")}


def test_only_what_matters_is_asked() -> None:
    names = "coat_front.jpg", "IMG_82.jpg", "IMG_93.jpg"
    photos = garments(*names)
    assert unsaid(photos, TRY_ON.photo_roles) == photos[1:]
    assert unsaid(photos[:2], TRY_ON.photo_roles) == [], "one photo is left for the back"
    assert unsaid(photos[1:2], TRY_ON.photo_roles) == [], "a lone photo is both"
    assert unsaid(photos[1:2], OUTFIT.photo_roles) == photos[1:2]


def shop(work: Path, items: dict[str, dict[str, int]]) -> None:
    """A catalogue of grey photos; a photo with `worn` in its name shows a person."""
    photos = []
    for item, shades in items.items():
        for name, grey in shades.items():
            path = work / "photos" / item / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 40), (grey, grey, grey)).save(path)
            label = "human" if "worn" in name else "garment"
            photos.append(Photo(item, str(path), sha256_file(path), label, 0.5))
    write_photos(work / "catalogue/photos.jsonl", photos)


def test_a_swapped_item_comes_out_right(tmp_path: Path, server: Server) -> None:
    shop(tmp_path, {"a": {"IMG_71.png": 100, "IMG_82.png": 150, "worn.png": 10}, "b": {"front.png": 200}})

    def script(call: Call) -> str:
        assert call.prompt == question(TRY_ON)
        return {10: "back", 15: "front"}[call.number]

    server.script = script
    config = RolesConfig(work=tmp_path, vlm_model="m", base_url=server.url)
    summary = roles(config).finish()
    assert (summary["asked"], summary["kept"], summary["unclear"]) == (2, 0, 0)
    assert summary["told"] == {"back": 1, "front": 1}
    assert Path(summary["sheet"]).exists()
    assert sorted(told_roles(tmp_path / "catalogue").values()) == ["back", "front"]
    made = concat(ConcatConfig(work=tmp_path, model="pocket", panel_width=32, panel_height=48))
    assert made.finish()["guessed_sides"] == 0
    (row,) = read_jsonl(tmp_path / "triptychs/metadata.jsonl")
    assert Path(row["front"]).name == "IMG_82.png" and Path(row["back"]).name == "IMG_71.png"
    assert len(server.calls) == 2
    again = roles(config).finish()
    assert (again["asked"], again["kept"], len(server.calls)) == (0, 2, 2)
    journal = (tmp_path / "catalogue/roles.jsonl").read_text()
    assert KEY not in journal


def test_an_unclear_answer_is_asked_again_next_time(tmp_path: Path, server: Server) -> None:
    shop(tmp_path, {"a": {"IMG_71.png": 100, "worn.png": 10}})
    config = RolesConfig(work=tmp_path, task="outfit", vlm_model="m", base_url=server.url)
    server.script = lambda call: "a top or a bag"
    summary = roles(config).finish()
    assert (summary["asked"], summary["unclear"]) == (0, 1)
    concat_config = ConcatConfig(
        work=tmp_path, task="outfit", model="pocket", panel_width=32, panel_height=48
    )
    assert concat(concat_config).finish()["triptychs"] == 0
    server.script = lambda call: "Top"
    assert roles(config).finish()["told"] == {"top": 1}
    assert concat(concat_config).finish()["triptychs"] == 1


def test_without_a_captioner_it_says_so_and_without_need_asks_nothing(tmp_path: Path) -> None:
    shop(tmp_path, {"a": {"IMG_71.png": 100, "IMG_82.png": 150, "worn.png": 10}})
    with pytest.raises(ModelError):
        roles(RolesConfig(work=tmp_path))
    shop(tmp_path, {"a": {"front.png": 100, "back.png": 150, "worn.png": 10}})
    assert roles(RolesConfig(work=tmp_path)).finish()["asked"] == 0


@pytest.mark.parametrize("row", [{"role": 3}, {"role": "dog"}, {"role": "front", "id": 4}, "x"])
def test_a_foreign_file_of_roles_does_no_harm(tmp_path: Path, row: Any) -> None:
    shop(tmp_path, {"a": {"IMG_71.png": 100, "IMG_82.png": 150, "worn.png": 10}})
    (tmp_path / "catalogue/roles.jsonl").write_text(json.dumps({"kind": "role"} | row if row != "x" else row))
    made = concat(ConcatConfig(work=tmp_path, model="pocket", panel_width=32, panel_height=48)).finish()
    assert (made["triptychs"], made["guessed_sides"]) == (1, 1)


def test_the_command(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    shop(tmp_path, {"a": {"IMG_71.png": 100, "IMG_82.png": 150, "worn.png": 10}})
    server.script = lambda call: "front" if call.number == 15 else "back"
    words = ["roles", "--work", str(tmp_path), "--vlm-model", "m", "--base-url", server.url]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "roles_sheet.jpg" in captured.out + captured.err
