"""Single corrections in `overrides.txt`: what else stands there stays, and `clean` reads the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.data.catalogue import Photo, match_overrides, read_overrides
from triptych.data.corrections import correct, name_of, photo_folder, read_corrections

ROLES = ("front", "back")


def photo(item: str, path: str) -> Photo:
    return Photo(item, path, "a", "unsure")


@pytest.mark.parametrize(
    ("photos", "folder"),
    [
        ([("a", "p/a/x.jpg")], "p"),
        ([("coats__a", "p/q/coats/a/back/x.jpg"), ("b", "p/q/b/x.jpg")], "p/q"),
        ([("a", "a/a/x.jpg"), ("b", "a/b/x.jpg")], "a"),
        ([("a", "a/a/x.jpg")], None),  # either folder
        ([("", "p/x.jpg")], None),
        ([("a", "a/x.jpg")], "."),
        ([("a", "/p/a/x.jpg")], "/p"),
    ],
)
def test_the_photo_folder_is_told_by_the_items(photos: list[tuple[str, str]], folder: str | None) -> None:
    assert photo_folder(photo(*one) for one in photos) == (None if folder is None else Path(folder))


@pytest.mark.parametrize(
    "path", ["a/a/x.jpg", "p/a/my coat 3.jpg", "p/a/ odd .jpg", "p/a/été.jpg", 'p/a/"q".jpg']
)
def test_clean_reads_what_is_written(tmp_path: Path, path: str) -> None:
    one, file = photo("a", path), tmp_path / "catalogue/overrides.txt"
    folder = photo_folder([one])
    name = name_of(one, folder)
    correct(file, {name: "back"}, folder)
    given = Path(path).parents[1]  # --photos
    said, missed = match_overrides(
        read_overrides(file, ROLES), [Path(path).relative_to(given).as_posix()], given
    )
    assert (list(said.values()), missed) == (["back"], [])
    assert read_corrections(file, [name], folder, ROLES) == {name: "back"}


def test_other_lines_stay(tmp_path: Path) -> None:
    file = tmp_path / "overrides.txt"
    file.write_text("# mine\n\na/x.jpg human\n.\\a\\x.jpg garment\nb/y.jpg back\ngone/z.jpg human\n")
    folder, names = Path("p"), ["a/x.jpg", "b/y.jpg"]
    assert read_corrections(file, names, folder, ROLES) == {"a/x.jpg": "garment", "b/y.jpg": "back"}
    correct(file, {"a/x.jpg": "rejected"}, folder)
    assert file.read_text() == "# mine\n\nb/y.jpg back\ngone/z.jpg human\na/x.jpg rejected\n"
    correct(file, {"a/x.jpg": "", "b/y.jpg": "front"}, folder)
    assert file.read_text() == "# mine\n\ngone/z.jpg human\nb/y.jpg front\n"
    assert read_corrections(tmp_path / "none.txt", names, folder, ROLES) == {}
