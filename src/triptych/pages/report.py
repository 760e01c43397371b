"""The page of `triptych report`: items, verdicts, reasons. One HTML file without scripts or anything from
outside.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light; --ink: #1d1d1f; --soft: #63636a; --line: #e1e1e5; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1120px; margin: 0 auto; padding:
2rem 1.25rem 4rem; } h1 { font-size: 1.8rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.soft { color: var(--soft); } table { border-collapse: collapse; } td, th { text-align: left; padding:
.25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line); } td.n { text-align: right;
font-variant-numeric: tabular-nums; } tr.sum td { font-weight: 600; border: 0; } .item { border: 1px solid
var(--line); border-radius: 10px; padding: .7rem .9rem; margin: .8rem 0; break-inside: avoid; } .item h3 {
font-size: 1rem; margin: 0; overflow-wrap: anywhere; } .lacks { color: #a3261b; font-weight: 600; } .fine {
color: #1a7043; } .photos { display: flex; flex-wrap: wrap; gap: .7rem; margin-top: .5rem; } figure {
margin: 0; width: 132px; font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; } figure img, .none {
width: 132px; height: 132px; object-fit: contain; background: #f3f3f5; border-radius: 6px; border-bottom:
4px solid; } .none { display: grid; place-items: center; color: var(--soft); } figcaption b { display:
block; }
"""


@dataclass(frozen=True)
class Shot:
    """A photo on the page. image: a data URL, or "". note: why it was left out, or what to look at."""

    name: str
    verdict: str
    colour: str
    note: str = ""
    image: str = ""


@dataclass(frozen=True)
class Entry:
    """An item. lacks: the views that are missing, or why it gives no triptych; "" if nothing is."""

    name: str
    lacks: str
    triptychs: int
    shots: Sequence[Shot]


def report_page(
    title: str,
    verdicts: dict[str, int],
    reasons: dict[str, int],
    items: dict[str, int],
    entries: Sequence[Entry],
) -> str:
    """The page. verdicts and items are tables whose numbers add up to a sum that stands below them; reasons
    add up to the rejected photos.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += ["<h2>Photos</h2>", _table(verdicts, "photos in all")]
    if reasons:
        parts += ["<h2>Why photos were left out</h2>", _table(reasons, "rejected in all")]
    parts += ["<h2>Items</h2>", _table(items, "items in all")]
    for name, some in (
        ("To look at", [one for one in entries if one.lacks or _noted(one)]),
        ("Complete", [one for one in entries if not (one.lacks or _noted(one))]),
    ):
        if some:
            parts += [f"<h2>{name} <span class=soft>{len(some)}</span></h2>", *map(_entry, some)]
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f"{head}<body>" + "\n".join(parts) + "</body></html>\n"


def _noted(entry: Entry) -> bool:
    return any(shot.note for shot in entry.shots)


def _table(rows: dict[str, int], total: str) -> str:
    lines = "".join(f"<tr><td>{html.escape(name)}<td class=n>{count}" for name, count in rows.items())
    return f"<table>{lines}<tr class=sum><td>{total}<td class=n>{sum(rows.values())}</table>"


def _entry(entry: Entry) -> str:
    made = f"{entry.triptychs} triptych{'s' * (entry.triptychs != 1)}"
    said = (
        f"<span class=lacks>{html.escape(entry.lacks)}</span>"
        if entry.lacks
        else "<span class=fine>complete</span>"
    )
    shots = "".join(map(_shot, entry.shots))
    return (
        f"<section class=item><h3>{html.escape(entry.name)}</h3>{said} <span class=soft>· {made}</span>"
        f"<div class=photos>{shots}</div></section>"
    )


def _shot(shot: Shot) -> str:
    name = html.escape(shot.name)
    style = f'style="border-color:{shot.colour}"'
    picture = (
        f'<img alt="{name}" {style} src="{shot.image}">'
        if shot.image
        else f"<div class=none {style}>no picture</div>"
    )
    note = f"<br>{html.escape(shot.note)}" if shot.note else ""
    said = f"<b>{html.escape(shot.verdict)}</b><span class=soft>{name}</span>{note}"
    return f"<figure>{picture}<figcaption>{said}</figcaption></figure>"
