"""The measure of outfits: the judge sees each garment, and what a run leaves alone."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.data.triptychs import TriptychFolder
from triptych.evaluation.outfits import GARMENTS, alone, held_out_outfits, outfit_verdicts, shares
from triptych.lora.file import read_header
from triptych.pictures.panels import PanelLayout
from triptych.pocket.world import OTHER_CLOTHES
from triptych.store.files import read_jsonl
from triptych.tasks.outfit import OUTFIT

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_true_outfits_pass_and_others_do_not() -> None:
    items = held_out_outfits(60, seed=1)
    truth = shares(outfit_verdicts([item.truth.image for item in items], items))
    assert all(
        truth[f"{role} {name}"]["share"] >= 0.93 for role in GARMENTS for name in ("colour", "pattern")
    )
    assert truth["outfit"]["share"] >= 0.88
    before = outfit_verdicts([item.before.image for item in items], items)
    assert sum(before["top colour"]) <= 2 and sum(before["bottom colour"]) <= 2
    assert not any(before["outfit"])


def test_each_piece_is_judged_for_itself() -> None:
    items = held_out_outfits(24, seed=2, bags=True)
    assert all(item.outfit.bag != item.other().bag for item in items)
    halves = []
    for item in items:
        half = item.before.image.copy()
        half.paste(item.truth.image, (0, 0), item.truth.masks["bottom"])
        halves.append(half)
    found = outfit_verdicts(halves, items)
    assert sum(found["bottom both"]) >= 20 and sum(found["top colour"]) <= 2
    assert not any(found["bag"])
    assert all(outfit_verdicts([item.truth.image for item in items], items)["bag"])


def test_the_judge_sees_nothing_of_the_truth_beside_the_picture() -> None:
    """The person whom it is shown is drawn with the true garment; none of that may be left."""
    (item,) = held_out_outfits(1, seed=3)
    for role in GARMENTS:
        grey = item.truth.image.copy()
        grey.paste((128, 128, 128), (0, 0, *grey.size))
        shown = np.asarray(alone(grey, item, role, "grey")).astype(int)
        mask = np.asarray(item.worn(item.outfit, 1).masks[role])
        assert (shown[mask > 0] - 128 >= -8).all() and (np.ptp(shown[mask > 127], axis=1) == 0).all()
        other = np.abs(shown - OTHER_CLOTHES["grey"]).max(2) < 9
        assert other[mask > 0].mean() > 0.95


def test_a_lora_of_the_task_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the table, with a LoRA that has learned for one step, on two outfits each."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pocket = importlib.import_module("pocket")
    rows = [row for row in pocket.rows() if row["group"].startswith("outfits")]
    assert {row["mode"] for row in rows} == {"outfit", "outfit in a row"}
    lora = next(row["lora"] for row in rows if row["lora"].get("task") == "outfit")
    lora |= {"triptychs": 4, "max_train_steps": 1, "batch_size": 1}
    folder = pocket.trained(tmp_path, "pocket-klein", **lora)
    assert read_header(folder).about["layout"]["roles"] == ["top", "bottom", "bag", "worn"]
    data = TriptychFolder(tmp_path / "outfits-4/triptychs")
    assert data.sources(8)[1] == []
    layouts = [PanelLayout.from_dict(row["layout"]) for row in read_jsonl(data.path / "metadata.jsonl")]
    bags = [("top", "bottom", "worn"), ("top", "bottom", "bag", "worn")] * 2
    assert [layout.roles for layout in layouts] == bags
    assert all(OUTFIT.fits(layout) for layout in layouts)
    results = {}
    for row in rows[1:3]:  # in a row, and untrained in one run
        made = row | {"n": 2, "key": row["mode"], "lora": {}}
        results[row["mode"]] = made | pocket.measured(tmp_path, "pocket-klein", made, {})
    bag = {"n": 2, "key": "bag", "lora": lora, "mode": "outfit", "group": "", "sampling": {"bags": True}}
    bag["sampling"] |= {"guidance": "context"}
    results["bag"] = bag | pocket.measured(tmp_path, "pocket-klein", bag, {})
    assert all(row["result"]["outside"] == 0 for row in results.values()), "beyond polygons nothing moves"
    assert results["bag"]["ceiling"]["drawn"]["bag"]["share"] == 1
    assert results["outfit in a row"]["result"]["picture_seconds"] > 0
    table = pocket.pocket_tables.outfits_table(results)
    assert table.count("\n| ") == 3 + 4 and "| untrained | outfit in a row | 2 |" in table
    assert Image.open(tmp_path / "evaluations/bag/outfits.png").size == (6 * 96, 2 * 144)
