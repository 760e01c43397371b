"""Captions in the house format: a summary, then `<IMAGE k>` and the description of panel k, brands written `<Brand>`.

    Three pictures of one linen shirt. <IMAGE 1> The front: ... <IMAGE 2> The back: ... <IMAGE 3> A man wears it: ...

The grammar is exact: every marker once, in order, with text behind it. Whitespace is one space everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from triptych.errors import InputError

BRAND = "<Brand>"
_MARKER = re.compile(r"<IMAGE ([1-9][0-9]?)>")
_TOKEN = re.compile(r"(<IMAGE [1-9][0-9]?>|<Brand>)")
_ANY_BRAND = re.compile(r"<brand>", re.IGNORECASE)
_MARKUP = re.compile(r"<\s*[/!?a-zA-Z]|&#?\w+;|\]\s*\(|https?:|javascript:|data:\w+/", re.IGNORECASE)


def marker(number: int) -> str:
    """The marker of panel `number`, counted from 1."""
    return f"<IMAGE {number}>"


def normalise(text: str) -> str:
    """The text in Unicode form NFC, every run of whitespace one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Caption:
    """`summary` of the whole triptych (may be empty) and one text per panel, in reading order."""

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
            raise InputError(f"The caption is not in the house format: {'; '.join(problems)}.", f"Write {example(panels)}.")
        parts = [normalise(part) for part in _MARKER.split(text)[::2]]
        return cls(parts[0], tuple(parts[1:]))

    def render(self) -> str:
        """The caption as one line of text."""
        parts = [self.summary] + [f"{marker(number)} {text}" for number, text in enumerate(self.panels, 1)]
        return normalise(" ".join(parts))


def example(panels: int) -> str:
    """The house format in short."""
    return " ".join(["summary", *(f"{marker(number)} text" for number in range(1, panels + 1))])


def _structure(text: str, panels: int) -> list[str]:
    """What keeps `text` from being parsed into `panels` panels."""
    assert panels > 0
    found = [int(number) for number in _MARKER.findall(text)]
    expected = list(range(1, panels + 1))
    problems = [f"marker {marker(number)} is missing" for number in expected if number not in found]
    problems += [f"marker {marker(number)} stands there {found.count(number)} times" for number in expected if found.count(number) > 1]
    problems += ["there are markers of panels that do not exist"] if any(number not in expected for number in found) else []
    if not problems and found != expected:
        problems = ["the markers are not in order"]
    if not problems:
        parts = _MARKER.split(text)[::2]
        problems = [f"no text after {marker(number)}" for number, part in enumerate(parts[1:], 1) if not part.strip()]
    return problems


def lint(
    text: str,
    panels: int = 3,
    *,
    brands: Iterable[str] = (),
    token_counter: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
    max_words: int | None = None,
) -> list[str]:
    """Everything wrong with a caption, one short phrase each; empty when it can be used as it is.

    The phrases hold nothing of the text itself, so they can be shown, logged and sent back to a model.

    Args:
        text: a caption as it came from a model or a file.
        panels: how many panels it has to describe.
        brands: names that must have been replaced by `<Brand>`.
        token_counter: counts the text encoder's tokens, end token included.
        max_tokens: what the text encoder reads; needs `token_counter`.
        max_words: a plainer limit.
    """
    problems = _structure(text, panels)
    if not problems and not _MARKER.split(text)[0].strip():
        problems.append(f"no summary before {marker(1)}")
    if replace_brand(text, brands) != normalise(text):
        problems.append(f"a brand name is not written {BRAND}")
    if any(_invisible(character) for character in text):
        problems.append("it has control or invisible characters")
    if _MARKUP.search(_TOKEN.sub(" ", text)):
        problems.append("it has markup, links or other angle brackets")
    words = len(text.split())
    if max_words is not None and words > max_words:
        problems.append(f"it is too long: {words} words, at most {max_words}")
    if not problems and token_counter is not None and max_tokens is not None:  # tokenizers choke on some broken text
        tokens = token_counter(normalise(text))
        if tokens > max_tokens:
            problems.append(f"it is too long: {tokens} tokens, the text encoder reads {max_tokens}")
    return problems


def _invisible(character: str) -> bool:
    """Control, bidirectional and other format characters, surrogates, private use; line ends and tabs are whitespace."""
    return character not in "\n\r\t" and unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def replace_brand(text: str, brands: Iterable[str]) -> str:
    """The text, normalised, with every name in `brands` (whole words, any case, longest first) as `<Brand>`.

    Markers are left alone even when a brand is called Image or Brand.
    """
    names = sorted({normalise(brand) for brand in brands} - {""}, key=lambda name: (-len(name), name))
    text = _ANY_BRAND.sub(BRAND, normalise(text))
    if not names:
        return text
    either = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
    return normalise("".join(part if _TOKEN.fullmatch(part) else pattern.sub(BRAND, part) for part in _TOKEN.split(text)))


def where_cut(text: str, limit: int, count_tokens: Callable[[str], int]) -> str:
    """What a text encoder that reads `limit` tokens leaves of a prompt, as a sentence; "" if it reads all of it.

    count_tokens: tokens of a text, end token included.
    """
    total = count_tokens(text)
    if total <= limit:
        return ""
    panels = [(int(found[1]), count_tokens(text[: found.end()]) <= limit) for found in _MARKER.finditer(text)]
    read, lost = [number for number, fits in panels if fits], [number for number, fits in panels if not fits]
    place = f"the text of panel {read[-1]}" if read else "the summary"
    beyond = f", and nothing is read of panel {' and '.join(map(str, lost))}" if lost else ""
    return f"The prompt has {total} tokens, the model reads {limit}: it is cut in {place}{beyond}. Make it shorter."
