"""Options that name a photo for a role, ROLE=FILE, and may be repeated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triptych.config.stage import expanded
from triptych.errors import InputError


def as_list(value: Any) -> Any:
    """The value of such an option as a list; in a config file it may also be a section, `worn: photo.jpg`."""
    if isinstance(value, dict):
        return [f"{role}={path}" for role, path in value.items()]
    return [value] if isinstance(value, str) else value


def pair(text: str, option: str, example: str) -> tuple[str, Path]:
    """Role and path of one ROLE=FILE.

    Raises:
        InputError: it has another form. The hint shows `example`.
    """
    role, equals, path = text.partition("=")
    if not (role.strip() and equals and path.strip()):
        raise InputError(
            f"--{option} {text} is no {option}'s photo.", f"Say ROLE=FILE: --{option} {example}."
        )
    return role.strip(), Path(expanded(path.strip()))


def by_role(named: Iterable[tuple[str, Path | None]], what: str) -> dict[str, Path]:
    """The photos that are given, by role. what: word for the thing that has a photo.

    Raises:
        InputError: two photos of one role.
    """
    given = [(role, path) for role, path in named if path is not None]
    photos = dict(given)
    if len(photos) < len(given):
        raise InputError(f"Two photos are given of one {what}.", "Give one of each.")
    return photos
