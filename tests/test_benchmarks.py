"""The benchmarks run: each once, on a model so small that its times mean nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_training_step_beside_diffusers_script(tmp_path: Path) -> None:
    table = run("train.py", "--quick", "--rounds", "1", "--out", str(tmp_path / "train.json"))
    results = json.loads((tmp_path / "train.json").read_text())
    assert table.count("\n| ") >= 6 and "| noisy |" in table
    assert results["loss_difference"] < 1e-5, "both minimise the same loss"
    rows = results["rows"]
    assert (
        rows["clean, whole panel"]["gflop"]
        < rows["noisy"]["gflop"]
        == pytest.approx(rows["script, latents cached"]["gflop"], rel=1e-6)
    )
    assert rows["clean, 35 %, 4 noise levels"]["gflop"] < 4 * rows["clean, 35 % of it"]["gflop"]


def test_try_on_beside_diffusers_pipeline(tmp_path: Path) -> None:
    table = run("tryon.py", "--quick", "--rounds", "1", "--only", "8", "--out", str(tmp_path / "tryon.json"))
    results = json.loads((tmp_path / "tryon.json").read_text())
    runs = results["runs"]
    assert {row["name"] for row in runs} >= {
        "exact",
        "clean context, whole panel",
        "clean context, 36 % of the panel",
    }
    assert results["difference"] <= 1, "of 255: it paints what the pipeline paints"
    assert "| 8 | exact |" in table and "× same kernels" in table and "× stock" in table
    assert all(min(run["stock_s"], run["kernels_s"], run["ours_s"]) > 0 for run in runs)
    assert results["about"]["processor"] in table


def test_try_on_beside_flux2s_pipeline(tmp_path: Path) -> None:
    out = tmp_path / "tryon.json"
    table = run(
        "tryon.py",
        "--family",
        "flux2",
        "--quick",
        "--rounds",
        "1",
        "--only",
        "4",
        "scaling",
        "--out",
        str(out),
    )
    results = json.loads(out.read_text())
    assert {row["name"] for row in results["runs"]} == {
        "read once, whole panel",
        "read once, 35 % of it",
        "native references: equal work",
        "8 persons, one product kept, whole panel",
        "8 persons, one product kept, 35 % of it",
    }
    assert results["difference"] <= 1, "of 255: native references paint what the pipeline paints"
    assert [row["active"] for row in results["scaling"][:5]] == sorted(
        row["active"] for row in results["scaling"][:5]
    )
    assert "| 4 | read once, whole panel |" in table and "for each active token" in table


def test_seconds_on_a_line_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    line = importlib.import_module("tryon_parts").line
    fit = line([10, 20, 40], [0.3, 0.5, 0.9])
    assert fit == {
        "start_s": pytest.approx(0.1),
        "per_token_s": pytest.approx(0.02),
        "off": pytest.approx(0, abs=1e-9),
    }
    assert line([10, 20, 30], [0.2, 0.4, 0.2])["off"] > 0.3


def test_the_pockets_table(tmp_path: Path) -> None:
    """Its help alone: training and measuring LoRAs takes hours."""
    assert "--only" in run("pocket.py", "--help")


def test_loss_masks_show_the_print_and_little_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module("pocket").write_triptychs(tmp_path, 4, printed=0.5)
    masks = sorted((tmp_path / "masks").iterdir())
    assert [mask.name for mask in masks] == ["item-000.png", "item-001.png"]
    for mask in masks:
        white = np.asarray(Image.open(mask)) > 0
        assert not white[:, :96].any() and 0.02 < white[:, 96:].mean() < 0.35


def test_a_soak_of_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    words = ["--seconds", "12", "--clients", "16", "--warm-up", "4", "--out", str(tmp_path / "soak.json")]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "soak.py"), *words], capture_output=True, text=True
    )
    print(done.stdout)  # its exit code is 1 too if the memory grows, which seconds do not tell
    results = json.loads((tmp_path / "soak.json").read_text())
    bad = ("lost", "doubled", "failed", "cancelled_by_nobody")
    assert {name: results[name] for name in bad} == dict.fromkeys(bad, 0) and results["faults"] == []
    assert results["jobs"]["done"] >= 1 and results["seconds_of"]["post"]["number"] >= 16
