"""Which files may be replaced: those that triptych wrote, told by what stands in them. All others are the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from triptych import xmp
from triptych.errors import InputError
from triptych.images import read_info, read_settings


def check_overwrites(paths: Iterable[Path], option: str = "--out") -> None:
    """Raises InputError for the first picture to be written in whose place lies a file that triptych did not write."""
    for path in paths:
        if (path.exists() or path.is_symlink()) and not is_ours(path):
            raise InputError(
                f"{path} is there already, and triptych did not write it.", f"Move it away, or give another name with {option}."
            )


def is_ours(path: Path) -> bool:
    """Whether triptych wrote a picture, by its own metadata. An empty file is nobody's, and counts."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            return True
        kind, info = read_info(path)
        about = read_settings(path) if kind == "JPEG" else None
    except (InputError, OSError):
        return False
    if kind == "PNG":
        return info.get("Software") == "triptych"
    return kind == "JPEG" and ("verb" in (about or {}) or xmp.TOOL.encode() in (info.get("xmp") or b""))


def ends_whole(path: Path) -> bool:
    """Whether a PNG or JPEG has its last bytes: a copy that broke off does not."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 12))
        end = file.read()
    return end[4:8] == b"IEND" or end.endswith(b"\xff\xd9")
