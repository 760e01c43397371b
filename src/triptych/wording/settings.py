"""Describes settings in words: the values a field takes, and the error for another value."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

SHOWN = 40
"""Most characters of a wrong value that are quoted."""


def shown(value: Any) -> str:
    """A value on one line, shortened, without characters that control a terminal."""
    text = (
        value
        if isinstance(value, str)
        else "yes"
        if value is True
        else "no"
        if value is False
        else str(value)
    )
    text = "".join(c if c.isprintable() else "�" for c in text[: SHOWN + 1])
    return (
        f"{text[:SHOWN]}…" if len(text) > SHOWN else text if text.strip() and " " not in text else f"'{text}'"
    )


def allowed(field: FieldInfo) -> str:
    """The values that a field takes: `a whole number from 1 to 64`."""
    return _allowed(field.annotation, list(field.metadata))


def _allowed(kind: Any, metadata: list[Any]) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for extra in parts[1:]:
            metadata += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        return _allowed(parts[0], metadata)
    if origin in (Union, types.UnionType):
        kinds = [part for part in parts if part is not type(None)]
        return " or ".join(_allowed(part, list(metadata)) for part in kinds)
    if origin is Literal:
        *first, last = map(str, parts)
        return f"{', '.join(first)} or {last}" if first else last
    if origin is list:
        return f"a list (each {_allowed(parts[0], [])})" if parts else "a list"
    if kind is bool:
        return "true or false"
    names: dict[Any, str] = {int: "a whole number", float: "a number", Path: "a path", str: "text"}
    return names.get(kind, "another value") + _range(kind, metadata)


def _range(kind: Any, metadata: list[Any]) -> str:
    longest = next((each.max_length for each in metadata if hasattr(each, "max_length")), None)
    if longest is not None:
        return f" of at most {longest} characters"
    limits = {
        name: getattr(each, name)
        for each in metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(each, name)
    }
    if kind is int:  # a limit that belongs to the range
        for name, inside, step in (("gt", "ge", 1), ("lt", "le", -1)):
            if name in limits:
                limits[inside] = limits.pop(name) + step
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']:g} to {limits['le'] if kind is int else format(limits['le'], 'g')}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = " and ".join(f"{words[name]} {limit:g}" for name, limit in limits.items())
    return f" of {said}" if said.startswith("at") else f" {said}".rstrip()


def first_mistake(error: ValidationError, model: type[BaseModel]) -> tuple[str, str, str]:
    """(field, value as shown, the values that the field takes) of the first value that was refused."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    field = model.model_fields.get(name)
    if field is None:
        return name, "", first["msg"]
    if first["type"] == "value_error":  # one of our own checks
        return name, shown(first["input"]), str(first["ctx"]["error"])
    return name, shown(first["input"]), allowed(field)


def misread(given: Any, taken: Any) -> bool:
    """Whether YAML may have turned a value from a config file into an unintended number: `yes` into 1, 010
    into 10.
    """
    if isinstance(taken, bool) or not isinstance(taken, int | float):
        return False
    return isinstance(given, bool) or (
        isinstance(given, str) and given.lstrip("+-")[:1] == "0" and given.lstrip("+-")[1:2].isdigit()
    )


def option(name: str) -> str:
    """The command-line option of a field: `--batch-size`."""
    return f"--{name.replace('_', '-')}"


__all__ = ["allowed", "first_mistake", "misread", "option", "shown"]
