"""Finds the made pictures of a list of pairs: those of `tryon --batch`, or of other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import ConfigError, InputError
from triptych.evaluation.pairs.protocol import Setting
from triptych.evaluation.pairs.sets import Pair, PairSet
from triptych.pictures.images import SUFFIXES, read_settings
from triptych.store.text import read_text

RESULTS = "results.csv"


@dataclass(frozen=True)
class Made:
    """Made pictures under one name, by id of their pair. seeds: those that the pictures say they were made
    with, by the same ids.
    """

    name: str
    folder: Path
    pictures: dict[str, Path]
    seeds: dict[str, int]


def read_names(given: Sequence[str]) -> dict[str, Path]:
    """The folders of `--made`, by name: `NAME=FOLDER`, or `FOLDER`, whose own name is then taken.

    Raises:
        ConfigError: none, or a name twice. InputError: no such folder.
    """
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, where = text.partition("=")
        path = Path(where if equals else text).expanduser()
        name = name if equals else path.resolve().name
        if not path.is_dir():
            raise InputError(f"{path} is no folder of made pictures.", "Say --made NAME=FOLDER.")
        if name in folders or not name.strip() or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"--made {text} gives no name of its own.", "Say --made base=FOLDER --made lora=FOLDER."
            )
        folders[name] = path
    if not folders:
        raise ConfigError(
            "No made pictures are given.",
            "Give --made FOLDER; --write-batch FILE.csv writes one for `tryon --batch` to make them.",
        )
    return folders


def find_made(name: str, folder: Path, found: PairSet, *, both: bool) -> Made:
    """The picture of every pair, in `FOLDER/paired` or `FOLDER/unpaired` if there is such a folder, else in
    FOLDER. A picture is found by results.csv, or by its name: the pair's id, PERSON_GARMENT, or PERSON.

    both: paired and unpaired pictures are asked for; a picture that is named for the person alone is then
    taken only from a folder of its setting.

    Raises:
        InputError: pictures are missing, or the folder is the set's own.
    """
    place = folder / found.setting if (folder / found.setting).is_dir() else folder
    own = {path.resolve().parent for pair in found.pairs for path in (pair.person, *pair.garments)}
    if place.resolve() in own:
        raise InputError(f"{place} is a folder of the set itself.", "Give the folder of the made pictures.")
    listed, files = _results(place), _files(place)
    alone = not both or place != folder
    pictures = {
        pair.id: path for pair in found.pairs if (path := _picture(pair, place, listed, files, alone=alone))
    }
    if missing := [pair.id for pair in found.pairs if pair.id not in pictures]:
        raise InputError(
            f"{name}: {len(missing)} of {len(found.pairs)} {found.setting} pictures are missing in {place}, "
            f"such as {missing[0]}.",
            "Make them, or leave them out of the list: --pair-list FILE.",
        )
    seeds = {key: seed for key, path in pictures.items() if (seed := _seed(path)) is not None}
    return Made(name, folder, pictures, seeds)


def _picture(
    pair: Pair, place: Path, listed: dict[str, str], files: dict[str, list[Path]], *, alone: bool
) -> Path | None:
    if pair.id in listed:
        path = place / listed[pair.id]
        return path if path.is_file() else None
    garment = pair.garments[0].stem if pair.garments else ""
    names = [pair.id, f"{pair.person.stem}_{garment}", *([pair.person.stem] if alone else [])]
    for name in names:
        if found := files.get(name):
            if len(found) > 1:
                raise InputError(
                    f"{place} holds {len(found)} pictures called {name}: {found[0].name}, {found[1].name}.",
                    "Leave one of them.",
                )
            return found[0]
    return None


def _results(place: Path) -> dict[str, str]:
    """The first picture of each id in the results.csv of a batch."""
    path = place / RESULTS
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(read_text(path, 64 << 20, "The table of results")))
    listed: dict[str, str] = {}
    for row in rows:
        if row.get("id") and row.get("picture") and "/" not in row["picture"]:
            listed.setdefault(row["id"], row["picture"])
    return listed


def _files(place: Path) -> dict[str, list[Path]]:
    """The pictures in a folder, by name without ending."""
    found: dict[str, list[Path]] = {}
    for path in sorted(place.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _seed(path: Path) -> int | None:
    seed = (read_settings(path) or {}).get("seed")
    return seed if isinstance(seed, int) else None


def seeds_differ(made: Sequence[Made], setting: Setting) -> str:
    """A warning if two folders were made with different seeds, or a seed is unknown; empty if all agree."""
    first = made[0]
    for other in made[1:]:
        known = [key for key in first.pictures if key in first.seeds and key in other.seeds]
        unlike = sum(first.seeds[key] != other.seeds[key] for key in known)
        if unlike:
            return f"{first.name} and {other.name} have other seeds in {unlike} {setting} pictures."
        if len(known) < len(first.pictures):
            return f"The seeds of {first.name} and {other.name} are not all known: pictures do not say them."
    return ""
