"""Turns the error that ends a command into one sentence with a hint, in place of a traceback."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from triptych import __version__
from triptych.errors import TriptychError

_ROOM = "Make room there; the same command goes on where this one ended."
_RIGHTS = "Check the rights of the file and of the folders above it, or choose another place."
_PATHS: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("there is no such file or folder", "Check the path."),
    errno.EACCES: ("it may not be read or written", _RIGHTS),
    errno.EPERM: ("the system does not allow it", _RIGHTS),
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("your share of the disk is full", _ROOM),
    errno.EFBIG: (
        "the file would be larger than is allowed here",
        "Choose a disk, or a limit, with more room.",
    ),
    errno.EROFS: ("the disk can only be read", "Choose a --work folder on a disk that can be written to."),
    errno.EISDIR: ("it is a folder", "Give the path of a file."),
    errno.ENOTDIR: ("a part of its path is a file", "Check the path."),
    errno.EEXIST: ("it exists already", "Choose another name, or move it away."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter name."),
    errno.ELOOP: ("its links go round in a circle", "Mend the links, or give the path of the file itself."),
    errno.EIO: ("the disk fails", "Check the disk; copy the folder to another one."),
    errno.EMFILE: ("too many files are open", "Raise the limit with `ulimit -n`, or lower --concurrency."),
    errno.EBUSY: ("it is in use", "Close the program that uses it."),
    errno.ENOTEMPTY: ("the folder is not empty", "Choose another folder."),
}
_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
_SMALLER = (
    "Lower --batch-size or the panel size, close other programs, or use a larger machine; `triptych "
    "plan` says what is needed."
)


def sentence(error: BaseException) -> tuple[str, str] | None:
    """(the problem, a hint); None for an unforeseen error."""
    if isinstance(error, TriptychError):
        return error.message, error.hint
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)
    ):
        device = "device" if isinstance(error, RuntimeError) else "machine"
        return f"The {device} has too little memory for this.", _SMALLER
    if type(error).__module__.split(".")[0] in (
        "httpx",
        "httpcore",
        "huggingface_hub",
        "requests",
        "urllib3",
    ):
        return (
            f"The connection failed: {first_line(error)}.",
            "Check the network, then run the same command again.",
        )
    return _of_system(error) if isinstance(error, OSError) else None


def _of_system(error: OSError) -> tuple[str, str] | None:
    if isinstance(error, ConnectionError | TimeoutError):
        return (
            f"The connection failed: {first_line(error)}.",
            "Check the network, then run the same command again.",
        )
    if error.errno is None:  # the text comes from a library, not from the system
        return None
    what, hint = _PATHS.get(
        error.errno, (error.strerror or os.strerror(error.errno), "Check the disk and the path.")
    )
    names = [
        os.fsdecode(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes | os.PathLike)
    ]
    return f"{' → '.join(names)}: {what}." if names else f"{what[0].upper()}{what[1:]}.", hint


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without its full stop."""
    text = str(error).strip()
    return (text.splitlines()[0][:200] if text else type(error).__name__).rstrip(".")


def fault(error: BaseException, words: list[str], shown: bool) -> tuple[str, str]:
    """An unforeseen error: a sentence, and the place of its details. `shown`: the details are printed too."""
    details = "".join(traceback.format_exception(error))
    about = (
        f"triptych {__version__}, Python {platform.python_version()}, {platform.platform()}\ntriptych "
        f"{' '.join(words)}\n\n"
    )
    path = Path(tempfile.gettempdir()) / f"triptych-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        path.write_text(about + details, encoding="utf-8", errors="backslashreplace")
        where = f"The details are in {path}; --verbose shows them here."
    except OSError:
        shown, where = True, "The details stand above."
    if shown:
        print(details, file=sys.stderr)
    return (
        f"This is a fault in triptych: {type(error).__name__}: {first_line(error)}. Please report it.",
        where,
    )


__all__ = ["fault", "first_line", "sentence"]
