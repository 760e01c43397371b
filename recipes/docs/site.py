"""Builds the site, without a network: the pages of the repository and the reference, by zensical.

    python -m recipes.docs.site            # into build/site

Pages are copied into one folder; links between them, and to pictures, follow. A link to another file of the
repository becomes plain words. The build fails at a link or an anchor that is not there, and at anything that
a browser would fetch from another host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from recipes.docs import errors, reference

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "mkdocs.yml"
HOMES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "comfyui-triptych/README.md": "comfyui.md",
}
"""File of the repository → page; those of `docs` and `examples` keep their names."""
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".svg", ".gif"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^\s*(```|~~~)")
LOADS = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src", "video": "src"}
"""Tag → the attribute by which a browser fetches something; a `link` only with a word of `FETCHED`."""
FETCHED = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest", "modulepreload"}
OWN = {"brand", "image", "panel", "scene"}
"""Words that stand in angle brackets in captions: as tags they would not be seen."""


def sources() -> dict[Path, Path]:
    """File of the repository → its place among the pages, for all pages."""
    found = {Path(name): Path(page) for name, page in HOMES.items()}
    found |= {Path("docs", path.name): Path(path.name) for path in (ROOT / "docs").glob("*.md")}
    examples = {path.relative_to(ROOT) for path in (ROOT / "examples").glob("*/README.md")}
    found |= {path: Path("examples", f"{path.parent.name}.md") for path in examples}
    return found | {Path("examples/README.md"): Path("examples/index.md")}


def gather(folder: Path) -> None:
    """Write every page, with the pictures in it, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = sources()
    for source, page in pages.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(_linked(text, source, pages, folder), encoding="utf-8")
    reference.write(folder / "reference")


def _linked(text: str, source: Path, pages: dict[Path, Path], folder: Path) -> str:
    """The text of a page with links that hold in the folder of pages; `folder` gets its pictures."""

    def follow(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        parts = urlsplit(target)
        if parts.scheme or not parts.path:
            return found[0]
        linked = Path(os.path.normpath(source.parent / unquote(parts.path)))
        if not (ROOT / linked).exists():
            raise SystemExit(f"{source}: there is no {linked}")
        if linked in pages:
            new = pages[linked]
        elif linked.suffix in PICTURES:
            new = linked.relative_to("docs") if linked.parts[0] == "docs" else linked
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / linked, folder / new)
        else:
            return words
        path = os.path.relpath(new, pages[source].parent)
        return f"{mark}[{words}]({path}{'#' + parts.fragment if parts.fragment else ''})"

    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= bool(_FENCE.match(line))
        if not fenced:
            line = _LINK.sub(follow, line)
            if line.startswith("|"):  # GitHub wants a bar in code escaped, MkDocs shows the backslash
                line = re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), line)
        lines.append(line)
    return "\n".join(lines)


def build(out: Path = ROOT / "build") -> Path:
    """Gather the pages in OUT/pages and build OUT/site; return that folder.

    Raises:
        SystemExit: a link, an anchor or a picture that is not there, or something from another host.
    """
    out.mkdir(parents=True, exist_ok=True)
    gather(out / "pages")
    settings = CONFIG.read_text(encoding="utf-8").replace("build/", "")
    (out / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", "mkdocs.yml"]
    done = subprocess.run(
        command, cwd=out, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr[-2000:])
    if wrong := list(problems(out / "site")):
        raise SystemExit("\n".join(wrong))
    return out / "site"


class _Page(HTMLParser):
    """What a page refers to and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.lost: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, ids and what is loaded."""
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag in OWN:
            self.lost.add(tag)
        loaded = given.get(LOADS.get(tag, ""), "")
        if loaded and (tag != "link" or FETCHED & set(given.get("rel", "").split())):
            self.loads.append(loaded)
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])


def problems(site: Path) -> Iterator[str]:
    """What is wrong with a built site, a sentence each: links, anchors and files that are not there, what
    comes from another host, and words in angle brackets that a browser would take for tags.
    """
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name}: <{tag}> is no tag" for tag in sorted(page.lost))
        for target in page.loads:
            if urlsplit(target).netloc:
                yield f"{name}: {target} is fetched from another host"
        for target in (*page.loads, *page.links):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or name.name == "404.html":
                continue
            linked = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if linked.is_dir():
                linked = linked / "index.html"
            if not linked.exists():
                yield f"{name}: there is no {target}"
            elif parts.fragment and linked in pages and unquote(parts.fragment) not in pages[linked].ids:
                yield f"{name}: there is no anchor {target}"
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(\s*['\"]?([^'\")]+)", path.read_text(encoding="utf-8")):
            if urlsplit(target).netloc:
                yield f"{path.relative_to(site)}: {target} is fetched from another host"


if __name__ == "__main__":
    errors.PAGE.write_text(errors.page(), encoding="utf-8")
    print(build())
