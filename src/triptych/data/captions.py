"""Captions in the house format: a summary, then `<IMAGE k>` and the description of panel k, brands written
`<Brand>`.

    Three pictures of one linen shirt. <IMAGE 1> The front: ... <IMAGE 2> The back: ... <IMAGE 3> A man wears
    it: ...

The grammar is strict: every marker once, in order, with text behind it. All whitespace becomes single spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.data.brands import replace_names
from triptych.errors import InputError
from triptych.store.text import CAPTION_BYTES, read_text

BRAND = "<Brand>"
_MARKER = re.compile(r"<IMAGE ([1-9][0-9]?)>")
_TOKEN = re.compile(r"(<IMAGE [1-9][0-9]?>|<Brand>)")
_ANY_BRAND = re.compile(r"<brand>", re.IGNORECASE)
_NAME = re.compile(r"<((?!Brand>|IMAGE )[A-Z][^<>\n]{0,40})>")
_MARKUP = re.compile(
    r"<(?:[/!?a-zA-Z]|\s+[/!?a-zA-Z][^<>]*>)|&#?\w+;|\]\s*\(|https?:|javascript:|data:\w+/", re.IGNORECASE
)
_SPECIAL = re.compile(
    r"<[|｜]|[|｜]>|</?s>|<(?:pad|unk|eos|bos|mask|end_of_turn|start_of_turn|extra_id_\d+|image|think)>"
    r"|\[/?(?:INST|EOS|BOS|PAD|CLS|SEP|MASK|UNK)\]",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"\*\*|__\w|```|~~~|(?:^|\n|\s)#{1,6}\s+\w|(?:^|\n)\s*[-*•]\s+\S|`[^`]+`")
_JSON = re.compile(r"^\s*[\[{]\s*[\"'{\[]|\"\w+\"\s*:\s*[\"\[{]")
_TALK = re.compile(
    r"""^\W*(?:sure|certainly|of\ course|absolutely|okay|ok|great|understood)\s*[!,.:]
    | ^\W*(?:here(?:['’]s|\ is|\ are)|below\ is)\b[^.<]{0,120}:
    | ^\W*(?:i['’]m\ sorry|i\ am\ sorry|i\ can(?:no|['’])t|as\ an\ ai|i(?:['’]d|\ would)\ be\ happy)\b
    | ^\W*(?:summary|caption|description|answer)\s*:
    | \blet\ me\ know\ (?:if|whether|how)\b | \bi\ hope\ (?:this|that)\ helps\b
    | \bfeel\ free\ to\ (?:ask|let)\b | \bwould\ you\ like\ me\ to\b""",
    re.IGNORECASE | re.VERBOSE,
)
UNREADABLE = "the text encoder does not know many of its words: write it in English"
UNKNOWN_SHARE = 0.1
"""The largest share of a caption's letters that the text encoder may not know; above it, the caption is
unreadable.
"""


def marker(number: int) -> str:
    """The marker of panel `number`, counted from 1."""
    return f"<IMAGE {number}>"


MOST_MARKER = 40
"""Length of the longest marker, in characters."""


def markers_of(value: object, panels: int) -> tuple[str, ...]:
    """The markers that a row or a file names, one for each panel; empty for the house format and for invalid
    values.
    """
    if not isinstance(value, list | tuple) or len(value) != panels or len({*map(str, value)}) != panels:
        return ()
    plain = all(isinstance(one, str) and one.strip() and one.isprintable() for one in value)
    return tuple(value) if plain and all(len(one) <= MOST_MARKER for one in value) else ()


def in_house(text: str, markers: Sequence[str]) -> str:
    """Turn a caption with foreign markers into the house format, so that it can be checked.

    Data sets with such markers (ali-vilab's In-Context LoRAs) write names of people as `<Leo>`; the brackets
    are left out.
    """
    if not markers:
        return text
    numbers = {one: marker(number) for number, one in enumerate(markers, 1)}
    longest = sorted(markers, key=len, reverse=True)  # SCENE 10 before SCENE 1, which it begins with
    parts = re.split(f"({'|'.join(map(re.escape, longest))})", text)
    return "".join(numbers.get(part) or _NAME.sub(r"\1", part) for part in parts)


def with_markers(text: str, markers: Sequence[str]) -> str:
    """Turn a caption in the house format into one with the given markers."""
    for number, one in enumerate(markers, 1):
        text = text.replace(marker(number), one)
    return text


def normalise(text: str) -> str:
    """The text in Unicode form NFC, every run of whitespace as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_caption(path: Path, *, hint: str = "") -> str:
    """The caption in a file, normalised: no byte-order mark, one line, single spaces. `hint`: see
    `read_text`.

    Raises:
        InputError: missing, larger than any caption, no regular file, or not UTF-8 (UTF-16 and cp1252 are
            not).
    """
    return normalise(read_text(path, CAPTION_BYTES, "The caption", hint=hint).replace("\ufeff", ""))


@dataclass(frozen=True)
class Caption:
    """`summary` of the whole triptych (may be empty), and one text per panel in reading order."""

    summary: str
    panels: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, panels: int = 3) -> Caption:
        """The caption in `text`, whitespace normalised. `parse(caption.render())` is `caption`.

        Raises:
            InputError: a marker is missing, repeated or out of order, or a panel has no text.
        """
        problems = _structure(text, panels)
        if problems:
            raise InputError(
                f"The caption is not in the house format: {'; '.join(problems)}.", f"Write {example(panels)}."
            )
        parts = [normalise(part) for part in _MARKER.split(text)[::2]]
        return cls(parts[0], tuple(parts[1:]))

    def render(self) -> str:
        """The caption as one line of text."""
        parts = [self.summary] + [f"{marker(number)} {text}" for number, text in enumerate(self.panels, 1)]
        return normalise(" ".join(parts))


def example(panels: int) -> str:
    """A short example of the house format."""
    return " ".join(["summary", *(f"{marker(number)} text" for number in range(1, panels + 1))])


def _structure(text: str, panels: int) -> list[str]:
    """The reasons why `text` does not parse into `panels` panels."""
    assert panels > 0
    found = [int(number) for number in _MARKER.findall(text)]
    expected = list(range(1, panels + 1))
    problems = [f"marker {marker(number)} is missing" for number in expected if number not in found]
    problems += [
        f"marker {marker(number)} stands there {found.count(number)} times"
        for number in expected
        if found.count(number) > 1
    ]
    problems += (
        ["there are markers of panels that do not exist"]
        if any(number not in expected for number in found)
        else []
    )
    if not problems and found != expected:
        problems = ["the markers are not in order"]
    if not problems:
        parts = _MARKER.split(text)[::2]
        problems = [
            f"no text after {marker(number)}" for number, part in enumerate(parts[1:], 1) if not part.strip()
        ]
    return problems


def lint(
    text: str,
    panels: int = 3,
    *,
    brands: Iterable[str] = (),
    token_counter: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
    max_words: int | None = None,
    unknown_share: Callable[[str], float] | None = None,
) -> list[str]:
    """Every problem of a caption, as short phrases; empty if it can be used as it is.

    The phrases repeat no word of the caption, so they can be shown, logged and sent back to a model.

    Args:
        text: a caption as it came from a model or a file.
        panels: the number of panels it has to describe, each behind its marker; 0 for a sentence without
            markers.
        brands: names that must have been replaced by `<Brand>`.
        token_counter: counts the text encoder's tokens, end token included.
        max_tokens: the number of tokens that the text encoder reads; needs `token_counter`.
        max_words: a simpler limit.
        unknown_share: returns the share of a text's letters that the text encoder does not know, 0 to 1; by
            default the share of non-Latin letters.
    """
    problems = _structure(text, panels) if panels else []
    if panels and not problems and not _MARKER.split(text)[0].strip():
        problems.append(f"no summary before {marker(1)}")
    if replace_brand(text, brands) != normalise(text):
        problems.append(f"a brand name is not written {BRAND}")
    if any(_invisible(character) for character in text):
        problems.append("it has control or invisible characters")
    plain = _TOKEN.sub(" ", text)
    if _SPECIAL.search(plain):
        problems.append("it has special tokens of a language model")
    if _MARKUP.search(plain):
        problems.append("it has markup, links or other angle brackets")
    if _JSON.search(plain):
        problems.append("it is JSON, not plain text")
    elif _MARKDOWN.search(plain):
        problems.append("it has markdown (asterisks, headings, bullets or backticks)")
    if _TALK.search(plain):
        problems.append("it has small talk, which describes nothing")
    if (unknown_share or foreign_share)(normalise(plain)) > UNKNOWN_SHARE:
        problems.append(UNREADABLE)
    words = len(text.split())
    if max_words is not None and words > max_words:
        problems.append(f"it is too long: {words} words, at most {max_words}")
    if (
        not problems and token_counter is not None and max_tokens is not None
    ):  # tokenizers choke on some broken text
        tokens = token_counter(normalise(text))
        if tokens > max_tokens:
            problems.append(f"it is too long: {tokens} tokens, the text encoder reads {max_tokens}")
    return problems


def foreign_share(text: str) -> float:
    """The share of a text, 0 to 1, in characters that no text encoder here knows: non-Latin letters and
    emoji.
    """
    signs = [
        character
        for character in text
        if unicodedata.category(character) in {"Ll", "Lu", "Lt", "Lo", "Lm", "So"}
    ]
    return sum(
        not unicodedata.name(sign, "").startswith(("LATIN", "DEGREE", "COPYRIGHT", "REGISTERED"))
        for sign in signs
    ) / max(1, len(signs))


def _invisible(character: str) -> bool:
    """Control, bidirectional and other format characters, surrogates, private use. Line ends and tabs are not
    among them: they are whitespace.
    """
    return character not in "\n\r\t" and unicodedata.category(character) in {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Zl",
        "Zp",
    }


def replace_brand(text: str, brands: Iterable[str]) -> str:
    """The text, normalised, with every name in `brands` as `<Brand>`; see `brands.py` for the rules.

    Markers stay even if a brand is called Image or Brand.
    """
    return replaced_brands(text, brands)[0]


def replaced_brands(text: str, brands: Iterable[str]) -> tuple[str, Counter[str]]:
    """`replace_brand`, and how often each name was replaced."""
    names, counts, before = list(brands), Counter[str](), ""
    text = _ANY_BRAND.sub(BRAND, normalise(text))
    while names and before != text:  # replacing one name may uncover another
        before, parts = text, []
        for part in _TOKEN.split(text):
            replaced, found = (
                (part, Counter[str]()) if _TOKEN.fullmatch(part) else replace_names(part, names, BRAND)
            )
            parts.append(replaced)
            counts += found
        text = normalise("".join(parts))
    return text, counts


def where_cut(text: str, limit: int, count_tokens: Callable[[str], int]) -> str:
    """A sentence that says where a text encoder with a limit of `limit` tokens cuts a prompt; "" if it reads
    the whole prompt.

    count_tokens: returns the tokens of a text, end token included.
    """
    total = count_tokens(text)
    if total <= limit:
        return ""
    panels = [(int(found[1]), count_tokens(text[: found.end()]) <= limit) for found in _MARKER.finditer(text)]
    read, lost = [number for number, fits in panels if fits], [number for number, fits in panels if not fits]
    if not panels:  # panels with markers of their own, or none
        return f"The prompt has {total} tokens, the model reads {limit}: its end is cut off. Make it shorter."
    place = f"the text of panel {read[-1]}" if read else "the summary"
    beyond = f", and nothing is read of panel {' and '.join(map(str, lost))}" if lost else ""
    return (
        f"The prompt has {total} tokens, the model reads {limit}: it is cut in {place}{beyond}. Make it "
        "shorter."
    )
