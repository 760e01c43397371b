"""Formats numbers for people."""

from __future__ import annotations

import math


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
    for unit, size, below, small in (
        ("min", 60, 3600, "s"),
        ("h", 3600, 86400, "min"),
        ("d", 86400, math.inf, "h"),
    ):
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


__all__ = ["duration", "number"]
