"""The pictures of ``docs/pocket.md``: a sheet of the rendered world and the loss curves of a build folder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from triptych.pocket.render import render
from triptych.pocket.world import PATTERNS, TYPES, sample_garment, sample_triptych_scenes

INK, GRID, COLOURS = (40, 40, 40), (222, 222, 222), ((200, 60, 40), (40, 90, 200), (40, 140, 70))


def world_sheet(path: Path, columns: int = 3, scale: int = 2, seed: int = 0) -> None:
    """Draw front, back and worn of every type, ``columns`` items of each."""
    rng = random.Random(seed)
    width, height = 48 * scale, 72 * scale
    sheet = Image.new("RGB", (width * 3 * columns, height * len(TYPES)))
    for row, type_ in enumerate(TYPES):
        for column in range(columns):
            garment = sample_garment(rng, type=type_, pattern=PATTERNS[(row + column) % len(PATTERNS)])
            for view, scene in enumerate(sample_triptych_scenes(rng)):
                panel = render(garment, scene, rng.getrandbits(31), scale).image
                sheet.paste(panel, ((column * 3 + view) * width, row * height))
    sheet.quantize(128).save(path, optimize=True)


def read_series(path: Path, *names: str) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) pairs of a stage's log."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        name: [(line["step"], line[name]) for line in lines if name in line and "step" in line]
        for name in names
    }


def loss_curves(folder: Path, path: Path) -> None:
    """Draw the curves of the stages that were run, side by side."""
    stages = [
        ("autoencoder", "PSNR, dB", ("psnr", "psnr_wide")),
        ("text", "loss", ("loss",)),
        ("transformer", "flow loss", ("loss_singles", "loss_boards")),
        ("prints", "flow loss", ("loss_printed", "loss_boards")),
        ("guidance", "loss", ("loss_singles", "loss_boards")),
    ]
    boxes = [
        (f"{name}: {what}", read_series(folder / f"{name}.jsonl", *series))
        for name, what, series in stages
        if (folder / f"{name}.jsonl").exists()
    ]
    sheet = Image.new("RGB", (420 * len(boxes), 300), (255, 255, 255))
    for index, (title, series) in enumerate(boxes):
        _plot(ImageDraw.Draw(sheet), 420 * index, title, series)
    sheet.quantize(32).save(path, optimize=True)


def _plot(
    draw: ImageDraw.ImageDraw, left: int, title: str, series: dict[str, list[tuple[float, float]]]
) -> None:
    points = [point for line in series.values() for point in line]
    last = max(x for x, _ in points)
    top = sorted(y for _, y in points)[int(len(points) * 0.97)] * 1.05
    bottom = min(0.0, min(y for _, y in points)) if top < 10 else min(y for _, y in points) * 0.95
    x_of: Callable[[float], float] = lambda x: left + 50 + x / last * 350  # noqa: E731

    def y_of(y: float) -> float:
        return 260 - (min(max(y, bottom), top) - bottom) / (top - bottom) * 220

    draw.text((left + 50, 8), title, fill=INK)
    for part in range(5):
        value = bottom + (top - bottom) * part / 4
        draw.line((left + 50, y_of(value), left + 400, y_of(value)), fill=GRID)
        draw.text((left + 8, y_of(value) - 6), f"{value:.3g}", fill=INK)
        draw.text((x_of(last * part / 4) - 10, 268), f"{last * part / 4:.0f}", fill=INK)
    for number, (name, line) in enumerate(series.items()):
        draw.line([(x_of(x), y_of(y)) for x, y in line], fill=COLOURS[number], width=2)
        draw.text((left + 300, 24 + 14 * number), name, fill=COLOURS[number])
