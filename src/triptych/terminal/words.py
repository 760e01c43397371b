"""Text for a terminal: one line, nothing that steers it, in whatever encoding it has; numbers as people write them."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any, TextIO

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def plain(text: str) -> str:
    """On one line, with every character that would steer a terminal (escape, bidi, line end) written out."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    code = ord(c)
    if "\udc80" <= c <= "\udcff":  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _ESCAPES.get(c) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")


def lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


def tolerate_encodings() -> None:
    """What a terminal or a log file cannot show becomes a question mark; without this it would end the command."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def speaks_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def duration(seconds: float) -> str:
    """`2 ms`, `45 s`, `4 min 30 s`, `4 h 26 min`, `3 d 4 h`."""
    for below, times, unit in ((1e-3, 1e6, "µs"), (0.1, 1e3, "ms")):
        if 0 < seconds < below:
            return f"{seconds * times:.2g} {unit}"
    if seconds < 10:
        return f"{seconds:.2g} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    for unit, size, below, small in (("min", 60, 3600, "s"), ("h", 3600, 86400, "min"), ("d", 86400, math.inf, "h")):
        if seconds < below:
            whole, rest = divmod(seconds, size)
            part = rest // {"s": 1, "min": 60, "h": 3600}[small]
            return f"{whole} {unit} {part} {small}" if part else f"{whole} {unit}"
    raise AssertionError("every number of seconds is below infinity")


def number(value: float) -> str:
    """Three or four digits, no exponent between 0.0001 and a billion: 0.1662, 1,300, 2.5."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"


def strict(value: Any) -> Any:
    """A value as strict JSON can hold it: a number that is not finite becomes null, other things their text."""
    if isinstance(value, dict):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


__all__ = ["duration", "lines", "number", "plain", "speaks_unicode", "strict", "tolerate_encodings"]
