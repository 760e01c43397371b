"""The demo's report: one self-contained HTML file without scripts or external resources."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.data.captions import read_caption
from triptych.data.triptychs import TriptychFolder, caption_file
from triptych.errors import InputError
from triptych.store.files import read_jsonl, write_text

STYLE = """
:root { color-scheme: light; --ink: #1d1d1f; --soft: #6e6e73; --line: #e3e3e6; --good: #1a7f4b; --bad:
#b3261e; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 1080px; margin: 0 auto; padding:
2rem 1.25rem 5rem; }
h1 { font-size: 2rem; margin: 0 0 .25rem; } h2 { margin: 3rem 0 .5rem; font-size: 1.3rem; } p { max-width:
46rem; }
.soft { color: var(--soft); } .figures { display: flex; gap: 2.5rem; flex-wrap: wrap; margin: 1.5rem 0; }
.figure b { display: block; font-size: 1.9rem; line-height: 1.1; } img { max-width: 100%; display: block;
image-rendering: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; } .card img { width: 100%; }
.card p { margin: .6rem .8rem .8rem; font-size: .85rem; } table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .5rem; text-align: center; font-size: .85rem; } th { font-weight: 600; border-bottom:
1px solid var(--line); }
td img { width: 118px; border-radius: 6px; } .wide td img { width: 190px; } .yes { color: var(--good); } .no
{ color: var(--bad); }
.bar { background: #eceef0; border-radius: 6px; height: 14px; width: 320px; }
.bar i { display: block; height: 100%; border-radius: 6px; background: #3b6ea8; }
"""


SUBJECTS = {
    "base": "base",
    "lora": "LoRA",
    "guided": "LoRA, photo-guided",
    "references": "klein, untrained",
}
"""The models that are judged on unseen garments."""
DRESSED = {"base": "base", "lora": "LoRA", "references": "klein, untrained"}
"""The models that dress people."""


@dataclass(frozen=True)
class DemoPictures:
    """Pictures of the report beside the files in the demo's folder.

    compared: front, back, the worn panel of each of `SUBJECTS`, and the true worn panel. verdicts: for each
    subject, whether colour and pattern are right. tryons: paths of the input files by name (front, back,
    person), for the try-on pictures `<number>-<name>.png` of `DRESSED`.
    """

    compared: Sequence[tuple[Image.Image, ...]]
    verdicts: Sequence[Sequence[tuple[bool, bool]]]
    tryons: list[dict[str, Path]]


def write_report(out: Path, summary: dict[str, Any], pictures: DemoPictures) -> None:
    """Write `out/report.html`."""
    match, pattern, seconds = summary["garment_match"], summary["pattern_match"], summary["seconds"]
    parts = [
        "<h1>triptych demo</h1>",
        "<p class=soft>A rendered shop, from raw photos to a try-on LoRA, on the embedded pocket model: a "
        "small FLUX-architecture model "
        "made for demonstration. It draws simple clothes and people, never photographs; the same commands "
        "run FLUX.1-dev with "
        "<code>--model</code>.</p>",
        _figures(
            {
                "photos in": summary["photos"],
                "triptychs": summary["triptychs"],
                "training steps": summary["train_steps"],
                "seconds in all": round(seconds["total"]),
                "colour carried over: base → LoRA, photo-guided": (
                    f"{match['base']:.0%} → {match['guided']:.0%}"
                ),
            }
        ),
        "<h2>1 · Raw photos, sorted</h2>",
        f"<p>{_clean_words(summary['clean'])}</p>",
        _image(_cropped(out / "catalogue" / "contact_sheet.png"), 1000),
        "<h2>2 · Triptychs and their captions</h2>",
        "<p>Front, back and worn side by side in one picture; the caption describes all three.</p>",
        _triptychs(out / "triptychs"),
        "<h2>3 · Training the LoRA</h2>",
        _curve([(row["step"], row["loss"]) for row in read_jsonl(out / "lora" / "train.jsonl")]),
        "<h2>4 · Base, LoRA, and a base that reads references, on garments that none has seen</h2>",
        "<p>The two product photos are given, the prompt is silent about colour and pattern, all have the "
        "same seeds. Base and LoRA are "
        "sampled with the same guidance on the words; the third column is the LoRA as <code>triptych "
        "generate</code> samples it, guided by the product photos. The fourth is another base without a "
        "LoRA (<code>--model pocket-klein</code>): a small FLUX.2-klein, which has learned to edit with "
        "reference pictures, and here its references are the product photos. "
        f"Shares of {summary['garments']} garments, judged by a classifier of the rendered world.</p>",
        "".join(
            _bar(f"{SUBJECTS[name]}: colour", match[name]) + _bar(f"{SUBJECTS[name]}: pattern", pattern[name])
            for name in SUBJECTS
        ),
        _compared(pictures),
        "<h2>5 · Try-on: this person, that garment</h2>",
        "<p>Nobody drew the outline: <code>--mask auto</code> proposed it for the kind of garment that the "
        "prompt names, with the embedded human parser. Only its inside is regenerated, from the noised "
        "photo; every pixel outside its soft edge is the photo's own.</p>",
        _tryons(out, pictures),
        "<h2>6 · A model wearing the garment</h2>",
        "<p><code>triptych generate</code> with two product photos and the LoRA: the worn panel is new.</p>",
        _generated(out / "generated"),
        "<h2>Where the time went</h2>",
        "<table><tr>" + "".join(f"<th>{html.escape(k)}</th>" for k in seconds) + "</tr><tr>",
        "".join(f"<td>{v:.0f} s</td>" for v in seconds.values()) + "</tr></table>",
    ]
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
        "content='width=device-width'><title>triptych demo</title>"
    )
    write_text(
        out / "report.html", f"{head}<style>{STYLE}</style><body>" + "\n".join(parts) + "</body></html>\n"
    )


def _figures(values: dict[str, Any]) -> str:
    cells = "".join(
        f"<div class=figure><b>{html.escape(str(v))}</b><span class=soft>{html.escape(k)}</span></div>"
        for k, v in values.items()
    )
    return f"<div class=figures>{cells}</div>"


def _clean_words(counts: dict[str, Any]) -> str:
    named = {
        key: counts[key]
        for key in ("human", "garment", "unsure", "rejected")
        if isinstance(counts.get(key), int)
    }
    listed = ", ".join(f"{value} {key}" for key, value in named.items())
    return html.escape(
        f"{counts['photos']} photos: {listed}. Spoilt files and duplicates are rejected with a reason; "
        "nothing is deleted."
    )


def _data(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _image(image: Image.Image, width: int, alt: str = "") -> str:
    return f'<img src="{_data(image)}" width={width} alt="{html.escape(alt)}">'


def _larger(image: Image.Image, width: int) -> Image.Image:
    """Enlarge small panels smoothly, so that they look the same in every browser."""
    return (
        image
        if image.width >= width
        else image.resize((width, round(image.height * width / image.width)), Image.Resampling.BICUBIC)
    )


def _cropped(sheet: Path, height: int = 620) -> Image.Image:
    with Image.open(sheet) as image:
        return image.convert("RGB").crop((0, 0, image.width, min(image.height, height)))


def _triptychs(folder: Path, count: int = 6) -> str:
    paths = [path for path in TriptychFolder(folder).pictures() if caption_file(path).is_file()]
    random.Random(0).shuffle(paths)
    cards = []
    for path in paths[:count]:
        with Image.open(path) as image:
            try:
                text = html.escape(read_caption(caption_file(path)))
            except InputError as error:
                text = html.escape(str(error))
            cards.append(f"<div class=card>{_image(_larger(image, 480), 480, path.stem)}<p>{text}</p></div>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _curve(points: list[tuple[int, float]], width: int = 900, height: int = 240) -> str:
    """Loss per step, faint, and its moving average, as inline SVG."""
    if len(points) < 2:
        return ""
    reach = max(2, len(points) // 20)
    losses = [loss for _, loss in points]
    smooth = [
        sum(window) / len(window)
        for n in range(len(losses))
        if (window := losses[max(0, n - reach) : n + reach + 1])
    ]
    low, high, last = min(losses) * 0.9, max(smooth) * 1.25, points[-1][0]

    def path(values: list[float]) -> str:
        xy = [
            (
                44 + (width - 54) * step / last,
                height - 24 - (height - 34) * (min(v, high) - low) / (high - low),
            )
            for (step, _), v in zip(points, values, strict=True)
        ]
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy)

    def tick(value: float) -> str:
        y = height - 24 - (height - 34) * (value - low) / (high - low)
        return (
            f'<text x=0 y={y + 4:.0f} font-size=11 fill=#6e6e73>{value:.2f}</text><path d="M40 '
            f'{y:.1f}H{width}" stroke=#ececef />'
        )

    return (
        f"<svg viewBox='0 0 {width} {height}' width={width} role=img aria-label='training loss'>"
        + "".join(tick(low + (high - low) * part) for part in (0.05, 0.35, 0.65, 0.95))
        + f'<path d="{path(losses)}" fill=none stroke=#c9d6e4 /><path d="{path(smooth)}" fill=none '
        "stroke=#3b6ea8 stroke-width=2 />"
        + f"<text x={width - 70} y={height - 6} font-size=11 fill=#6e6e73>step {last}</text></svg>"
        + "<p class=soft>Loss (mean squared error of the velocity), "
        + f"mean over the first steps {smooth[0]:.3f}, over the last {smooth[-1]:.3f}.</p>"
    )


def _bar(name: str, share: float) -> str:
    return (
        f"<p style='margin:.3rem 0'>{name}: {share:.0%}</p><div class=bar><i "
        f"style='width:{share:.0%}'></i></div>"
    )


def _compared(pictures: DemoPictures) -> str:
    names = ["front (given)", "back (given)", *SUBJECTS.values(), "the truth"]
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    rows = []
    for images, verdict in zip(pictures.compared, pictures.verdicts, strict=True):
        marks = ["", "", *(_mark("colour", colour) + _mark("pattern", look) for colour, look in verdict), ""]
        cells = zip(images, marks, strict=True)
        rows.append(
            "<tr>"
            + "".join(f"<td>{_image(_larger(image, 144), 118)}{mark}</td>" for image, mark in cells)
            + "</tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _mark(name: str, right: bool) -> str:
    return f"<span class=yes>✓ {name}</span> " if right else f"<span class=no>✗ {name}</span> "


def _tryons(out: Path, pictures: DemoPictures) -> str:
    names = ["garment", "before, outlined", *(f"after: {name}" for name in DRESSED.values())]
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    rows = []
    for number, paths in enumerate(pictures.tryons):
        files = [
            paths["front"],
            out / "tryon" / f"{number}-lora-mask.png",
            *(out / "tryon" / f"{number}-{name}.png" for name in DRESSED),
        ]
        cells = []
        for file in files:
            with Image.open(file) as image:
                cells.append(f"<td>{_image(image, 190, file.stem)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table class=wide>{head}{''.join(rows)}</table>"


def _generated(folder: Path) -> str:
    cards = []
    for path in sorted(folder.glob("*/*.png")):
        with Image.open(path) as image:
            cards.append(f"<div class=card>{_image(_larger(image, 480), 480, path.stem)}</div>")
    return f"<div class=cards>{''.join(cards)}</div>"
