"""Makes text safe for a terminal: no control characters, and any encoding."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any, TextIO

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def plain(text: str) -> str:
    """The text on one line, with every character that controls a terminal (escape, bidi, line end) written
    out.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    code = ord(c)
    if "\udc80" <= c <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _ESCAPES.get(c) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


def tolerate_encodings() -> None:
    """Print question marks for characters that a terminal or a log file cannot encode, instead of ending the
    command.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def speaks_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def strict(value: Any) -> Any:
    """A value for strict JSON: a non-finite number becomes null, another object its text."""
    if isinstance(value, dict):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


__all__ = ["lines", "plain", "speaks_unicode", "strict", "tolerate_encodings"]
