"""A command's summary for people: short aligned lines, rejects first, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.terminal.words import plain
from triptych.wording.amounts import duration, number
from triptych.wording.commands import typed

FIRST = ("rejected", "reasons", "failed", "errors", "warnings")
"""Keys shown first, because a person must not miss them."""
_GIB = "_gib"
LISTED = 4
"""Most items of a list that are named."""

NEXT: dict[str, str] = {
    "init": "triptych run --config {config}",
    "clean": "look at {contact_sheet}, then: triptych concat",
    "concat": "look at {sheet}, then: triptych caption",
    "caption": "read a few captions in {folder}, then: triptych embed",
    "import": "look at a picture in {folder}, then: triptych embed",
    "embed": "triptych train",
    "train": 'triptych generate --lora {lora} --front FRONT.jpg --back BACK.jpg --prompt "…"',
    "run": 'triptych generate --lora {lora} --front FRONT.jpg --back BACK.jpg --prompt "…"',
    "demo": "open {report}",
    "lora_convert": "triptych lora inspect {lora}",
}
"""The usual next step after a verb; a name in braces stands for a value of its summary."""


def text_of(summary: Mapping[str, Any], indent: str = "") -> str:
    """The summary as lines `name  value`; a stage's own summary within it gets a heading."""
    plain_rows, parts = list[tuple[str, str]](), list[tuple[str, Mapping[str, Any]]]()
    for key in sorted(summary, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST)):
        value = summary[key]
        if key == "next" and not indent:  # shown in the last line
            continue
        if (
            isinstance(value, Mapping)
            and not _is_counts(value)
            and any(isinstance(inner, Mapping | list | str) for inner in value.values())
        ):
            parts.append((key, value))
        elif words := _words(key, value):
            plain_rows.append((plain(_title(key)), words))
    width = max((len(name) for name, _ in plain_rows), default=0)
    rows = [f"{indent}{name:{width}}  {words}" for name, words in plain_rows]
    for name, part in parts:
        rows += [f"{indent}{plain(name.replace('_', ' '))}", text_of(part, indent + "  ")]
    return "\n".join(row for row in rows if row.strip())


def _is_counts(value: Mapping[str, Any]) -> bool:
    return all(isinstance(count, int) and not isinstance(count, bool) for count in value.values())


def _words(key: str, value: Any) -> str:
    """A value in words; empty for an empty value."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return "" if value == 0 and key and key not in FIRST else _number(key, value)
    if isinstance(value, Mapping):
        if _is_counts(value):
            return ", ".join(
                f"{number(count)} {plain(str(name))}"
                for name, count in sorted(value.items(), key=lambda item: -item[1])
                if count
            )
        return ", ".join(_named(key, value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(isinstance(each, int) for each in value) and len(value) == 2:
            return " × ".join(map(str, value))
        named = ", ".join(_words("", each) for each in value[:LISTED])
        return named if len(value) <= LISTED else f"{len(value)}: {named}, …"
    return plain(typed(str(value)))


def _named(key: str, values: Mapping[str, Any]) -> list[str]:
    """The parts of a row, each `name value`; an empty number is written as 0, any other empty value as none.
    `held` and `held_gib` become one part: `held 2 (1.5 GiB)`.
    """
    parts = []
    for name, value in values.items():
        words = _inner(key, name, value)
        size = values.get(f"{name}{_GIB}")
        if name.endswith(_GIB) and name.removesuffix(_GIB) in values:
            continue
        beside = f" ({_inner(key, name + _GIB, size)})" if size is not None else ""
        parts.append(f"{plain(_title(name))} {words or 'none'}{beside}")
    return parts


def _inner(key: str, name: str, value: Any) -> str:
    """A value within a row; the row's key may name its unit."""
    key = key if "second" in key else str(name)
    return (
        _number(key, value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else _words(key, value)
    )


def _title(name: Any) -> str:
    """A key of a summary as a name for people, without its unit, which follows the value."""
    return str(name).removesuffix(_GIB).replace("_", " ")


def _number(key: str, value: float) -> str:
    if key.endswith(_GIB):
        return f"{value:.1f} GiB"
    if "second" in key:
        return duration(value)
    if key.endswith("bytes") and value >= 1 << 20:
        return f"{value / 2**30:.2f} GiB" if value >= 1 << 30 else f"{value / 2**20:.1f} MiB"
    return str(value) if key == "seed" else number(value)


def next_line(name: str, summary: Mapping[str, Any]) -> str:
    """`next: …`, the usual next command, ready to type; empty if there is none."""
    if said := summary.get("next"):  # the stage knows the right next step better
        return f"next: {plain(typed(str(said)))}"
    template = NEXT.get(name)
    if template is None:
        return ""
    trained = summary.get("train") if isinstance(summary.get("train"), Mapping) else summary
    values = {key: _path(value) for key, value in summary.items()}
    if lora := (trained or summary).get("lora"):
        values["lora"] = shlex.quote(_path(lora))
    try:
        return plain(typed(f"next: {template.format_map(values)}"))
    except KeyError:
        return ""


def _path(value: Any) -> str:
    """A path without the remark that a summary adds: `sheet.png (12 of 40 photos)`."""
    text = str(value)
    return text.split(" (")[0] if text.endswith(")") else text


__all__ = ["next_line", "text_of"]
