"""Line charts as SVG: losses by step. They need no script and no other server."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#3f51b5", "#c2410c", "#0f766e", "#9333ea", "#b91c1c", "#4d7c0f")
WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 28
MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """points: (step, value), by step. number: of its colour. dashed: of the second of two trainings."""

    name: str
    points: Sequence[tuple[float, float]]
    number: int
    dashed: bool = False


def smoothed(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """(at most `MOST_POINTS` points, each the mean of the last few, how many those are). The loss of a single
    step says little, because its noise level is drawn anew each time.
    """
    span = max(1, len(points) // 20)
    total, means = 0.0, []
    for number, (step, value) in enumerate(points):
        total += value - (points[number - span][1] if number >= span else 0.0)
        means.append((step, total / min(span, number + 1)))
    every = -(-len(means) // MOST_POINTS) or 1
    return means[::-1][::every][::-1], span


def chart(title: str, lines: Sequence[Line]) -> str:
    """A chart with its legend; a sentence where there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return f"<h4>{html.escape(title)}</h4><p>No step has been logged yet.</p>"
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points if math.isfinite(value)] or [0.0]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks[0], min(values)), max(ticks[-1], max(values))

    def at(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first)
        up = (value - low) / (high - low)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    grid = "".join(_tick(at(first, value)[1], value) for value in ticks)
    across = "".join(
        f'<text x="{at(step, low)[0]:.0f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step:.0f}</text>'
        for step, anchor in ((first, "start"), (last, "end"))
    )
    drawn = "".join(
        _drawn(line, [at(*point) for point in line.points if math.isfinite(point[1])]) for line in lines
    )
    said = ", ".join(f"{line.name} {line.points[-1][1]:.4g}" for line in lines)
    label = html.escape(f"{title}: at step {last:.0f} {said}", quote=True)
    return (
        f'<h4>{html.escape(title)}</h4><svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}"><g class="curve-grid">{grid}{across}</g>{drawn}</svg>'
        f'<p class="curve-legend">{"".join(map(_legend, lines))}</p>'
    )


def _drawn(line: Line, places: Sequence[tuple[float, float]]) -> str:
    colour = COLOURS[line.number % len(COLOURS)]
    if len(places) == 1:
        return f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="4" fill="{colour}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def _legend(line: Line) -> str:
    colour, style = COLOURS[line.number % len(COLOURS)], "dashed" if line.dashed else "solid"
    mark = f'<i style="border-top: 3px {style} {colour}"></i>'
    return f"<span>{mark}{html.escape(line.name)} <b>{line.points[-1][1]:.4g}</b></span> "


def _tick(y: float, value: float) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about five of them."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    start = math.floor(low / step)
    return [number * step for number in range(start, max(math.ceil(high / step), start + 1) + 1)]
