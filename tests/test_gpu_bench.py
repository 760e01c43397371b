"""The benchmark for a card: every part runs, on the CPU; figures outlive an interruption; the list of
wheels is complete."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from statistics import median

import pytest
import torch
from packaging.requirements import Requirement

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_wheels  # noqa: E402
from gpu_parts import PARTS, klein, model  # noqa: E402
from gpu_parts.bench import Bench, Part, Skip, Variant  # noqa: E402
from gpu_parts.plans import question  # noqa: E402
from gpu_parts.profiled import union  # noqa: E402
from triptych.sampling.options import Sampling  # noqa: E402


def test_every_part_runs(tmp_path: Path) -> None:
    """Within two minutes, counted in time of the processor: other programs may be busy."""
    begun = os.times()
    status = gpu.main(
        ["--tiny", "--budget", "3000", "--out", str(tmp_path / "out"), "--wheels", str(tmp_path)]
    )
    spent = sum(os.times()[:4]) - sum(begun[:4])
    assert spent < 120 * torch.get_num_threads()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: part["state"] for name, part in results["parts"].items()} == dict.fromkeys(PARTS, "done")
    assert status == 0
    rows = {
        (part, name): row for part, about in results["parts"].items() for name, row in about["rows"].items()
    }
    assert sum(row.get("equal") is True for row in rows.values()) >= 14
    assert 0 < rows["equality", "inpainting, float32"]["apart"] < 1e-5
    assert rows["pocket", "a training that stopped and went on"]["apart"] == 0, (
        "on the CPU it repeats bit for bit"
    )
    timed = rows["sampling", "clean, 36 %"]
    assert timed["s"] > 0 and timed["× pipeline"] > 0 and len(timed["all_ratios"]) == timed["times"]
    nf4, full = (rows["quantised", name]["planned weights_gib"] for name in ("nf4", "none"))
    assert nf4 < full / 2
    assert rows["quantised", "nf4"]["planned train_gib"] > 0
    page = (tmp_path / "out" / "results.md").read_text()
    assert page.count("\n### ") == len(PARTS) and "| clean, 36 % |" in page


def test_without_time_all_say_so(tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--budget", "0", "--out", str(tmp_path), "--wheels", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {part["state"] for part in results["parts"].values()} == {"skipped: the budget is spent"}


def test_a_part_that_cannot_be_loaded_failed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path, torch.device("cpu"), tiny=True, end=time.monotonic() + 60)
    bench.run(Part("absent", 30.0, "no_such_module:measure"))
    state = bench.results["parts"]["absent"]["state"]
    assert state.startswith("failed: RuntimeError: cannot be loaded: No module named")
    assert bench.failures == ["absent"]


def broken(bench: Bench) -> None:
    """Rows that go wrong in different ways."""

    def skip() -> dict[str, float]:
        raise Skip("there is no such thing")

    bench.row("good", lambda: {"s": 1.5})
    bench.row("missing", skip)
    bench.row("unequal", lambda: {"equal": False})
    bench.row("wrong", lambda: {"s": 1 / 0})
    bench.compare(
        "base",
        {"base": Variant(lambda: time.sleep(0.01)), "slower": Variant(lambda: time.sleep(0.02), units=4)},
        2,
    )
    bench.row("endless", lambda: time.sleep(60) or {})
    bench.row("never", lambda: {"s": 0.0})


def test_a_part_cannot_take_all_the_time_nor_all_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Part, "load", lambda self: broken)
    bench = Bench(tmp_path, tmp_path, torch.device("cpu"), tiny=True, end=time.monotonic() + 60)
    begun = time.monotonic()
    bench.run(Part("broken", 1.5, ""))
    assert time.monotonic() - begun < 10
    part = json.loads((tmp_path / "results.json").read_text())["parts"]["broken"]
    rows = part["rows"]
    assert part["state"] == "out of time" and "never" not in rows
    assert rows["good"] == {"s": 1.5}
    assert rows["missing"]["state"] == "skipped: there is no such thing"
    assert rows["wrong"]["state"].startswith("failed: ZeroDivisionError")
    assert bench.failures == ["broken, unequal", "broken, wrong"]
    base, slower = rows["base"], rows["slower"]
    assert base["times"] == slower["times"] == 2 and min(base["all_s"]) >= 0.01
    assert slower["s"] == median(slower["all_s"]) and 0.005 <= min(slower["all_s"]) < 0.02, "per unit"
    pairs = zip(base["all_s"], slower["all_s"], strict=True)
    assert slower["× base"] == pytest.approx(median(a / b for a, b in pairs)), "of the same round"


def test_variants_share_a_run_of_what_they_are_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, order = Bench(tmp_path, tmp_path, torch.device("cpu"), tiny=True, end=time.monotonic() + 60), []

    def measured(bench: Bench) -> None:
        variants = {name: Variant(lambda name=name: order.append(name)) for name in ("base", "a", "b", "c")}
        bench.compare("base", variants, 2, sharing=2)

    monkeypatch.setattr(Part, "load", lambda self: measured)
    bench.run(Part("shared", 30.0, ""))
    assert order[4:] == ["base", "a", "b", "base", "c"] * 2, "after one run of each that is not timed"
    rows = bench.results["parts"]["shared"]["rows"]
    assert [len(row["all_s"]) for row in rows.values()] == [4, 2, 2, 2]
    assert rows["c"]["all_ratios"] == [rows["base"]["all_s"][n] / rows["c"]["all_s"][n // 2] for n in (1, 3)]


def test_plans_are_put_beside_figures_later(tmp_path: Path) -> None:
    """As after a run with --no-plans: on any machine, and what fails spoils no other row."""
    card, layout = torch.device("cuda"), {"context": "clean"}
    flux = model.Random(tmp_path, model.TINY, card, torch.bfloat16)
    flux2 = klein.Klein(tmp_path, klein.TINY, card, torch.bfloat16)
    rows = {
        "flux": {"s": 1.0, "plans": {"planned_gib": question(flux, "training", **layout)}},
        "klein": {"s": 1.0, "plans": {"planned_gib": question(flux2, "sampling", Sampling(4, None))}},
        "quantised": {"plans": {"planned_gib": question(flux, "weights", quantize="nf4")}},
        "whole": {"plans": {"planned_gib": question(flux, "weights")}},
        "wrong": {"s": 1.0, "plans": {"planned_gib": question(flux, "training", quantize="nf3")}},
    }
    parts = {"part": {"title": "", "state": "done", "rows": rows}}
    (tmp_path / "results.json").write_text(json.dumps({"about": {}, "parts": parts}))
    words = [
        "--plans",
        str(tmp_path / "results.json"),
        "--out",
        str(tmp_path / "out"),
        "--wheels",
        str(tmp_path),
    ]
    assert gpu.main(words) == 1, "one has failed"
    answered = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]["part"]["rows"]
    assert all(0 < answered[name]["planned_gib"] < 0.1 for name in ("flux", "klein", "quantised", "whole"))
    assert answered["quantised"]["planned_gib"] < answered["whole"]["planned_gib"] / 2
    assert answered["wrong"]["state"].startswith("failed: plan: ") and answered["wrong"]["s"] == 1.0


def test_kernels_that_run_together_are_counted_once() -> None:
    events = [("b", 100, 50), ("a", 0, 10), ("within", 110, 10), ("overlapping", 140, 20), ("next", 160, 5)]
    assert union(events) == 10 + 60 + 5


UNUSED = {"grpcio", "markdown", "tensorboard-data-server", "werkzeug", "hf-xet", "typer", "setuptools"}
"""What the listed packages ask for and the benchmark never opens: servers, downloads, command lines."""


def test_the_wheels_are_all_that_is_needed() -> None:
    listed = {gpu_wheels.plain(name) for name in (*gpu_wheels.ALWAYS, *gpu_wheels.BARE)}
    assert listed <= set(gpu_wheels.pins()), "each has a version"

    def needs(name: str) -> set[str]:
        wanted = map(Requirement, importlib.metadata.requires(name) or [])
        return {
            gpu_wheels.plain(one.name)
            for one in wanted
            if one.marker is None or one.marker.evaluate({"extra": ""})
        }

    brought = needs("torch") | {"torch"}
    for name in listed:
        assert needs(name) <= listed | brought | UNUSED, name


def test_wheels_are_trimmed_and_unpacked_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "bitsandbytes-0-py3-none-any.whl"
    libraries = [
        f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda126", "cuda130", "rocm70")
    ]
    with zipfile.ZipFile(wheel, "w") as packed:
        for name in ("bitsandbytes_marker.py", "bitsandbytes/tests/test_it.py", *libraries):
            packed.writestr(name, "here = True\n")
    (tmp_path / "wheels" / "always").mkdir(parents=True)
    gpu_wheels.trim(wheel, tmp_path / "wheels" / "always" / wheel.name, "130")
    (tmp_path / "wheels" / "bare").mkdir()
    for name in (
        "numpy-0-py3-none-any.whl",
        "other-0-cp27-cp27-any.whl",
    ):  # installed already; for another Python
        with zipfile.ZipFile(tmp_path / "wheels" / "bare" / name, "w") as packed:
            packed.writestr("wrong.py", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    assert gpu_wheels.unpack(tmp_path / "wheels", tmp_path / "site") == [wheel.name]
    assert sys.path[0] == str(tmp_path / "site")
    found = {
        str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()
    }
    assert found == {"bitsandbytes_marker.py", libraries[0], libraries[2]}
