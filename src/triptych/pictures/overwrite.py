"""Checks before any work that results can be written: to folders that allow it, and over no file but
triptych's own.

A file's content shows whether triptych wrote it. All other files are the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from triptych.errors import InputError, WorkError
from triptych.pictures import xmp
from triptych.pictures.images import read_info, read_settings


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder can be written to, or created.

    Raises:
        WorkError: it cannot, because a file is in the way or permissions forbid it.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise WorkError(
            f"{folder} cannot be a folder: {there} is a file.", f"Give another folder with {option}."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        hint = f"Give another folder with {option}, or change its rights."
        raise WorkError(f"{folder} cannot be written to: {there} does not allow it.", hint)


def check_overwrites(paths: Iterable[Path], option: str = "--out") -> None:
    """Check that pictures can be written, each to a new file or over one that triptych wrote.

    Raises:
        InputError: a file that triptych did not write is there. WorkError: a folder cannot be written to.
    """
    paths = list(paths)
    for folder in {path.parent: None for path in paths}:
        check_writable(folder, option)
    for path in paths:
        if (path.exists() or path.is_symlink()) and not is_ours(path):
            raise InputError(
                f"{path} is there already, and triptych did not write it.",
                f"Move it away, or give another name with {option}.",
            )


def is_ours(path: Path) -> bool:
    """Whether triptych wrote a picture, according to its metadata. An empty file counts as ours."""
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
    """Whether a PNG or JPEG has its last bytes, which an interrupted copy lacks."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 12))
        end = file.read()
    return end[4:8] == b"IEND" or end.endswith(b"\xff\xd9")
