"""The catalogue's files: verdicts, and the user's word about single photos."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from triptych.data.catalogue import (
    Photo,
    match_overrides,
    nothing_usable,
    override_name,
    read_overrides,
    read_photos,
    reject_reasons,
    why_nothing_usable,
    write_photos,
)
from triptych.data.photo_folders import COPY_LINKS, LEAVES
from triptych.errors import InputError, WorkError

ROLES = ("front", "back")


def test_photos_round_trip(tmp_path: Path) -> None:
    photos = [
        Photo("item\n1", "p/ä 日本 .jpg", "ab" * 32, "human", 0.9871),
        Photo("", "p/x", "", "rejected", None, "not in an item folder"),
    ]
    write_photos(tmp_path / "photos.jsonl", photos)
    assert read_photos(tmp_path / "photos.jsonl") == photos
    write_photos(
        tmp_path / "photos.jsonl", [Photo("i", os.fsdecode(b"p/\xff.jpg"), "", "rejected", None, "name")]
    )
    assert read_photos(tmp_path / "photos.jsonl")[0].path == "p/?.jpg"


@pytest.mark.parametrize(
    "line", ['{"item": "a"}', '{"item": "", "path": "", "sha256": "", "label": "cat"}', "{\n{}"]
)
def test_other_files_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "photos.jsonl").write_text(line)
    with pytest.raises(WorkError):
        read_photos(tmp_path / "photos.jsonl")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "overrides.txt"
    path.write_text(
        "# mine\n\nitem1/a.jpg human\r\nitem 2/my coat.jpg\tBACK\nitem1/a.jpg   garment  \n",
        encoding="utf-8-sig",
    )
    assert read_overrides(path, ROLES) == {"item1/a.jpg": "garment", "item 2/my coat.jpg": "back"}


@pytest.mark.parametrize("line", ["item1/a.jpg", "human", "item1/a.jpg cat", "item1/a.jpg unsure"])
def test_override_lines_without_a_label(line: str, tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("# first\n" + line)
    with pytest.raises(InputError, match="line 2") as caught:
        read_overrides(tmp_path / "o.txt", ROLES)
    assert caught.value.hint.endswith("labels: human, garment, front, back, rejected.")


def test_a_missing_override_file_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^The override file .* does not exist"):
        read_overrides(tmp_path / "o.txt", ROLES)


AWKWARD = [
    "a\u2028b.jpg",
    "a\tb.jpg",
    "a\\b.jpg",
    "my  coat.jpg",
    "# 1.jpg",
    '"quoted".jpg',
    "Жакет.jpg",
    "line\nbreak.jpg",
    " ends .jpg ",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_overrides_can_name_any_photo(name: str, tmp_path: Path) -> None:
    photo = f"item1/{name}"
    plain = json.dumps(photo) if photo != photo.strip() or "\n" in photo else photo
    (tmp_path / "o.txt").write_text(f"item0/x.jpg human\n{plain} back\n", encoding="utf-8")
    assert match_overrides(read_overrides(tmp_path / "o.txt", ROLES), [photo]) == (
        {photo: "back"},
        ["item0/x.jpg"],
    )


def test_overrides_understand_windows_and_macs(tmp_path: Path) -> None:
    names = ["item1/a.jpg", "Kleid/ru\u0308ckseite.jpg", "a\\b/c.jpg"]
    (tmp_path / "o.txt").write_text(
        "item1\\a.jpg human\n./Kleid/r\u00fcckseite.jpg back\na\\b/c.jpg front\nitem1\\x.jpg human\n", "utf-8"
    )
    matched, missed = match_overrides(read_overrides(tmp_path / "o.txt", ROLES), names)
    assert matched == dict(zip(names, ["human", "back", "front"], strict=True))
    assert missed == ["item1\\x.jpg"]


def test_of_two_names_that_look_alike_the_one_written_is_meant() -> None:
    composed, decomposed = "r\u00fcck.jpg", "ru\u0308ck.jpg"
    matched, _ = match_overrides(
        {composed: "back", decomposed: "front"}, [composed, decomposed], Path("photos")
    )
    assert matched == {composed: "back", decomposed: "front"}


@pytest.mark.parametrize(("photos", "front"), [("/", "/"), ("BOX", "BOX/"), ("new ", "new /")])
def test_odd_folders_stand_in_front_too(photos: str, front: str) -> None:
    assert match_overrides({f"{front}a/1.jpg": "back"}, ["a/1.jpg"], Path(photos)) == (
        {"a/1.jpg": "back"},
        [],
    )


@pytest.mark.parametrize(
    "front", ["photos/", "shop/photos/", "{tmp}/shop/photos/", "./shop/photos/", "shop\\photos\\"]
)
def test_overrides_take_the_paths_that_are_shown(
    front: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = front.format(tmp=tmp_path) + "item1/a.jpg"
    assert match_overrides(
        {line: "back", "else/item1/a.jpg": "front"}, ["item1/a.jpg"], Path("shop/photos")
    ) == (
        {"item1/a.jpg": "back"},
        ["else/item1/a.jpg"],
    )


@pytest.mark.parametrize("name", AWKWARD)
def test_the_listing_spells_a_photo_as_overrides_takes_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text(f"{override_name(tmp_path / name, tmp_path)} back\n", encoding="utf-8")
    assert match_overrides(read_overrides(tmp_path / "o.txt", ROLES), [name], tmp_path) == (
        {name: "back"},
        [],
    )


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("X1.jpg", "X1.jpg"),
        (" \u00e9.jpg", '" \u00e9.jpg"'),
        ("a\u2028\u00e9.jpg", '"a\\u2028\\u00e9.jpg"'),
    ],
)
def test_the_listing_quotes_no_more_than_it_must(name: str, spelled: str) -> None:
    assert override_name(Path("p") / name, Path("p")) == spelled


def test_why_photos_were_rejected_is_counted() -> None:
    reasons = ["too small: 90 × 80 pixels", "one of 3 copies", "too small: 70 × 60 pixels"]
    photos = [Photo("i", f"p/{n}", "", "rejected", None, reason) for n, reason in enumerate(reasons)]
    kept = Photo("i", "p/kept", "ab", "garment", 0.1, "example")
    assert reject_reasons([*photos, kept]) == [("too small", 2), ("one", 1)]
    said, hint = why_nothing_usable([*photos[:1], kept])
    assert said == "No photo is usable: 1 × too small: 90 × 80 pixels."
    assert hint == "Mend that, then run the same command again."
    assert nothing_usable(Counter())[0] == "There is no photo in the catalogue."
    said, hint = nothing_usable(Counter({LEAVES: 2}))
    assert said.startswith("All 2 photos are links that leave") and hint == COPY_LINKS
    assert nothing_usable(Counter({"a": 4, LEAVES: 3, "b": 2, "c": 1})) == (
        f"No photo is usable: 4 × a; 3 × {LEAVES}; 2 × b.",
        COPY_LINKS,
    )


@pytest.mark.parametrize("line", ["[" * 100_000, "[1]", '{"a": 1' + "0" * 5000 + "}"])
def test_rows_that_no_stage_writes_are_damage(line: str, tmp_path: Path) -> None:
    (tmp_path / "photos.jsonl").write_text(line + "\n{}\n")
    with pytest.raises(WorkError):
        read_photos(tmp_path / "photos.jsonl")


def test_a_missing_catalogue_names_the_verb(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="no catalogue") as caught:
        read_photos(tmp_path / "photos.jsonl")
    assert "triptych clean" in caught.value.hint
