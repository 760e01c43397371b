"""Strips the wrapping from a captioner's answer: reasoning, tags, fences, JSON, markdown and small talk.

Only unmistakable wrapping is removed. All else stays, so that `captions.lint` finds it and the next question
names it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_THOUGHT = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_THINK = re.compile(rf"<{_THOUGHT}>|<\|begin_of_thought\|>|\[THINK\]|◁think▷", re.IGNORECASE)
_THOUGHT_OUT = re.compile(rf"</{_THOUGHT}>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷", re.IGNORECASE)
_CHANNEL = "<|channel|>final<|message|>"  # models with OpenAI's harmony format begin their answer after this
_SPECIAL = r"<[|｜][^|｜<>\n]{1,40}[|｜]>|</?s>|<(?:end_of_turn|eos|bos|pad)>|\[/?INST\]|\[(?:EOS|BOS|PAD)\]"
_SPECIAL_ENDS = re.compile(rf"^(?:\s*(?:{_SPECIAL}))+|(?:(?:{_SPECIAL})\s*)+$", re.IGNORECASE)
_ANSWER = re.compile(
    r"<(answer|final|final_answer|output|response|result|caption|description|solution|text)>\s*(.+?)\s*</\1>",
    re.I | re.S,
)
_BOX = re.compile(r"<\|begin_of_box\|>(.+?)<\|end_of_box\|>|\\boxed\{(?:\\text\{)?([^{}]+)\}", re.DOTALL)
_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*[\w+-]*[ \t]*$|^[ \t]*```(?:json|text|markdown|plaintext|md|txt)?[ \t]*|```[ "
    r"\t]*$",
    re.I | re.M,
)

_OPENING = re.compile(
    r"""(?:
      (?:sure(?:\s+thing)?|certainly|of\s+course|absolutely|okay|ok
        |got\s+it|great|alright|understood|no\s+problem)\s*[!.,:…]+
    | i(?:'d|\s+would|'ll|\s+will)\s+(?:be\s+)?(?:happy|glad|love)[^.!:<]{0,80}[.!:]
    | i\s+can\s+(?:help|do|certainly|describe)[^.!:<]{0,80}[.!:]
    | (?:here(?:'s|\s+is|\s+are)|below\s+is|this\s+is|(?:the\s+)?following\s+is)
      \s+(?:the\s+|a\s+|an\s+|my\s+|your\s+|our\s+)?
      [^.!:<]{0,60}?(?:description|caption|summary|answer|text|form|format|request
        |words|result|response|version)[^.!:<]{0,80}:
    | based\s+on\s+(?:the|your|this)\s+(?:\w+\s+){0,3}?(?:image|picture|photo|panel)s?(?:
      \s+(?:provided|shared|above|given))*\s*,
    | (?:(?:final|overall|short|brief|english|image|picture|triptych|general)\s+)?
      (?:answer|output|response|caption|description|summary|overview)[ \t]*(?:[:：]|\n)
    )\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_CLOSING = re.compile(
    r"""(?:(?<=[.!?)"”'’])|(?<=\n))\s*
    (?:please\s+)?
    (?: let\s+me\s+know\b | i\s+hope\s+(?:this|that|it)\b | hope\s+(?:this|that|it)\s+helps
      | (?:please\s+)?feel\s+free\b | would\s+you\s+like\b
      | do\s+you\s+(?:want|need)\b | if\s+you(?:\s+(?:need|want|would|have|like|require)|'d)\b
        | is\s+there\s+anything\b
      | (?:i'm|i\s+am)\s+(?:happy|glad|here)\b | happy\s+to\s+help | \(?\s*word\s+count\b
      | \(\s*(?:about\s+|approximately\s+|~\s*)?\d+\s+words?\s*\)
      | (?:this|the)\s+(?:above\s+)?(?:description|caption|text)
        \s+(?:is|has|contains|avoids|follows|adheres|uses)\b
      | (?:please\s+)?\(?note\b\s*(?:that\b|:) | disclaimer\s*:
      | i(?:'ve|\s+have)?\s+(?:left\s+out|omitted|replaced|avoided|followed|kept)\b
    ).*$""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Characters at which a word or a line may break: soft hyphen, zero-width space, word joiner, byte-order
mark.
"""
_NO_OR_WHAT = "[\u274c\u2716\u2717\u2718\u26d4\u2753\u2754\U0001f6ab]"
_EMOJI = re.compile(
    f" ?(?!{_NO_OR_WHAT})[\u2600-\u27bf\u2b50\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff]"
    r"[\ufe0f\u200d\u2640\u2642]*"
)
"""Emoji without meaning; those that say no or ask a question are not among them."""
_PLACEHOLDER = re.compile(r"(?<!\w)[\[{(]\s*brand(?:[ _-]?name)?\s*[\]})]", re.IGNORECASE)
_LOOSE_MARKER = r"[<\[({{＜【&]\s*(?:lt;)?\s*IMAGE\s*[#_:-]?\s*0?{number}\s*(?:[>\])}}＞】]|&gt;)"
_CLOSED_MARKER = re.compile(r"<\s*/\s*IMAGE\s*[#_:-]?\s*\d{1,2}\s*>", re.IGNORECASE)
_PLACES = {"first": 1, "left": 1, "second": 2, "middle": 2, "center": 2, "centre": 2, "third": 3, "right": 3}
_WHOLE = ("caption", "description", "text", "answer", "response", "output", "result", "content", "prompt")
_SUMMARY = ("summary", "overview", "overall", "intro", "introduction")


def bare(answer: str) -> str:
    """The answer without its reasoning, without the tokens of a chat format, and without the tags around it.

    If the reasoning never ends, the text before it is the answer, or else its last paragraph.
    """
    text = _INVISIBLE.sub("", _EMOJI.sub("", answer)).replace("\r\n", "\n").replace("\r", "\n")
    if _CHANNEL in text:
        text = text.rsplit(_CHANNEL, 1)[1]
    while (begin := _THINK.search(text)) and (end := _THOUGHT_OUT.search(text, begin.end())):
        text = text[: begin.start()] + "\n" + text[end.end() :]
    ends = list(_THOUGHT_OUT.finditer(text))
    if ends:  # the opening tag was part of the question
        text = text[ends[-1].end() :]
    if begin := _THINK.search(text):
        text = text[: begin.start()].strip() or re.split(r"\n\s*\n", text[begin.end() :].strip())[-1]
    before = None
    while before != text:
        before, text = text, _SPECIAL_ENDS.sub("", text).strip()
    for pattern in (_ANSWER, _BOX):
        found = pattern.findall(text)
        if len(found) == 1:
            text = "".join(found[0][1:] if pattern is _ANSWER else found[0]).strip()
    return text


def json_in(text: str) -> Any:
    """The JSON in a text, which may be fenced or have a sentence around it; None if there is none, or more
    text beside it.
    """
    text = _FENCE.sub("", text).strip()
    begin = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
    if begin < 0 or text.count("[") + text.count("{") > 200:  # no caption is nested this deeply
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    around = f"{text[:begin]} {text[end:]}".strip()
    return value if isinstance(value, (dict, list)) and len(around) <= 200 and "<" not in around else None


def without_markdown(text: str, *, numbering: bool = False) -> str:
    """The text without fences, headings, bullets, list numbers, block quotes, rules and emphasis; its line
    breaks stay.

    With `numbering`, the list numbers stay.
    """
    item = r"^\s*[-*+•‣–]\s+(?=\S)" if numbering else r"^\s*(?:[-*+•‣–]|\d{1,2}[.)])\s+(?=\S)"
    lines = []
    for line in _FENCE.sub("", text).split("\n"):
        line = re.sub(r"^\s*(?:>\s?)+(?=\S)", "", line)
        line = re.sub(r"^\s*#{1,6}\s+|\s+#{1,6}\s*$", "", line)
        if re.fullmatch(r"\s*(?:[-*_=]\s*){3,}", line):
            line = ""
        bullet = re.match(item, line)
        if bullet:
            line = line[bullet.end() :].rstrip()
            # the lines will be joined, and a list without stops would run together
            line += "." if line[-1:].isalnum() else ""
        lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"(?<![\w*])\*{1,3}(?=[^\s*])|(?<=[^\s*])\*{1,3}(?![\w*])|\*\*", "", text)
    text = re.sub(r"(?<![\w_])_{1,2}(?=[^\s_])|(?<=[^\s_])_{1,2}(?![\w_])", "", text)
    return re.sub(r"`+|~~", "", text).strip()


def plain_caption(answer: str, panels: int = 3, numbers: Mapping[str, int] = MappingProxyType({})) -> str:
    """The caption in an answer: plain text with the markers of the house format. No text between the markers
    is lost.

    numbers: {word that stands for a panel, such as its role: the panel's number from 1}.
    """
    text = bare(answer)
    value = json_in(text)
    if value is not None:
        text = caption_in(value, panels, {**_PLACES, **numbers}) or text
    if "&" in text:
        text = html.unescape(text)
    text = re.sub(r"\\([<>\[\]_*&])", r"\1", text)  # undo markdown's backslash escapes
    text = _PLACEHOLDER.sub("<Brand>", _CLOSED_MARKER.sub(" ", without_markdown(text)))
    for number in range(1, panels + 1):
        if f"<IMAGE {number}>" not in text:
            text = re.sub(_LOOSE_MARKER.format(number=number), f"<IMAGE {number}>", text, flags=re.IGNORECASE)
    if "<IMAGE" not in text:
        text = re.sub(
            r"^\W*image\s*#?([1-9])\s*[:.–—-]+", r"<IMAGE \1>", text, flags=re.IGNORECASE | re.MULTILINE
        )
    if "<IMAGE" not in text:
        text = _named_markers(text, panels)
    text = re.sub(r"(<IMAGE [1-9]>)\s*[:：–—-]+\s*", r"\1 ", text)
    return _without_talk(_unquoted(text))


def _named_markers(text: str, panels: int) -> str:
    """Turn `Image 1: …` into a marker, if each panel is named exactly once and in order."""
    named = re.compile(r"\b(?:image|panel)\s*#?([1-9])\s*[:：]", re.IGNORECASE)
    numbers = [int(number) for number in named.findall(text)]
    return named.sub(r"<IMAGE \1>", text) if numbers == list(range(1, panels + 1)) else text


def _unquoted(text: str) -> str:
    text = text.strip()
    for left, right in ('""', "''", "“”", "‘’", "«»"):
        inner = text[1:-1]
        if (
            len(text) > 1
            and text[0] == left
            and text[-1] == right
            and left not in inner
            and right not in inner
        ):
            return inner.strip()
    return text


def _without_talk(text: str) -> str:
    head, marker, last = text.rpartition("<IMAGE ")
    if marker and (offer := _CLOSING.search(last)) and last[: offer.start()].partition(">")[2].strip():
        last = last[: offer.start()]
    text = _unquoted(head + marker + last)
    while talk := _OPENING.match(text.replace("’", "'")):
        rest = _unquoted(text[talk.end() :])
        if not rest or rest.startswith("<IMAGE"):
            break
        text = rest[:1].upper() + rest[1:]
    return text


def caption_in(value: Any, panels: int, numbers: Mapping[str, int]) -> str | None:
    """The caption in a JSON answer: whole, or as summary and one text per panel; None if unclear."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if len(value) == 1:
            return caption_in(value[0], panels, numbers)
        texts = [
            caption_in(part, panels, numbers) if isinstance(part, (str, dict)) else None for part in value
        ]
        if None in texts:
            return None
        if any("<IMAGE" in str(text) for text in texts):
            return " ".join(map(str, texts))
        return (
            _joined(texts[0], texts[1:])
            if len(texts) == panels + 1
            else _joined("", texts)
            if len(texts) == panels
            else None
        )
    if not isinstance(value, dict):
        return None
    named = {str(key).strip().lower(): part for key, part in value.items()}
    whole = [part for part in named.values() if isinstance(part, str) and "<IMAGE 1>" in part]
    if len(whole) == 1:
        return whole[0]
    summary = next(
        (part for key, part in named.items() if key.startswith(_SUMMARY) and isinstance(part, str)), ""
    )
    by_number = {
        number: part
        for key, part in named.items()
        if (number := _number(key, numbers)) and not key.startswith(_SUMMARY)
    }
    if sorted(by_number) == list(range(1, panels + 1)):
        return _joined(
            summary, [caption_in(by_number[number], panels, numbers) for number in sorted(by_number)]
        )
    for part in named.values():
        if isinstance(part, (list, dict)) and len(part) >= panels:
            inner = caption_in(part, panels, numbers)
            if inner:
                return f"{summary} {inner}".strip()
    return next((named[key] for key in _WHOLE if isinstance(named.get(key), str)), None) or (
        caption_in(next(iter(named.values())), panels, numbers) if len(named) == 1 else None
    )


def _number(key: str, numbers: Mapping[str, int]) -> int | None:
    """The panel that a key of a JSON object refers to."""
    digits = re.findall(r"\d+", key)
    if len(digits) == 1:
        return int(digits[0])
    found = {
        number
        for word, number in numbers.items()
        if re.search(rf"(?<![a-z]){word}(?![a-z])", key.replace("_", " "))
    }
    return found.pop() if len(found) == 1 else None


def _joined(summary: Any, texts: list[Any]) -> str | None:
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return " ".join(
        [str(summary or ""), *(f"<IMAGE {number}> {text}" for number, text in enumerate(texts, 1))]
    ).strip()
