"""Reads and writes files in one way everywhere: a file is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from triptych.errors import InputError, WorkError
from triptych.store.text import read_text as read_text

log = logging.getLogger(__name__)


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Write a file under a temporary path, then move it to its final name (fsync, rename, fsync of the
    folder).

    The yielded temporary path has the name of `path`. It lies in a hidden folder of its own beside it, so
    that a listing of `*.png` never finds it, even after a kill. The file gets the permissions that the user's
    umask gives to new files. After an exception nothing remains; leftovers of a killed writer are removed
    when the next file in the same folder is written.

    Raises:
        WorkError: the disk is full (for any writer, safetensors' too), or the file system cannot rename
            files.
    """
    with _place_aside(path.parent) as aside, explained(path):
        temporary = aside / path.name
        mode = _create(temporary)
        yield temporary
        sync(temporary)
        if (
            stat.S_IMODE(temporary.stat().st_mode) != mode
        ):  # safetensors creates a new file there, readable only by the user
            try:
                temporary.chmod(mode)
            # the file system does not change permissions: only new files get those of the umask
            except OSError:
                ours = aside / "ours"
                _create(ours)
                shutil.copyfile(temporary, ours)
                os.replace(ours, temporary)
        rename(temporary, path)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder, replacing an existing file, so that the new name survives a power cut.

    Raises:
        WorkError: the file system cannot rename files, or is full.
    """
    try:
        with explained(target):
            os.replace(source, target)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        hint = "Use a --work folder on a local disk, and copy the result from there."
        raise WorkError(
            f"The file system of {target.parent} cannot rename a file ({error.strerror}).", hint
        ) from error
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk (fsync), if the file system supports it: many network drives do
    not for folders.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED | {errno.EACCES, errno.EBADF}:
            raise


# Errors that file systems return for unsupported calls.
NOT_SUPPORTED = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EPERM,
    errno.EXDEV,
}
_FULL = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "The disk is full for a file of this size",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk into a sentence about `path`, from whichever library the error comes.

    Raises:
        WorkError: the disk is full, or a limit for files or users is reached. OSError: any other error of the
            disk.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _errno_of_safetensors(error)
        if number in _FULL:
            hint = (
                "Make room there, or use another --work folder; the same command then goes on from what "
                "is whole."
            )
            raise WorkError(f"{_FULL[number]}: {path} could not be written.", hint) from error
        if number is not None and not isinstance(error, OSError):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _errno_of_safetensors(error: Exception) -> int | None:
    """The errno in an error of safetensors, which wraps the system's error in text: `I/O error: No space left
    on device (os error 28)`.
    """
    code = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(code[1]) if code else None


def _create(path: Path) -> int:
    """Create an empty file and return its permissions, which follow the umask."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


_ATTEMPTS = 1000
"""How often other writers may remove the new folder. The limit ends the loop if no folder can be made (behind
a broken link).
"""


@contextlib.contextmanager
def _place_aside(folder: Path) -> Iterator[Path]:
    """A new folder `folder/.part/<random>`, locked while in use, so that folders of killed writers can be
    recognised and removed.
    """
    parts = folder / ".part"
    for left in range(_ATTEMPTS, 0, -1):
        place, handle = parts / secrets.token_hex(8), -1
        try:
            parts.mkdir(parents=True, exist_ok=True)
            place.mkdir()
            handle = os.open(place, os.O_RDONLY)
            _lock(handle, wait=True)
            place.stat()
            break
        except (
            FileNotFoundError,
            FileExistsError,
        ):  # another writer just finished and removed the empty folder
            if handle >= 0:
                os.close(handle)
            if left == 1 or any(folder.exists() and not folder.is_dir() for folder in (parts, folder)):
                raise
    try:
        sweep(folder)
        yield place
    finally:
        os.close(handle)
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # another writer's file may still be there
            parts.rmdir()


def sweep(folder: Path) -> None:
    """Remove leftovers of killed writers in `folder`; files of active writers stay."""
    parts = folder / ".part"
    for left in list(parts.iterdir()) if parts.is_dir() else []:
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                if _lock(handle, wait=False):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)
    with contextlib.suppress(OSError):
        parts.rmdir()


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds it, or the file system
    has no locks.
    """
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def write_bytes(path: Path, data: bytes) -> None:
    with publish(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any) -> str:
    """The content of a file that `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


MAX_JSON = 64_000_000
"""Longest JSON that is parsed, in characters; triptych writes shorter ones."""


def parse_json(text: str | bytes, limit: int = MAX_JSON) -> Any:
    """Parse JSON that may come from anybody.

    Raises:
        ValueError: it is no JSON, longer than `limit`, or nested too deeply for Python.
    """
    if len(text) > limit:
        raise ValueError(f"it is longer than {limit} characters")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


_WRITERS = {
    "photos.jsonl": "clean",
    "metadata.jsonl": "concat",
    "caption.jsonl": "caption",
    "train.jsonl": "train",
}


def _writer(path: Path) -> str:
    """The verb that writes a given file of the work folder."""
    return _WRITERS.get(path.name) or (
        path.name.split(".")[0] if path.name.count(".") > 1 else "run --config triptych.yaml"
    )


def _why(error: Exception) -> str:
    """An error without the path, which the sentence already names."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return (
        "it does not exist"
        if isinstance(error, FileNotFoundError)
        else getattr(error, "strerror", None) or str(error).rstrip(".")
    )


def read_json(path: Path) -> Any:
    """The parsed JSON of a file.

    Raises:
        WorkError: the file is missing or does not parse.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(
            f"{path} cannot be read: {_why(error)}.", f"Run `triptych {_writer(path)}` again."
        ) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file. An unfinished last line (of a killed append, without its line end) is
    left out.

    Raises:
        WorkError: the file is missing, or a whole line holds no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkError(
            f"{path} cannot be read: {_why(error)}.", f"Run `triptych {_writer(path)}` first."
        ) from error
    rows: list[dict[str, Any]] = []
    hint = f"Mend that line, or run `triptych {_writer(path)}` again."
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if number == len(lines):  # it has no line end
                break
            raise WorkError(f"{path} is damaged at line {number}.", hint) from error
        if not isinstance(row, dict):
            raise WorkError(f"{path} is damaged at line {number}: it holds no JSON object in braces.", hint)
        rows.append(row)
    return rows


def sha256_file(path: Path, limit_bytes: int | None = None) -> str:
    """sha256 (hex) of a file.

    Raises:
        InputError: a device, pipe or folder, or a file larger than `limit_bytes`. OSError: it cannot be read.
    """
    about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode):
        raise InputError(
            f"{path} is not a regular file.", "Give the path of a file; a pipe or device is not read."
        )
    if limit_bytes is not None and about.st_size > limit_bytes:
        raise InputError(
            f"{path} is too large: {about.st_size} bytes, at most {limit_bytes}.", "Is it the right file?"
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def mark_of(path: Path) -> object:
    """What changes when a file does: time, size and inode; None if there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino
