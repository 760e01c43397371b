"""sync: copies a folder to or from an object store (S3, GCS, Azure … by fsspec), only what is new or changed.

WORK/sync/<hash of both addresses>.jsonl   what was copied, in which version

Nothing is deleted. A file is there whole or not at all; a stopped copy goes on where it was.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from triptych.errors import ConfigError, InputError
from triptych.events import Event, Run, held
from triptych.execution import PerWorker, execute
from triptych.store.files import publish
from triptych.store.folder import StageFolder
from triptych.store.journal import Journal
from triptych.verbs.sync_config import SyncConfig

BLOCK = 1 << 20
VERSIONS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names that file systems give to what changes with a file's content, best first."""


def sync(config: SyncConfig) -> Run:
    """Copy every file of `source` that is new or changed into `target`. Event ids are paths below both.

    Raises:
        ConfigError: source or target is missing, or they are one. InputError: an address that cannot be
            opened, or a source without files.
    """
    if not config.source or not config.target:
        raise ConfigError("Two folders are needed.", "For instance: triptych sync s3://shop/photos photos.")
    if config.source.rstrip("/") == config.target.rstrip("/"):
        raise ConfigError("Source and target are one folder.", "Give two.")
    stores = PerWorker(Stores, config.source, config.target)
    here = stores()
    files, refused = here.files()
    key = hashlib.sha256(f"{config.source}\n{config.target}".encode()).hexdigest()[:16]
    folder = StageFolder(config.work / "sync", "sync", {"stage": "sync"})
    summary: dict[str, Any] = {"files": len(files), "copied": 0, "kept": 0, "bytes": 0}
    summary |= {"refused": len(refused), "target": config.target}

    def work() -> Iterator[Event]:
        for name, reason in refused:
            yield Event(name, "rejected", reason)
        journal = Journal(folder.path / f"{key}.jsonl")
        there = here.sizes()
        copied = {row["name"]: (row["size"], row["version"]) for row in journal.rows}
        left = []
        for file in files:
            if copied.get(file.name) == file[1:] and there.get(file.name) == file.size:
                summary["kept"] += 1
                yield Event(file.name, "kept")
            else:
                left.append(file)
        for file in execute(copy, left, stores, config.concurrency):
            journal.append(file._asdict())
            summary["copied"] += 1
            summary["bytes"] += file.size
            yield Event(file.name, note=f"{file.size} bytes")

    return Run("sync", len(files) + len(refused), held(folder, work), summary)


class File(NamedTuple):
    """A file of the source. name: below its folder. version: whatever changes with its content."""

    name: str
    size: int
    version: str


@dataclass
class Stores:
    """The file systems of both folders, and where the folders are in them."""

    source: str
    target: str

    def __post_init__(self) -> None:
        self.from_, self.from_folder = _opened(self.source)
        self.to, self.to_folder = _opened(self.target)
        self.to_here = "file" in _protocols(self.to)

    def files(self) -> tuple[list[File], list[tuple[str, str]]]:
        """The files of the source in the order of their names; and names that are refused, with a reason."""
        found, refused = list[File](), list[tuple[str, str]]()
        for path, about in sorted(_listed(self.from_, self.from_folder, self.source).items()):
            name = path.removeprefix(self.from_folder).lstrip("/")
            if about.get("islink"):
                refused.append((name, "a link, which is not followed"))
            elif reason := _unusable(name):
                refused.append((ascii(name)[1:-1], reason))
            elif name:
                version = next((str(about[key]) for key in VERSIONS if about.get(key) is not None), "")
                found.append(File(name, int(about.get("size") or 0), version))
        if not found and not refused:
            raise InputError(f"There are no files in {self.source}.", "Check the address.")
        return found, refused

    def sizes(self) -> dict[str, int]:
        """The sizes of the files of the target, by name."""
        try:
            there = self.to.find(self.to_folder, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.to_folder)
        return {path[start:].lstrip("/"): int(about.get("size") or 0) for path, about in there.items()}


def copy(file: File, stores: Stores) -> File:
    """Copy a file.

    Raises:
        InputError: it cannot be read or written.
    """
    source, target = f"{stores.from_folder}/{file.name}", f"{stores.to_folder}/{file.name}"
    try:
        with stores.from_.open(source, "rb") as read:
            if stores.to_here:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with publish(Path(target)) as temporary, temporary.open("wb") as written:
                    shutil.copyfileobj(read, written, BLOCK)
            else:  # an object appears when its upload is complete
                with stores.to.open(target, "wb") as written:
                    shutil.copyfileobj(read, written, BLOCK)
    except OSError as error:
        raise InputError(
            f"{file.name} cannot be copied: {error}.", "Run the same command again; what is copied stays."
        ) from error
    return file


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the folder in it, without a slash at its end."""
    import fsspec

    try:
        system, folder = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise InputError(
            f"For {address} a package is missing: {error}.", "For s3:// pip install s3fs, for gs:// gcsfs."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{address} is no address that is known: {error}.", "Give s3://bucket/folder."
        ) from error
    return system, str(folder).rstrip("/")


def _listed(system: Any, folder: str, address: str) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = system.find(folder, detail=True)
    except FileNotFoundError as error:
        raise InputError(f"There is no {address}.", "Check the address.") from error
    except Exception as error:  # each store has errors of its own
        raise InputError(
            f"{address} cannot be listed: {str(error)[:300]}.",
            "Check its name and your keys (for S3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …).",
        ) from error
    return found


def _unusable(name: str) -> str:
    """Why a name from a store is no name of a file below a folder; "" if it is."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or not name.isprintable():
        return "not a file name"
    too_long = len(name) > 900 or any(len(part.encode()) > 240 for part in parts)
    return "not a file name" if ".." in parts or too_long else ""


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
