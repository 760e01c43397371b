"""The user's corrections of verdicts, as they stand in `overrides.txt`, and changes to single ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from triptych.data.catalogue import (
    MAX_OVERRIDE_BYTES,
    Photo,
    as_written,
    match_overrides,
    override_of,
    photos_meant,
    read_overrides,
)
from triptych.store.files import read_text, write_text

NEW = """# Corrections of what `triptych clean` decided. A line is the path from the photo folder, then human,
# garment, rejected, or the role of a product photo, such as front. Then run `triptych clean` again.
"""
"""The beginning of a new file."""


def photo_folder(photos: Iterable[Photo]) -> Path | None:
    """The folder that `clean` was given, told by where the item stands in each photo's path; None if that
    leaves a doubt.
    """
    folders: set[Path] | None = None
    for photo in photos:
        if photo.item:
            found = _above(photo)
            folders = found if folders is None else folders & found
            if len(folders) < 2:
                break
    return next(iter(folders)) if folders and len(folders) == 1 else None


def _above(photo: Photo) -> set[Path]:
    """Every folder from which the path goes on with the item's own folders, which its name joins by `__`."""
    *folders, _ = Path(photo.path).parts
    return {
        Path(*folders[:start])
        for start in range(len(folders))
        for end in range(start + 1, len(folders) + 1)
        if "__".join(folders[start:end]) == photo.item
    }


def name_of(photo: Photo, folder: Path | None) -> str:
    """A photo's name in the file: its path from the photo folder. Where that is not known it is the whole
    path, which `match_overrides` takes too.
    """
    path = Path(photo.path)
    return path.relative_to(folder).as_posix() if folder and path.is_relative_to(folder) else path.as_posix()


def read_corrections(
    file: Path, names: Sequence[str], folder: Path | None, roles: Collection[str]
) -> dict[str, str]:
    """{name: word} of the photos that the file says something about; nothing if there is no file.

    Raises:
        InputError: as `read_overrides`.
    """
    if not file.exists():
        return {}
    return match_overrides(read_overrides(file, roles), names, folder or Path("."))[0]


def correct(file: Path, changes: Mapping[str, str], folder: Path | None) -> None:
    """Let the file say these words about photos by name, or nothing where the word is empty. All other lines
    stay as they are.

    Raises:
        InputError: the file cannot be read. WorkError: it cannot be written.
    """
    before = read_text(file, MAX_OVERRIDE_BYTES, "The override file") if file.exists() else NEW
    lines = before.rstrip("\n").split("\n")
    written = [override_of(line.strip())[0] if _says(line) else "" for line in lines]
    meant = photos_meant(filter(None, written), changes, folder or Path("."))
    kept = [line for line, name in zip(lines, written, strict=True) if not (name and meant[name])]
    kept += [f"{as_written(name)} {word}" for name, word in changes.items() if word]
    write_text(file, "\n".join(kept) + "\n")


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")
