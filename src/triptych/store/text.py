"""Reads text files of users: whole, up to a limit, and never from a device or a pipe."""

from __future__ import annotations

import stat
from pathlib import Path

from triptych.errors import InputError

CAPTION_BYTES = 64 << 10
"""Limit for a file with one caption: the longest text encoder here reads 512 tokens, about 3 KB."""


def read_text(path: Path, limit_bytes: int, what: str, *, hint: str = "", nul: bool = False) -> str:
    """The text of a small UTF-8 file, without a byte-order mark, with `\
    ` for every line end.

    Args:
        limit_bytes: the largest size that is read. what: a noun for the file at the start of an error
            message, such as `The batch file`.
        hint: advice if the path itself is wrong. nul: accept NUL characters, for a reader that reports their
            line.

    Raises:
        InputError: missing, not a regular file, too large, not readable, or not UTF-8 text.
    """
    path = Path(path)

    def refused(reason: str, help: str = "") -> InputError:
        return InputError(
            f"{what} {path} cannot be read: {reason}.", help or hint or "Check the path, and who may read it."
        )

    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise refused("it is a folder")
        if not stat.S_ISREG(about.st_mode):  # a pipe or device would block, or never end
            raise refused(
                "it is not a regular file", "Give the path of a file; a pipe or device is not read."
            )
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError as error:
        raise refused("it does not exist") from error
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: an impossible path, such as one with a NUL character
        raise refused(getattr(error, "strerror", None) or "its path is no path") from error
    if len(data) > limit_bytes:
        raise refused(f"it is larger than {_size(limit_bytes)}", "Is it the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused("it is not UTF-8 text", "Open it in an editor and save it as UTF-8.") from error
    if "\0" in text and not nul:  # UTF-16 without a byte-order mark, or no text at all
        raise refused(
            "it holds NUL characters, as text never does", "Open it in an editor and save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _size(number: int) -> str:
    return f"{number >> 20} MB" if number >= 1 << 20 else f"{number >> 10} KB"
