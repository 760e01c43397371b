"""The demo in small: every stage on the pocket model, from nothing to a report that stands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from triptych.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    words = [
        "demo",
        "--out",
        str(out),
        "--items",
        "8",
        "--max-train-steps",
        "3",
        "--garments",
        "24",
        "--json",
    ]
    assert main(words) == 0
    return out


def test_summary_says_what_was_done(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["train_steps"] == 3
    assert summary["triptychs"] >= 4
    assert summary["photos"] > summary["triptychs"] * 3
    assert set(summary["garment_match"]) == {"base", "lora", "guided", "references"}
    assert all(0 <= share <= 1 for share in summary["garment_match"].values())
    assert summary["clean"]["rejected"] > 0, "the spoilt files were found"
    assert {"clean", "concat", "caption", "embed", "train", "evaluate", "total"} <= set(summary["seconds"])


def test_report_is_self_contained(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:|/|file:)", page)
    assert page.count("data:image/png;base64,") > 30
    for words in (
        "Raw photos",
        "Triptychs and their captions",
        "Training the LoRA",
        "a base that reads references",
        "Try-on",
    ):
        assert words in page


def test_every_stage_left_its_folder(folder: Path) -> None:
    for name in (
        "catalogue/photos.jsonl",
        "lora/pytorch_lora_weights.safetensors",
        "lora/train.jsonl",
        "triptychs/metadata.jsonl",
    ):
        assert (folder / name).is_file()
    assert list((folder / "embeddings" / "flux").glob("*.safetensors"))
    for name in ("base", "lora", "references"):
        assert len(list((folder / "tryon").glob(f"*-{name}.png"))) == 3
    assert len(list((folder / "generated").glob("*/*.png"))) == 3
