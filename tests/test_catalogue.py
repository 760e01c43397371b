"""Scanning folders of photos, names that say something, and the catalogue's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triptych.catalogue import Photo, read_overrides, read_photos, write_photos
from triptych.errors import InputError, WorkError
from triptych.photo_folders import natural, refusal, scan
from triptych.views import view_hint


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(root: Path, **options: object) -> list[tuple[str, str]]:
    return [(item, path.relative_to(root).as_posix()) for item, path in scan(root, **options)]


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
    touch(tmp_path, "coats/readme.txt", "coats/item1/front.jpg", "coats/item1/details/sleeve.jpg", "item2/x.png", "loose.jpg")
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
        scan(tmp_path)


def test_skipped_folders(tmp_path: Path) -> None:
    touch(tmp_path, "item1/a.jpg", "work/catalogue/contact_sheet.png", "examples/human/h.jpg")
    assert listed(tmp_path, skip=[tmp_path / "work", tmp_path / "examples" / "human"]) == [("item1", "item1/a.jpg")]


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
    reasons = {path.relative_to(root).as_posix(): refusal(root, item, path) for item, path in scan(root)}
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
    [(item, path)] = scan(tmp_path / "link")
    assert (item, refusal(tmp_path / "link", item, path)) == ("item", None)


def test_missing_folder(tmp_path: Path) -> None:
    touch(tmp_path, "file.jpg")
    for name in ("nowhere", "file.jpg"):
        with pytest.raises(InputError, match=name):
            scan(tmp_path / name)


def test_paths_stay_as_the_user_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/item/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert [str(path) for _, path in scan(Path("photos"))] == ["photos/item/a.jpg"]


def test_photos_round_trip(tmp_path: Path) -> None:
    photos = [
        Photo("item\n1", "p/ä 日本 .jpg", "ab" * 32, "human", 0.9871),
        Photo("", "p/x", "", "rejected", None, "not in an item folder"),
    ]
    write_photos(tmp_path / "photos.jsonl", photos)
    assert read_photos(tmp_path / "photos.jsonl") == photos
    write_photos(tmp_path / "photos.jsonl", [Photo("i", os.fsdecode(b"p/\xff.jpg"), "", "rejected", None, "name")])
    assert read_photos(tmp_path / "photos.jsonl")[0].path == "p/?.jpg"


@pytest.mark.parametrize("line", ['{"item": "a"}', '{"item": "", "path": "", "sha256": "", "label": "cat"}', "{\n{}"])
def test_other_files_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "photos.jsonl").write_text(line)
    with pytest.raises(WorkError):
        read_photos(tmp_path / "photos.jsonl")


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
    assert view_hint(name) == side


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "overrides.txt"
    path.write_text("# mine\n\nitem1/a.jpg human\r\nitem 2/my coat.jpg\tBACK\nitem1/a.jpg   garment  \n", encoding="utf-8-sig")
    assert read_overrides(path) == {"item1/a.jpg": "garment", "item 2/my coat.jpg": "back"}


@pytest.mark.parametrize("line", ["item1/a.jpg", "human", "item1/a.jpg cat", "item1/a.jpg unsure"])
def test_override_lines_without_a_label(line: str, tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("# first\n" + line)
    with pytest.raises(InputError, match="line 2"):
        read_overrides(tmp_path / "o.txt")
