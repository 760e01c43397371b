"""The arithmetic of docs/scale.md: as the script reckons it, and a queue whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scale  # noqa: E402


def test_the_page_holds_what_the_script_reckons() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    held = text.split(scale.BEGIN)[1].split(scale.END)[0].strip()
    assert held == scale.page(yaml.safe_load((ROOT / "benchmarks" / "scale.yaml").read_text())), (
        "python benchmarks/scale.py --write docs/scale.md"
    )


def test_one_card_waits_as_the_theory_says() -> None:
    """M/D/1: the mean wait in the queue is u / (2 (1 - u)) services (Pollaczek and Khinchine)."""
    hours = [scale.simulated(1, 5.0, 10**6, 0.1, 0.1, 1, seed) for seed in range(8)]
    mean = sum(sum(hour.waits) / len(hour.waits) for hour in hours) / len(hours)
    assert mean - 0.1 == pytest.approx(0.1 * 0.5 / (2 * 0.5), rel=0.05)
    assert sum(hour.busy for hour in hours) / len(hours) == pytest.approx(0.5, rel=0.03)
    assert all(hour.batch == 1 for hour in hours)


def test_batches_help_where_orders_wait() -> None:
    alone, together = (scale.simulated(8, 23.0, 20_000, 0.39, 0.2, most) for most in (1, 8))
    assert together.share(0.95) < 0.1 * alone.share(0.95) and together.batch > 1.2
    assert len(alone.waits) == len(together.waits), "every order gets its picture"


def test_other_figures_make_other_tables() -> None:
    figures = yaml.safe_load((ROOT / "benchmarks" / "scale.yaml").read_text())
    cheap = {**figures, "prices": {**figures["prices"], "card_hour": 0.0}}
    assert scale.stages_table(figures) != scale.stages_table(cheap)
