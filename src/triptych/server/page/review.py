"""The photos of a catalogue as a person reviews them: `clean`'s verdicts, and the corrections since. No
gradio.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from triptych.data.catalogue import OVERRIDDEN, OVERRIDES, PHOTOS, Photo, override_labels, read_photos
from triptych.data.catalogue_sheet import sides_of
from triptych.data.corrections import correct, name_of, photo_folder, read_corrections
from triptych.data.roles import PhotoRoles
from triptych.data.told_roles import TOLD, told_roles
from triptych.data.views import choose_views
from triptych.errors import InputError, TriptychError
from triptych.store.files import digest, mark_of, read_json
from triptych.tasks import DEFAULT, TASKS

TAKEN_BACK = "taken back"
"""What a card says of a correction that `clean` has read, and that is gone since."""
Show = Literal["all", "unsure", "human", "garment", "rejected", "guessed", "flagged", "corrected"]
_ORDER = {"unsure": 0, "garment": 2, "human": 2}
"""Places in the order of photos; 1 is of those with flags, 3 of those that are left out."""
_MENDABLE = ("copy of ", "smaller copy of ", "duplicate of ", "too small", "blank", "blurred")
"""Beginnings of the reasons for leaving a photo out that a correction overrules."""
_KNOWN = {role: None for task in TASKS.values() for role in task.photo_roles.names}
"""The roles of all tasks: words of an override file that somebody wrote for another task are no mistakes."""


@dataclass(frozen=True)
class Card:
    """A photo to review.

    photo: its verdict as `clean` will give it with the corrections. said: the word of a correction that
    `clean` has not read yet, `TAKEN_BACK`, or "". side: its role among the product photos and who says so, or
    "". fixed: whether no correction can help, because the file is no usable photo.
    """

    key: str
    photo: Photo
    name: str
    said: str
    side: str
    fixed: bool


class Review:
    """The catalogue in a folder, read again whenever one of its files has changed."""

    def __init__(self, catalogue: Path, triptychs: Path) -> None:
        self._files = [catalogue / name for name in (PHOTOS, OVERRIDES, TOLD)]
        self._manifest = triptychs / "concat.manifest.json"
        self._catalogue, self._lock = catalogue, threading.Lock()
        self._read: tuple[object, State] | None = None
        self._rows: tuple[object, Rows] | None = None

    @property
    def overrides(self) -> Path:
        return self._catalogue / OVERRIDES

    @property
    def roles(self) -> PhotoRoles:
        """The roles of the task that `concat` was run for."""
        task = ""
        if self._manifest.exists():
            with contextlib.suppress(TriptychError, AttributeError):  # `concat` says what is wrong with it
                task = read_json(self._manifest).get("identity", {}).get("task", "")
        return TASKS.get(task, DEFAULT).photo_roles

    def path(self, key: str) -> Path:
        """The file of a photo.

        Raises:
            InputError: there is no such photo. WorkError: as `state`.
        """
        with self._lock:
            rows = self._made(mark_of(self._files[0]))
        return Path(rows.rows[rows.number(key)].path)

    def _made(self, mark: object) -> Rows:
        if self._rows is None or self._rows[0] != mark:
            self._rows = mark, Rows(read_photos(self._files[0]))
        return self._rows[1]

    def state(self) -> State:
        """The catalogue as it is now.

        Raises:
            WorkError: there is none, or it is damaged. InputError: `overrides.txt` has an error.
        """
        with self._lock:
            return self._now()

    def _now(self) -> State:
        marks = [mark_of(file) for file in (*self._files, self._manifest)]
        if self._read is None or self._read[0] != marks:
            state = State(self._made(marks[0]), self.overrides, self.roles, told_roles(self._catalogue))
            self._read = marks, state
        return self._read[1]

    def decide(self, words: Mapping[str, str]) -> tuple[dict[str, str], list[Card]]:
        """Write corrections: a word of `override_labels` by photo, or "" to take a correction back.

        Returns:
            the words that stood there before, and the cards of all photos of the items concerned.

        Raises:
            InputError: no such photo or word, or the override file has an error.
        """
        known = {**override_labels(_KNOWN), "": ""}
        with self._lock:
            state = self._now()
            for key, word in words.items():
                if state.card(key).fixed:
                    raise InputError(
                        f"No correction helps {state.card(key).name}: {state.card(key).photo.reason}.",
                        "Mend the file, then run `triptych clean` again.",
                    )
                if word not in known:
                    listed = ", ".join(override_labels(self.roles.names))
                    raise InputError(f"'{word[:40]}' is no verdict.", f"Verdicts: {listed}.")
            before = {key: state.written(key) for key in words}
            correct(
                self.overrides, {state.card(key).name: word for key, word in words.items()}, state.made.folder
            )
            after = self._now()
        items = {after.card(key).photo.item for key in words}
        return before, [card for item in items for card in after.of_item(item)]

    def swap(self, key: str) -> tuple[dict[str, str], list[Card]]:
        """Let the two product photos of a photo's item change their roles; returned as by `decide`.

        Raises:
            InputError: the item has no two product photos with roles.
        """
        state = self.state()
        item = state.card(key).photo.item
        return self.decide(state.swapped(item))


class Rows:
    """What `clean` wrote, and what follows from it alone."""

    def __init__(self, rows: list[Photo]) -> None:
        self.rows, self.folder = rows, photo_folder(rows)
        self.names = [name_of(row, self.folder) for row in rows]
        self.keys = [digest(row.path)[:16] for row in rows]
        self.index = {key: number for number, key in enumerate(self.keys)}
        self.items: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            self.items.setdefault(row.item, []).append(number)

    def number(self, key: str) -> int:
        """A photo's number by its key.

        Raises:
            InputError: there is none: `clean` has run since.
        """
        if key not in self.index:
            raise InputError("This photo is no longer in the catalogue.", "Load the page again.")
        return self.index[key]


class State:
    """A catalogue with its corrections at one moment."""

    def __init__(self, rows: Rows, overrides: Path, roles: PhotoRoles, told: Mapping[str, str]) -> None:
        self.made, self.roles, self._told = rows, roles, told
        said = read_corrections(overrides, rows.names, rows.folder, _KNOWN)
        self._words = [said.get(name, "") for name in rows.names]
        labels = override_labels(_KNOWN)
        self.photos = [_judged(row, word, labels) for row, word in zip(rows.rows, self._words, strict=True)]
        self._sides: dict[str, dict[Photo, str]] = {}

    @cached_property
    def counts(self) -> Counter[str]:
        """Photos by label, with the corrections."""
        return Counter(photo.label for photo in self.photos)

    @cached_property
    def waiting(self) -> int:
        """The number of corrections that `clean` has not read yet."""
        return sum(_is_new(row, word) for row, word in zip(self.made.rows, self._words, strict=True))

    def card(self, key: str) -> Card:
        """A photo by its key; raises InputError as `Rows.number`."""
        return self._card(self.made.number(key))

    def written(self, key: str) -> str:
        """The word that the override file has for a photo, or ""; raises InputError as `Rows.number`."""
        return self._words[self.made.number(key)]

    def _card(self, number: int) -> Card:
        row, photo, word = self.made.rows[number], self.photos[number], self._words[number]
        news = (word or TAKEN_BACK) if _is_new(row, word) else ""
        side = self._sides_of(row.item).get(photo, "")
        return Card(self.made.keys[number], photo, self.made.names[number], news, side, _is_fixed(row))

    def cards(self, keys: Iterable[str]) -> list[Card]:
        return [self._card(self.made.index[key]) for key in keys if key in self.made.index]

    def of_item(self, item: str) -> list[Card]:
        return [self._card(number) for number in self.made.items.get(item, [])]

    def listed(self, show: Show, by_item: bool = False, search: str = "") -> list[str]:
        """The keys of the photos to show, in order: the unsure ones first, then those with flags, then those
        that were decided with the least certainty, the rejected ones last; or item by item. The order follows
        `clean`'s verdicts, so that a corrected photo stays where it is.
        """
        words = search.casefold()
        found = [
            number
            for number, name in enumerate(self.made.names)
            if words in name.casefold() and self._is_shown(number, show)
        ]
        if not by_item:
            found.sort(key=lambda number: _doubt(self.made.rows[number]))
        return [self.made.keys[number] for number in found]

    def _is_shown(self, number: int, show: Show) -> bool:
        row, photo = self.made.rows[number], self.photos[number]
        if show == "corrected":
            return bool(self._words[number]) or _is_new(row, "")
        if show == "guessed":
            return "a guess" in self._sides_of(row.item).get(photo, "")
        return show in ("all", photo.label, row.label) or (show == "flagged" and bool(row.flags))

    def _garments(self, item: str) -> dict[Photo, int]:
        numbers = self.made.items.get(item, []) if item else []
        return {self.photos[number]: number for number in numbers if self.photos[number].label == "garment"}

    def _sides_of(self, item: str) -> Mapping[Photo, str]:
        if item not in self._sides:
            self._sides[item] = sides_of(self._garments(item), self.roles, self._told)
        return self._sides[item]

    def swapped(self, item: str) -> dict[str, str]:
        """By key, the words that let the two roles of an item change their photos.

        Raises:
            InputError: there are no two such photos.
        """
        garments = self._garments(item)
        chosen = choose_views([*garments], self.roles, self._told) if garments else {}
        if len(chosen) != 2 or len({one.photo for one in chosen.values()}) != 2:
            raise InputError(
                f"There are no two product photos to swap in {item or 'no item'}.",
                "Swapping takes an item with two photos of the garment, one from each side.",
            )
        one, other = chosen
        places = {role: self.made.keys[garments[chosen[role].photo]] for role in chosen}
        return {places[one]: other, places[other]: one}


def _applied(row: Photo) -> str:
    """The correction that `clean` has read, or ""."""
    return row.reason.removeprefix(OVERRIDDEN) if row.reason.startswith(OVERRIDDEN) else ""


def _is_new(row: Photo, word: str) -> bool:
    return word != _applied(row) and not (word and _is_fixed(row))


def _is_fixed(row: Photo) -> bool:
    """Whether a file is left out for good: it is no usable photo, neither a copy nor a poor one."""
    return row.label == "rejected" and not row.reason.startswith((OVERRIDDEN, *_MENDABLE))


def _judged(row: Photo, word: str, labels: Mapping[str, str]) -> Photo:
    """A row as `clean` will write it; a correction that was taken back leaves the verdict open."""
    if not _is_new(row, word):
        return row
    if word:
        return replace(row, label=labels[word], reason=OVERRIDDEN + word)
    return replace(row, label="unsure", reason="")


def _doubt(row: Photo) -> tuple[int, float]:
    place = min(_ORDER[row.label], 1 if row.flags else 2) if row.label != "rejected" else 3
    return place, abs((row.score if row.score is not None else 1.0) - 0.5)
