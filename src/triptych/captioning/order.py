"""The order check: reads what a captioner's answer says about each panel, in any form of answer."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from triptych.captioning.undress import bare, json_in, without_markdown

_GARMENT = (
    r"garments?|clothes|clothing|apparel|products?|"
    r"(?:garment|clothing|product)[ -](?:only|alone|front|back|item|photo|picture|image|shot|view)|"
    r"(?:item|piece|photo|picture)s? of (?:a |the )?(?:clothing|garment)s?|flat[ -]?lay"
)
_PERSON = (
    r"persons?|people|humans?|(?:a )?(?:fashion |human )?model|man|woman|wearer|somebody|someone|"
    r"(?:person|someone|somebody|man|woman|model|human) (?:is )?wear(?:s|ing) (?:it|(?:a|an|the|this) [a-z "
    r"]+|clothes|clothing)"
)
_LABEL = re.compile(
    r"""(?:the\s+)?(?:panel|image|picture|photo|position|number|no\.?)?\s*\#?\(?
    (?P<place>\d{1,2}|one|two|three|first|second|third|fourth|fifth|sixth|seventh|eighth
        |four|five|six|seven|eight|left(?:most)?|middle|cent(?:er|re)
        |right(?:most)?|[abc](?=\s*[).:]))
    \s*(?:panel|image|picture|photo|one)?\s*
    (?:[)\].:=–—-]|\bis\b|\bshows\b|\bcontains\b|\bdepicts\b|→|>)*\s*(?:an?\s+|the\s+)?""",
    re.VERBOSE,
)
_PLACES = {
    "one": 1,
    "two": 2,
    "three": 3,
    "first": 1,
    "second": 2,
    "third": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "left": 1,
    "leftmost": 1,
    "middle": 2,
} | {
    "center": 2,
    "centre": 2,
    "right": 3,
    "rightmost": 3,
    "a": 1,
    "b": 2,
    "c": 3,
}
_SEPARATOR = re.compile(r"\s*(?:[,;|/+&，、；]|->|=>|→|⇒|\bthen\b|\band\b)\s*|\s+(?=[\dabc]\s*[).]\s)")
_DOUBT = re.compile(
    r"\b(?:not|no|none|wrong|incorrect|however|but|actually|wait|unless|or|instead|should|expected|example"
    r"|maybe|perhaps|unclear|unsure|cannot"
    r"|sorry|swapped|reversed|correction|if|unable|except)\b|n't\b|\?"
)
_KEYS = (
    "panels",
    "panel",
    "order",
    "answer",
    "result",
    "results",
    "labels",
    "output",
    "response",
    "words",
    "types",
    "classification",
)
_SIDES = re.compile(r"^[\s\"'“”‘’`*_.。!！()（）【】\[\]{}|-]+|[\s\"'“”‘’`*_.。!！()（）【】\[\]{}|-]+$")


_DRESS = (
    (re.compile(r"\$+|\\text\{([^{}]*)\}"), r"\1"),  # LaTeX
    (
        re.compile(
            r"^\|\s*((?:(?:panel|image|position)\s*)?\d)\s*\|([^|\n]*)\|.*$", re.MULTILINE | re.IGNORECASE
        ),
        r"\1: \2",
    ),  # a table's row
    (
        re.compile(
            r"\b(\d|left|middle|center|centre|right|first|second|third)(\s+panel)?\s*(?:→|->|=>|⇒)\s*",
            re.IGNORECASE,
        ),
        r"\1: ",
    ),
)


def read_order(answer: str, panels: int = 3) -> list[str] | None:
    """`garment` or `person` for each panel, in order; None if the answer is unclear.

    The words may be in JSON, in a list, in labelled lines or in a sentence, also with a sentence before or
    after them. An answer is unclear if it gives several orders, expresses doubt, or contains invisible
    characters or angle brackets.
    """
    text = bare(answer)
    value = json_in(text)
    if value is not None and (found := _leaves(value)):
        return [str(word) for word in found] if len(found) == panels and all(found) else None
    for pattern, plain in _DRESS:
        text = pattern.sub(plain, text)
    text = (
        unicodedata.normalize("NFC", without_markdown(text, numbering=True))
        .replace("’", "'")
        .replace("\t", " ")
        .lower()
    )
    if (
        any(
            unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co"} and character != "\n"
            for character in text
        )
        or "<" in text
    ):
        return None
    found_orders: list[list[str]] = []
    column: list[tuple[int | None, str]] = []
    for line in [*filter(None, (_SIDES.sub("", line) for line in text.split("\n"))), ""]:
        words = _words(line)
        if words is not None and len(words) == 1:
            column += words
            continue
        if column:
            if len(column) != panels:
                return None
            found_orders.append(_in_place(column))
            column = []
        if words:
            if len(words) != panels:
                return None
            found_orders.append(_in_place(words))
        elif _DOUBT.search(line):
            return None
    return (
        found_orders[0] if found_orders and all(order == found_orders[0] for order in found_orders) else None
    )


def _words(line: str) -> list[tuple[int | None, str]] | None:
    """(place or None, garment | person) for every piece of a line,
    or None if any piece says something else.
    """
    line = re.sub(
        r"\([^()]*(?:\)|$)", lambda inside: _SEPARATOR.sub(" ", inside[0]), line
    )  # a bracketed explanation is one piece
    parts = [part for part in _SEPARATOR.split(line) if _SIDES.sub("", part)]
    words = [_word(part) for part in parts]
    if parts and None not in words:
        return [word for word in words if word]
    if len(parts) == 1 and len(line.split()) > 1:  # garment garment person
        words = [_word(part) for part in line.split()]
        if None not in words:
            return [word for word in words if word]
    before, colon, after = line.partition(":")
    if (
        colon
        and len(before.split()) <= 12
        and not _DOUBT.search(before)
        and not re.search(rf"\b(?:{_GARMENT}|{_PERSON})\b", before)
    ):
        return _words(after.strip())
    sentences = [part for part in re.split(r"\.\s+", line) if part.strip()]
    if len(sentences) > 1:
        pieces = [_words(sentence) for sentence in sentences]
        if all(piece is not None and len(piece) == 1 for piece in pieces):
            return [word for piece in pieces for word in piece or []]
    return None


def _word(piece: str) -> tuple[int | None, str] | None:
    piece = _SIDES.sub("", piece)
    label = _LABEL.match(piece)
    place, rest = None, piece
    if label and label.end():
        name = label["place"]
        place, rest = (int(name) if name.isdecimal() else _PLACES[name]), piece[label.end() :]
    rest = re.sub(r"^(?:an?|the)\s+", "", _SIDES.sub("", rest))
    for word, pattern, other in (
        ("garment", _GARMENT, _PERSON),
        ("person", _PERSON, r"garment alone|garment only|product photo"),
    ):
        found = re.fullmatch(rf"(?:{pattern})(?:\s*[(:–—-]\s*(?P<why>.*))?", rest)
        if found:
            why = re.sub(r"\b(?:no|without|not) (?:an? |any )?\w+(?: in it)?", "", found["why"] or "")
            return None if re.search(rf"\b(?:{other})\b", why) or _DOUBT.search(why) else (place, word)
    return None


def _in_place(words: list[tuple[int | None, str]]) -> list[str]:
    """The words sorted by their labels if each has its own label, otherwise in the given order."""
    places = [place for place, _ in words]
    if sorted(place or 0 for place in places) == list(range(1, len(words) + 1)):
        words = sorted(words, key=lambda word: word[0] or 0)
    return [word for _, word in words]


def _leaves(value: Any) -> list[str | None] | None:
    """The words in a JSON answer, in order; None stands for any other text."""
    if isinstance(value, str):
        said = _words(_SIDES.sub("", value.replace("’", "'").lower()))
        return [word for _, word in said] if said else [None]
    if isinstance(value, list):
        return [word for part in value if not isinstance(part, (int, float)) for word in _leaves(part) or []]
    if not isinstance(value, dict):
        return []
    named = {str(key).strip().lower(): part for key, part in value.items()}
    if key := next(
        (key for key in _KEYS if isinstance(named.get(key), (list, dict)) or _is_word(named.get(key))), None
    ):
        return _leaves(named[key])
    own = {
        key: part for key, part in named.items() if not isinstance(part, (int, float)) and part is not None
    }
    placed = {key: label for key in own if (label := _LABEL.match(key.replace("_", " ")))}
    if len(placed) == len(own) > 1:
        place = {
            key: int(found["place"]) if found["place"].isdecimal() else _PLACES[found["place"]]
            for key, found in placed.items()
        }
        return [word for key in sorted(own, key=lambda key: place[key]) for word in _leaves(own[key]) or []]
    parts = [words for part in own.values() if (words := _leaves(part)) and None not in words]
    return [word for words in parts for word in words]


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and None not in (_leaves(value) or [None])
