"""Scanning folders of photos: whose photo is it, and what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triptych.data.photo_folders import STRAY, check_examples, natural, refusal, scan
from triptych.errors import InputError
from triptych.tasks.tryon import TRY_ON

ROLES = TRY_ON.photo_roles


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(root: Path, **options: object) -> list[tuple[str, str]]:
    return [(item, path.relative_to(root).as_posix()) for item, path in scan(root, ROLES, **options)]


def test_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "item10/a.jpg", "item2/10.jpg", "item2/9.jpg", "item1/b.jpg", "Item1b/c.jpg")
    assert listed(tmp_path) == [
        ("item1", "item1/b.jpg"),
        ("Item1b", "Item1b/c.jpg"),
        ("item2", "item2/9.jpg"),
        ("item2", "item2/10.jpg"),
        ("item10", "item10/a.jpg"),
    ]
    assert sorted(["a²", "a2", "٣", "", "10", "9"], key=natural)  # nothing that \\d knows and int does not


def test_items_are_the_topmost_folders_with_photos(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "coats/readme.txt",
        "coats/item1/front.jpg",
        "coats/item1/details/sleeve.jpg",
        "item2/x.png",
        "loose.jpg",
    )
    assert listed(tmp_path) == [
        ("", "coats/readme.txt"),
        ("", "loose.jpg"),
        ("coats__item1", "coats/item1/details/sleeve.jpg"),
        ("coats__item1", "coats/item1/front.jpg"),
        ("item2", "item2/x.png"),
    ]


def test_two_folders_never_become_one_item(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/x.jpg", "a__b/y.jpg")
    with pytest.raises(InputError, match="a__b"):
        scan(tmp_path, ROLES)


def test_skipped_folders(tmp_path: Path) -> None:
    touch(tmp_path, "item1/a.jpg", "work/catalogue/contact_sheet.png", "examples/human/h.jpg")
    assert listed(tmp_path, skip=[tmp_path / "work", tmp_path / "examples" / "human"]) == [
        ("item1", "item1/a.jpg")
    ]


def test_refusals(tmp_path: Path) -> None:
    root, outside = tmp_path / "photos", tmp_path / "outside"
    touch(root, "item/a.jpg", "item/.DS_Store", "item/.hidden/b.jpg", "loose.jpg")
    touch(outside, "secret.jpg", "folder/b.jpg")
    (root / "item/leaves.jpg").symlink_to(outside / "secret.jpg")
    (root / "item/relative.jpg").symlink_to("../../outside/secret.jpg")
    (root / "item/inside.jpg").symlink_to("a.jpg")
    (root / "item/broken.jpg").symlink_to("gone.jpg")
    (root / "linked").symlink_to(outside / "folder")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "item/pipe.jpg")
    Path(os.fsdecode(os.fsencode(root / "item") + b"/\xff.jpg")).write_bytes(b"x")
    reasons = {
        path.relative_to(root).as_posix(): refusal(root, item, path) for item, path in scan(root, ROLES)
    }
    assert reasons.pop(os.fsdecode(b"item/\xff.jpg")) == "its name is not valid UTF-8"
    assert reasons == {
        "item/a.jpg": None,
        "item/inside.jpg": None,
        "item/.DS_Store": "hidden file",
        "item/.hidden": "hidden file",
        "item/leaves.jpg": "link that leaves the photo folder",
        "item/relative.jpg": "link that leaves the photo folder",
        "item/broken.jpg": "broken link",
        "item/pipe.jpg": "not a regular file",
        "linked": "link that leaves the photo folder",
        "loop": "link to a folder",
        "loose.jpg": "not in an item folder",
    }


def test_a_photo_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "real/item/a.jpg")
    (tmp_path / "link").symlink_to("real")
    [(item, path)] = scan(tmp_path / "link", ROLES)
    assert (item, refusal(tmp_path / "link", item, path)) == ("item", None)


def test_missing_folder(tmp_path: Path) -> None:
    touch(tmp_path, "file.jpg")
    for name in ("nowhere", "file.jpg"):
        with pytest.raises(InputError, match=name):
            scan(tmp_path / name, ROLES)


def test_paths_stay_as_the_user_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/item/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert [str(path) for _, path in scan(Path("photos"), ROLES)] == ["photos/item/a.jpg"]


def reasons(root: Path) -> dict[str, str | None]:
    return {path.relative_to(root).as_posix(): refusal(root, item, path) for item, path in scan(root, ROLES)}


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_XL.jpg",
        ".thumbnails/IMG_1.jpg",
        "__MACOSX/._IMG_1.jpg",
        "$RECYCLE.BIN/S-1-5/IMG_1.jpg",
        "#recycle/IMG_1.jpg",
        ".Trash-1000/files/IMG_1.jpg",
        ".Trashes/IMG_1.jpg",
        "lost+found/IMG_1.jpg",
        ".@__thumb/IMG_1.jpg",
        "@Recycle/IMG_1.jpg",
        "System Volume Information/IMG_1.jpg",
        "Lightroom Previews.lrdata/IMG_1.jpg",
        "_Thumbs/IMG_1.jpg",
        "Thumbs.db",
        "desktop.ini",
        "._IMG_1.jpg",
        ".DS_Store",
    ],
)
@pytest.mark.parametrize("where", ["item1/", "", "coats/item1/"])
def test_what_photo_managers_and_systems_keep_is_no_photo(name: str, where: str, tmp_path: Path) -> None:
    touch(tmp_path, "item1/IMG_1.jpg", "coats/item1/IMG_1.jpg", where + name)
    found = scan(tmp_path, ROLES)
    assert [
        path.relative_to(tmp_path).as_posix() for item, path in found if refusal(tmp_path, item, path) is None
    ] == [
        "coats/item1/IMG_1.jpg",
        "item1/IMG_1.jpg",
    ]
    assert {item for item, path in found if refusal(tmp_path, item, path) is None} == {
        "item1",
        "coats__item1",
    }
    assert len(found) == 3, "what is left out is listed"


def test_a_stray_picture_does_not_melt_items_into_one(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "coats/sizechart.jpg",
        "coats/item1/a.jpg",
        "coats/item1/b.jpg",
        "coats/item2/a.jpg",
        "coats/notes.txt",
    )
    touch(
        tmp_path,
        "coats/long/banner.png",
        "coats/long/item3/a.jpg",
        "coats/long/item4/b.jpg",
        "one/x.jpg",
        "one/item5/a.jpg",
        "one/item5/b.jpg",
    )
    assert {item for item, path in scan(tmp_path, ROLES)} == {
        "",
        "coats__item1",
        "coats__item2",
        "coats__long__item3",
        "coats__long__item4",
        "one__item5",
    }
    assert {name for name, reason in reasons(tmp_path).items() if reason == STRAY} == {
        "coats/sizechart.jpg",
        "coats/notes.txt",
        "coats/long/banner.png",
        "one/x.jpg",
    }


@pytest.mark.parametrize(
    "names",
    [
        ["item1/a.jpg", "item1/details/b.jpg", "item1/worn/c.jpg"],
        ["item1/a.jpg", "item1/b.jpg", "item1/c.jpg", "item1/zusatz/d.jpg"],
        ["item1/front/a.jpg", "item1/back/b.jpg", "item1/model/c.jpg", "item1/model/d.jpg"],
        ["item1/Flat Lay/a.jpg", "item1/On-Model/b.jpg"],
        ["item1/a.jpg", "item1/details/more/b.jpg"],
    ],
)
def test_folders_inside_an_item(names: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    assert {item for item, _ in scan(tmp_path, ROLES)} == {"item1"}


def test_numbered_folders_are_items(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "coats/product 1/a.jpg",
        "coats/product 2/a.jpg",
        "tops/banner.jpg",
        "tops/model1/a.jpg",
        "tops/model2/a.jpg",
    )
    assert {item for item, _ in scan(tmp_path, ROLES)} == {
        "",
        "coats__product 1",
        "coats__product 2",
        "tops__model1",
        "tops__model2",
    }


def test_folders_of_views_with_many_photos_are_no_item(tmp_path: Path) -> None:
    touch(tmp_path, *(f"shop/{view}/{n}.jpg" for view in ("flat", "look") for n in range(9)))
    assert {item for item, _ in scan(tmp_path, ROLES)} == {"shop__flat", "shop__look"}


SETS = {
    "VITON-HD": [f"train/{kind}/0{n}_00.jpg" for kind in ("image", "cloth", "cloth-mask") for n in range(5)],
    "VITON-HD, its training part": [f"{kind}/0{n}_00.jpg" for kind in ("image", "cloth") for n in range(3)]
    + ["../train_pairs.txt"],
    "people and products": [f"{kind}/sku{n}.jpg" for kind in ("person", "garment") for n in range(8)],
    "DressCode": [f"upper_body/images/0{n}0_{side}.jpg" for n in range(10, 15) for side in (0, 1)]
    + ["upper_body/train_pairs.txt"],
    "DressCode without its list": [
        f"dresses/images/0{n}0_{side}.jpg" for n in range(10, 12) for side in (0, 1)
    ],
    "DressCode, one part": [f"images/0{n}0_{side}.jpg" for n in range(10, 15) for side in (0, 1)],
    "a list of pairs beside pictures": [f"images/x{n}.jpg" for n in range(4)] + ["test_pairs_unpaired.txt"],
}


@pytest.mark.parametrize("kind", SETS)
def test_data_sets_that_are_sorted_by_view_are_refused(kind: str, tmp_path: Path) -> None:
    touch(tmp_path / "set", *SETS[kind])
    with pytest.raises(InputError, match="is sorted like") as caught:
        scan(tmp_path / "set", ROLES)
    assert "photos/ITEM" in caught.value.hint


def test_items_with_views_of_their_own_are_no_data_set(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(
            f"item{n}/{name}"
            for n in range(9)
            for name in ("model/1.jpg", "model/2.jpg", "product/1.jpg", "product/2.jpg")
        ),
    )
    touch(tmp_path, "train_pairs.txt")  # left over from a set that was sorted anew
    assert {item for item, _ in scan(tmp_path, ROLES)} == {"", *(f"item{n}" for n in range(9))}


def test_links_in_a_circle_lose_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    touch(root, "item1/a.jpg", "item2/b.jpg")
    (root / "item1/l.jpg").symlink_to("l.jpg")
    (root / "item1/x.jpg").symlink_to("y.jpg")
    (root / "item1/y.jpg").symlink_to("x.jpg")
    (root / "item3").symlink_to("item3")
    (root / "item1/deep").symlink_to("deep/deeper")
    found = reasons(root)
    assert [name for name, reason in found.items() if reason is None] == ["item1/a.jpg", "item2/b.jpg"]
    assert {found[name] for name in ("item1/l.jpg", "item1/x.jpg", "item1/y.jpg", "item3", "item1/deep")} == {
        "broken link"
    }
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(InputError, match="does not exist"):
        scan(tmp_path / "self", ROLES)
    assert scan(root, ROLES, skip=[tmp_path / "self"])


def test_examples_lie_apart(tmp_path: Path) -> None:
    touch(tmp_path, "ex/human/a.jpg", "ex/garment/b.jpg", "ex/photos/item/c.jpg")
    (tmp_path / "link").symlink_to("ex")
    check_examples(tmp_path / "ex/human", tmp_path / "ex/garment", tmp_path / "ex/photos")
    for human, garment in (
        ("ex", "ex"),
        ("ex", "ex/garment"),
        ("ex/human", "ex"),
        ("link", "ex"),
        ("ex/human", "ex/human/../human"),
    ):
        with pytest.raises(InputError, match=r"--human|--garment"):
            check_examples(tmp_path / human, tmp_path / garment)
    with pytest.raises(InputError, match="lie in the folder of examples"):
        check_examples(tmp_path / "ex", tmp_path / "other", tmp_path / "ex/photos")
