"""Shards: many embedding files packed into few large ones, so that a million triptychs are not two million
files.

A shard is a safetensors file `shards/shard-000001.safetensors` below the folder of embeddings. Its tensors
are called `<name>//<tensor>`, where <name> is the path of the packed file below the folder without its suffix
(`coat-1`, `texts/ab12…`). Its metadata tell for each name what was computed from what, as the metadata of the
single file did. A single file wins over a shard, and a later shard over an earlier one: that is how what was
computed anew replaces what was packed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.store.files import parse_json, publish

SHARDS = "shards"
"""Subfolder with the shards."""
OPEN = 64
"""Shards that stay open."""
MOST = 10_000
"""Most files in a shard: their metadata are read at once."""


class Packed(NamedTuple):
    """Where the contents of a packed file are. about: its metadata, as JSON text."""

    shard: Path
    about: str


class Shards:
    """The shards of a folder of embeddings, as they are when this is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packed: dict[str, Packed] = {}
        for shard in shards_of(folder):
            self.packed |= {name: Packed(shard, about) for name, about in _contents(shard).items()}

    def __contains__(self, name: str) -> bool:
        return name in self.packed

    def about(self, name: str) -> dict[str, Any] | None:
        """The metadata of a packed file; None if there is none."""
        found = self.packed.get(name)
        return dict(parse_json(found.about)) if found else None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a packed file, by their names in it.

        Raises:
            OSError, SafetensorError: the shard is missing or damaged.
        """
        file, start = _opened(self.packed[name].shard), f"{name}//"
        # Of a few hundred names; the header is in memory.
        return {key.removeprefix(start): file.get_tensor(key) for key in file.keys() if key.startswith(start)}


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder, oldest first."""
    return sorted((folder / SHARDS).glob("shard-*.safetensors"))


def pack(folder: Path, files: Mapping[str, Path]) -> Path | None:
    """Pack files into a new shard, and delete them. Returns the shard; None if all of them are in a shard
    already, with the same metadata.

    files: by name. A file that cannot be read stays where it is.
    """
    there, tensors, about, read = Shards(folder), dict[str, Tensor](), dict[str, str](), list[Path]()
    for name, path in files.items():
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {})["triptych"]
                if name not in there or there.packed[name].about != said:
                    tensors |= {f"{name}//{key}": file.get_tensor(key) for key in file.keys()}
                    about[name] = said
        except (OSError, SafetensorError, KeyError):
            continue
        read.append(path)
    shard = None
    if about:
        numbers = [int(one.stem.removeprefix("shard-")) for one in shards_of(folder)]
        shard = folder / SHARDS / f"shard-{max(numbers, default=0) + 1:06}.safetensors"
        shard.parent.mkdir(exist_ok=True)
        with publish(shard) as temporary:
            save_file(tensors, temporary, metadata={"triptych": json.dumps(about)})
    for path in read:
        path.unlink()
    return shard


class Packer:
    """Packs the files of a folder as soon as they are as large as a shard. Files of an earlier run that was
    ended are packed too.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._files: dict[str, Path] = {}
        self._bytes = 0
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
            if path.parent.name != SHARDS and not path.name.startswith("."):
                self.add(path)

    def add(self, path: Path) -> None:
        """Take note of a file that was written."""
        name = name_of(self.folder, path)
        if name not in self._files:
            self._bytes += path.stat().st_size
        self._files[name] = path
        if self._bytes >= self.shard_bytes or len(self._files) >= MOST:
            self.close()

    def close(self) -> None:
        """Pack what is left."""
        if self._files:
            pack(self.folder, self._files)
        self._files, self._bytes = {}, 0


def name_of(folder: Path, path: Path) -> str:
    """The name of a file in its folder's shards."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _contents(shard: Path) -> dict[str, str]:
    """By name, the metadata of what is in a shard; nothing if it is damaged, so that it is computed anew."""
    try:
        with safe_open(shard, framework="pt") as file:
            found = parse_json((file.metadata() or {})["triptych"])
        return {str(name): str(about) for name, about in found.items()}
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError):
        return {}


@lru_cache(maxsize=OPEN)
def _opened(shard: Path) -> Any:
    return safe_open(shard, framework="pt")
