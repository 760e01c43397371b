"""index.html of a batch of try-ons: every result beside its product, on one page without scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from triptych.errors import InputError
from triptych.pictures.images import load_image

THUMB = 240  # pixels

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>try-on</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
body{font:15px/1.4 system-ui,sans-serif;margin:2em;max-width:80em}section{border-top:1px solid
#ccc;padding:1em 0}
div{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-end}
figure{margin:0;max-width:15em}img{max-width:100%;display:block}
figcaption{overflow-wrap:anywhere}.failed{color:#a00;border:1px solid #a00;padding:.5em}</style>
"""


@dataclass(frozen=True)
class Shown:
    """One result: its name, and its picture or the reason why there is none."""

    name: str
    picture: Path | None
    reason: str = ""


def tryon_page(counts: str, products: Sequence[tuple[Path | None, Sequence[Shown]]]) -> str:
    """The page. counts: a summary in words. products: the front photo of each, with its results."""
    parts = [HEAD, f"<h1>Try-on</h1><p>{counts}</p>"]
    for front, results in products:
        parts.append("<section><div>")
        if front:
            parts.append(_figure(front, f"product: {front.name}"))
        for one in results:
            if one.picture is None:
                parts.append(
                    '<figure class="failed"><figcaption>'
                    f"{html.escape(f'{one.name} failed: {one.reason}')}</figcaption></figure>"
                )
            else:
                parts.append(_figure(one.picture, one.name, one.picture.name))
        parts.append("</div></section>")
    return "".join(parts) + "</html>\n"


def _figure(path: Path, words: str, link: str = "") -> str:
    caption = f"<figcaption>{html.escape(words)}</figcaption>"
    try:
        small = load_image(path, longest=THUMB)
    except InputError:
        return f"<figure>{caption}</figure>"
    picture = f'<img alt="{html.escape(words)}" src="data:image/jpeg;base64,{_jpeg(small)}">'
    picture = f'<a href="{quote(link)}">{picture}</a>' if link else picture
    return f"<figure>{picture}{caption}</figure>"


def _jpeg(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return base64.b64encode(data.getvalue()).decode()
