"""Match regular expressions from a file as peft does, but in bounded time.

Python's matcher backtracks, and a malicious pattern can keep it busy for years. This matcher follows all
alternatives at once: each part of a pattern maps the set of text positions reached so far to the set reached
after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

LONGEST = 300
"""Limit of characters in a pattern. A layer's full name in FLUX.1 has up to 60."""
MOST = 4000
"""Limit of patterns in one file. FLUX.1-dev has 502 linear layers."""
MOST_STEPS = 2_000_000
"""Limit of steps for all patterns of a file together: a few seconds. A pattern for all 502 layers takes about
50,000.
"""

_CHOICES = set("*+?{|(")
Matcher = Callable[[str], bool]


class PatternError(ValueError):
    """A pattern is too long or invalid, takes too many steps, or uses an unsupported feature (look-around,
    back references, flags).
    """


class _Steps:
    """The remaining steps that a file's patterns may take together."""

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise PatternError("takes too many steps")


def peft_matchers(keys: Iterable[str]) -> list[tuple[str, Matcher]]:
    """peft's rule for `rank_pattern` and `alpha_pattern`, a matcher for each key in order:
    `re.match(rf"(.*\\.)?({key})$", name)`.

    Raises:
        PatternError: there are too many keys, or one is unusable. A matcher raises it too, when all of them
            together have taken too many steps.
    """
    found, steps = list(keys), _Steps()
    if len(found) > MOST:
        raise PatternError(f"there are {len(found)} of them")
    return [(key, _matcher(key, steps)) for key in found]


def _matcher(key: str, steps: _Steps) -> Matcher:
    if len(key) > LONGEST:
        raise PatternError(f"has {len(key)} characters")
    try:
        whole = re.compile(rf"(.*\.)?({key})$")
        if not _CHOICES & set(key):  # no alternatives, so Python's matcher is fast
            return lambda name: whole.match(name) is not None
        if whole.flags & ~re.UNICODE:
            raise PatternError("sets flags")
        tree = parser.parse(key)  # parsed alone: `a)|(b` is valid only inside peft's brackets
        _follow(tree, "", {0}, steps)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise PatternError(str(error)) from error
    return lambda name: len(name) in _follow(tree, name, _starts(name), steps)


def _starts(name: str) -> set[int]:
    """Positions where `(.*\\.)?` lets a key begin."""
    return {0} | {place + 1 for place, character in enumerate(name) if character == "."}


def _follow(tree: Sequence[Any], text: str, places: set[int], steps: _Steps) -> set[int]:
    """Positions in `text` where a match of a parsed pattern can end, if it begins at any of `places`."""
    for what, about in tree:
        steps.take(1 + len(places))
        places = _step(what, about, text, places, steps)
    return places


def _step(what: Any, about: Any, text: str, places: set[int], steps: _Steps) -> set[int]:
    if what is op.BRANCH:
        return set().union(*(_follow(branch, text, places, steps) for branch in about[1]))
    if what is op.SUBPATTERN:
        _, added, removed, inner = about
        if added or removed:
            raise PatternError("sets flags")
        return _follow(inner, text, places, steps)
    if what in (op.MAX_REPEAT, op.MIN_REPEAT):
        least, most, inner = about
        return _repeated(least, most, inner, text, places, steps)
    if what is op.AT:
        if about in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return places & {0}
        if about in (op.AT_END, op.AT_END_STRING):
            return places & {len(text)}
        raise PatternError("looks at the edges of words")
    if not _is_one_character(what):
        raise PatternError(f"uses {str(what).lower()}")
    return {place + 1 for place in places if place < len(text) and _fits(what, about, text[place])}


def _repeated(
    least: Any, most: Any, inner: Sequence[Any], text: str, places: set[int], steps: _Steps
) -> set[int]:
    """Positions after repetitions of `inner`. Positions never decrease, so the set stops changing after
    len(text) + 1 rounds.
    """
    enough = len(text) + 2
    least, most = min(int(least), enough), min(int(most), 2 * enough)
    reached = set(places) if least == 0 else set()
    for turn in range(1, most + 1):
        after = _follow(inner, text, places, steps)
        if turn >= least:
            after -= reached  # positions reached in fewer rounds were followed before
            reached |= after
        if not after or (turn < least and after == places):
            return reached | after if turn < least else reached
        places = after
    return reached


def _is_one_character(what: Any) -> bool:
    return what in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN, op.RANGE, op.CATEGORY)


_CATEGORIES: dict[Any, Matcher] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
}


def _fits(what: Any, about: Any, character: str) -> bool:
    if what is op.LITERAL:
        return ord(character) == int(about)
    if what is op.NOT_LITERAL:
        return ord(character) != int(about)
    if what is op.ANY:
        return character != "\n"
    if what is op.RANGE:
        return int(about[0]) <= ord(character) <= int(about[1])
    if what is op.CATEGORY:
        return _CATEGORIES[about](character)
    negated = about[0][0] is op.NEGATE
    return any(_fits(one, more, character) for one, more in about[negated:]) != negated
