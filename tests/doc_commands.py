"""The commands in pages of markdown: those of triptych, as words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "comfyui-triptych/*.md")
    for path in ROOT.glob(pattern)
)
SHELL = {"", "bash", "sh"}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of the fenced blocks, and of the indented ones as language `sh`."""
    fenced = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    for found in fenced.finditer(text):
        yield found[2], found[3]
    for found in re.finditer(r"(?:^    .*\n?)+", fenced.sub("", text), re.MULTILINE):
        yield "sh", found[0]


def commands(page: Path | str) -> list[list[str]]:
    """The commands of triptych in the shell blocks of a page, each as its words without `triptych`."""
    found = []
    for language, content in blocks((ROOT / page).read_text(encoding="utf-8")):
        if language in SHELL:
            for line in content.replace("\\\n", " ").splitlines():
                for part in line.split(";"):
                    if part := re.search(r"^\s*(?:\.venv/bin/)?triptych\s+(.*)", part):
                        found.append(shlex.split(part[1], comments=True))
    return found
