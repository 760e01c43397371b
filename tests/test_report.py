"""report: a page whose counts add up, with a reason for every photo that was left out, and nothing from
outside.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from PIL import Image

from triptych.verbs.report import ReportConfig, report


def test_counts_add_up_and_every_reason_is_said(tmp_path: Path) -> None:
    catalogue = tmp_path / "work/catalogue"
    catalogue.mkdir(parents=True)
    rows = []

    def add(item: str, name: str, label: str, reason: str = "", flags: str = "") -> None:
        path = tmp_path / "photos" / item / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 400), (10 * len(rows), 80, 90)).save(path)
        rows.append({"item": item, "path": str(path), "sha256": f"{len(rows):064x}", "label": label})
        rows[-1] |= {"reason": reason, "flags": flags}

    add("whole", "front.png", "garment")
    add("whole", "back.png", "garment")
    add("whole", "worn.png", "human")
    add("lone", "IMG_1.png", "garment")
    add("lone", "IMG_2.png", "rejected", "blurred: sharpness 0.21")
    add("<b>odd", "IMG_3.png", "human", "", "small: 90×120 px")
    add("<b>odd", "IMG_4.png", "rejected", "smaller copy of IMG_3.png")
    (catalogue / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = report(ReportConfig(work=tmp_path / "work")).finish()
    assert (summary["items"], summary["complete"], summary["incomplete"]) == (3, 1, 2)
    assert (summary["photos"], summary["rejected"], summary["flagged"]) == (7, 2, 1)
    page = (catalogue / "report.html").read_text(encoding="utf-8")
    for words in (
        "blurred: sharpness 0.21",
        "smaller copy of IMG_3.png",
        "small: 90×120 px",
        "no photo of the garment alone",
        "only one photo of the garment, no back; no photo of a person wearing it",
        "front: by its name",
        "&lt;b&gt;odd",
    ):
        assert words in page, words
    tables = re.findall(r"<table>(.*?)</table>", page)
    assert len(tables) == 3
    for table, total in zip(tables, (7, 2, 3), strict=True):
        *counts, last = [int(number) for number in re.findall(r"class=n>(\d+)", table)]
        assert sum(counts) == last == total
    assert page.count("<figure>") == 7 and page.count("data:image/jpeg;base64,") == 7
    assert (
        not re.search(r"(src|href)=[\"']?(?!data:)\w", page) and "<script" not in page and "url(" not in page
    )
    report(ReportConfig(work=tmp_path / "work", thumbnails=2)).finish()
    assert (catalogue / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 2
