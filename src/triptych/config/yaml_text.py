"""The subset of YAML for config files: nested mappings, lists and plain values, each key once, every value
with its line.

It works on PyYAML's events, so that everything is checked before it is built: no tags, no anchors, no deep
nesting. Words keep their spelling. YAML 1.1 reads 010 as 8, 1:30 as 90 and `no` as false; here these stay
text, and the setting decides whether it accepts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from triptych.errors import ConfigError

MAX_DEPTH = 10
MAX_VALUES = 20_000
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})?(\.[0-9]{0,40})?([eE][-+]?[0-9]{1,4})?")

_HINT = "Indent with spaces, write 'key: value'."
_HINTS = {
    "mapping values are not allowed here"[
        :24
    ]: "Put text with a colon and a space in it in 'quotes', and indent keys alike.",
    "expected escape sequence"[:24]: "Put paths with backslashes in 'single quotes', or write them with /.",
    "found unknown escape character"[
        :24
    ]: "Put paths with backslashes in 'single quotes', or write them with /.",
}
"""Hints, by the beginning of PyYAML's message."""

Lines = dict[tuple[str, ...], int]
"""The line of each key, by the path of keys to it."""


def parse(text: str, name: str) -> tuple[Any, Lines]:
    """The value of a YAML document, and the line of every key in it. `name` is the file's name, for messages.

    Raises:
        ConfigError: no YAML, a repeated key, or more than plain values; with the line.
    """
    return _Reader(text, name).document()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self._text, self._name, self._values = text, name, 0
        self._events = self._read()
        self._lines: Lines = {}

    def _read(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            line = mark.line + 1 if mark else self._text.count("\n", 0, getattr(error, "position", 0)) + 1
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
            raise self._refused(line, str(problem), _HINTS.get(str(problem)[:24], _HINT)) from error
        except (ValueError, OverflowError) as error:  # an escape or a version number out of range
            raise self._refused(
                None, "a number in it is out of range", "Write text without \\U escapes."
            ) from error

    def document(self) -> tuple[Any, Lines]:
        value = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refused(_line(event), "a second document begins", "Delete the line '---'.")
                value = self._node(next(self._events), ())
        return value, self._lines

    def _refused(self, line: int | None, problem: str, hint: str) -> ConfigError:
        where = f" at line {line}" if line else ""
        return ConfigError(f"{self._name} is not valid YAML{where}: {problem}.", hint)

    def _node(self, event: Any, path: tuple[str, ...]) -> Any:
        line = _line(event)
        self._values += 1
        if len(path) > MAX_DEPTH or self._values > MAX_VALUES:
            what = "too deeply nested" if len(path) > MAX_DEPTH else f"more than {MAX_VALUES} values"
            raise self._refused(line, what, "A config has sections, and keys with plain values in them.")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refused(
                line,
                "anchors and aliases (& and *) are not read",
                "Write the value out, or put it in quotes.",
            )
        if event.tag is not None and event.tag != "!":
            raise self._refused(
                line,
                "tags (! or !!) are not read",
                "Write a plain 'key: value'; put text with a ! in quotes.",
            )
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        return self._plain(event.value, line) if event.style is None else self._checked(event.value, line)

    def _list(self, path: tuple[str, ...]) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._node(event, (*path, str(len(values)))))
        return values

    def _mapping(self, path: tuple[str, ...]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refused(line, "a key is not a word", "Write 'key: value'.")
            self._node(event, path)  # checks its tag, anchor and characters
            key = event.value
            if key in mapping:
                before = self._lines[*path, key]
                raise ConfigError(
                    f"'{key}' stands twice in {self._name}, at lines {before} and {line}.",
                    "Keep one of them.",
                )
            self._lines[*path, key] = line
            mapping[key] = self._node(next(self._events), (*path, key))
        return mapping

    def _plain(self, word: str, line: int) -> Any:
        if word in _WORDS:
            return _WORDS[word]
        if _INTEGER.fullmatch(word):
            return int(word)
        if _NUMBER.fullmatch(word) and any(c.isdigit() for c in word):
            return float(word)
        return self._checked(word, line)

    def _checked(self, text: str, line: int) -> str:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise self._refused(
                line,
                "a character in it can stand in no text and no file name",
                "Delete the escape (\\0 or \\u…).",
            )
        return text


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


__all__ = ["Lines", "parse"]
