"""Which view a photo shows: what file names say, and what the front and the back are made of."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from triptych.data.catalogue import Photo
from triptych.data.views import choose_views, common_words, count_guessed, mixed_items, view_hint
from triptych.tasks.tryon import TRY_ON

ROLES = TRY_ON.photo_roles


def photos(*names: str, label: str = "garment", item: str = "i") -> list[Photo]:
    return [Photo(item, f"p/{item}/{name}", f"sha of {item}/{name}", label, 0.5) for name in names]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("front.jpg", "front"),
        ("coat_front.jpg", "front"),
        ("FrontView-2.png", "front"),
        ("coat-BACK (3).jpeg", "back"),
        ("mp12-black_main.jpg", "front"),
        ("mh01-gray_back.jpg", "back"),
        ("shirt_f.jpg", "front"),
        ("shirt_b.jpg", "back"),
        ("1.jpg", "front"),
        ("02.jpg", "back"),
        ("coat 1.jpg", "front"),
        ("item2_front.jpg", "front"),
        ("rückseite.jpg", "back"),
        ("背面.jpg", "back"),
        ("IMG_2081.jpg", None),
        ("IMG_0003.jpg", None),
        ("red backpack.jpg", None),
        ("background.jpg", None),
        ("front_and_back.jpg", None),
        ("b_side_story.jpg", None),
        ("size 12.jpg", None),
        ("___.jpg", None),
        (".jpg", None),
        ("", None),
    ],
)
def test_view_hint(name: str, side: str | None) -> None:
    assert view_hint(name, ROLES) == side


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("dress_detail.jpg", "part"),
        ("dress_detail_1.jpg", "part"),
        ("front-detail.jpg", "part"),
        ("SizeChart.png", "part"),
        ("size chart.jpg", "part"),
        ("close-up 2.jpg", "part"),
        ("dress_swatch.jpg", "part"),
        ("back_label.jpg", "part"),
        ("细节图.jpg", "part"),
        ("Etikett.jpg", "part"),
        ("dress_side.jpg", "side"),
        ("side-view.jpg", "side"),
        ("dress_left_2.jpg", "side"),
        ("正面图.jpg", "front"),
        ("whitelabel-tee.jpg", None),
        ("seaside.jpg", None),
    ],
)
def test_views_that_are_neither_front_nor_back(name: str, view: str | None) -> None:
    assert view_hint(name, ROLES) == view


def test_names_of_macs_are_read() -> None:
    assert view_hint(unicodedata.normalize("NFD", "rückseite.jpg"), ROLES) == "back"


@pytest.mark.parametrize(
    ("names", "front", "back"),
    [
        (
            ["dress_front.jpg", "dress_detail.jpg", "dress_swatch.jpg", "dress_side.jpg"],
            "dress_front.jpg",
            "dress_front.jpg",
        ),
        (["a_swatch.jpg", "k.jpg", "l_label.jpg", "m.jpg"], "k.jpg", "m.jpg"),
        (["detail.jpg", "swatch.jpg"], "detail.jpg", "swatch.jpg"),  # nothing better
        (["detail.jpg", "side.jpg"], "side.jpg", "side.jpg"),
        (
            ["side-stripe-pants_01.jpg", "side-stripe-pants_02.jpg"],
            "side-stripe-pants_01.jpg",
            "side-stripe-pants_02.jpg",
        ),
        (
            ["front-zip-coat_02.jpg", "front-zip-coat_01.jpg"],
            "front-zip-coat_01.jpg",
            "front-zip-coat_02.jpg",
        ),
        (
            ["label-coat_back.jpg", "label-coat_front.jpg", "label-coat_detail.jpg"],
            "label-coat_front.jpg",
            "label-coat_back.jpg",
        ),
    ],
)
def test_front_and_back(names: list[str], front: str, back: str) -> None:
    sides = choose_views(photos(*names), ROLES)
    assert {role: Path(one.photo.path).name for role, one in sides.items()} == {"front": front, "back": back}


def test_who_said_so() -> None:
    def by(*names: str) -> tuple[str, str]:
        sides = choose_views(photos(*names), ROLES)
        return sides["front"].by, sides["back"].by

    assert by("IMG_5.jpg", "IMG_7.jpg") == ("guess", "guess")
    assert by("a_front.jpg", "a_back.jpg") == ("name", "name")
    assert by("IMG_5.jpg", "IMG_7_back.jpg") == ("name", "name")  # of two, one is named: so is the other
    assert by("IMG_5_front.jpg", "IMG_7.jpg", "IMG_8.jpg") == ("name", "guess")
    assert by("IMG_5.jpg") == ("guess", "the only photo")
    assert (
        count_guessed(
            [
                *photos("IMG_5.jpg", "IMG_7.jpg"),
                *photos("f.jpg", "b.jpg", item="j"),
                *photos("x.jpg", item="k"),
            ],
            ROLES,
        )
        == 1
    )


def test_common_words_are_the_products_name() -> None:
    assert common_words(["x/side-coat_1.jpg", "x/side-coat_2.jpg"], ROLES) == {"side", "coat"}
    assert common_words(["x/side-coat_1.jpg"], ROLES) == frozenset()


def item(garments: list[str], people: int) -> list[Photo]:
    return [*photos(*garments), *photos(*(f"w{n}x.jpg" for n in range(people)), label="human")]


@pytest.mark.parametrize(
    ("members", "mixed"),
    [
        (item([f"0{n}_1.jpg" for n in range(5)], 5), True),  # DressCode: five garments and who wears them
        (item([f"IMG_{n}9.jpg" for n in range(3)], 3), True),
        (item([f"IMG_{n}9.jpg" for n in range(9)], 30), True),
        (item(["IMG_19.jpg", "IMG_29.jpg"], 6), False),  # front, back and a long shoot
        (item(["IMG_19.jpg", "IMG_29.jpg", "IMG_39.jpg"], 9), False),
        (item(["front.jpg", "back.jpg", "more.jpg"], 3), False),  # names settle it
        (item(["a.jpg", "b.jpg", "detail.jpg", "label.jpg"], 4), False),
        (item([f"IMG_{n}9.jpg" for n in range(6)], 0), False),  # no triptych comes of it
    ],
)
def test_items_that_hold_several_garments(members: list[Photo], mixed: bool) -> None:
    assert bool(mixed_items(members, ROLES, None)) == mixed


def test_garments_that_look_alike_and_overrides_keep_an_item() -> None:
    members = item([f"IMG_{n}9.jpg" for n in range(4)], 4)
    alike = np.tile([0.6, 0.8], (100, 1))
    assert not mixed_items(members, ROLES, lambda keys: alike[: len(keys)])
    assert mixed_items(members, ROLES, lambda keys: np.eye(len(keys)))
    said = [Photo("i", "p/x.jpg", "x", "garment", 0.5, "override: front"), *members]
    assert not mixed_items(said, ROLES, None)
