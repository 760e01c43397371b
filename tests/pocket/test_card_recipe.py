"""The recipe for a card: what it draws, how it stops and goes on, what it brings home."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from recipes.pocket.card import bank
from recipes.pocket.card.evaluate import nearest_is_true, table, variants
from recipes.pocket.card.timed import SHARES, Clock, Stage, TimedRun, rate_factor
from recipes.pocket.klein.sets import LAYOUTS
from recipes.pocket.state import load_tensors
from triptych.pocket.render import render
from triptych.pocket.rich import RichGarment
from triptych.pocket.world import Scene

ROOT = Path(__file__).parents[2]


def test_a_shard_follows_from_its_number_and_holds_nothing_held_out(tmp_path: Path) -> None:
    examples, sets = bank.draw_examples(0)
    for one in sets:
        ways = {g: {(s.view, s.facing) for other, s in one.panels if other == g} for g, _ in one.panels}
        assert one.kind == "board" or all(len(seen) == 1 for seen in ways.values())
        assert not any(garment.held_out or scene.held_out for garment, scene in one.panels)
    assert set(examples) == {"singles", "boards", *LAYOUTS}
    assert not set(LAYOUTS) - {"one", "two", "three"} & set(bank.draw_examples(1)[0]), "whole panels only"
    (tmp_path / "bank").mkdir()
    bank.render_shard(str(tmp_path), 0)
    pictures, texts = next(bank.pictures_of(tmp_path, [0]))
    assert pictures.shape == (4 * 36 + 3 * 12, 144, 96, 3)
    for kind, found in examples.items():
        assert [(words.text, at, places) for words, at, places in found] == [
            tuple(one) for one in texts[kind]
        ]
    panels = [panel for one in sets for panel in one.panels]
    for words, target, places in examples["two"]:
        if words.kind in ("scene", "dress"):
            assert panels[target][0] in [panels[place][0] for place in places], "the garment is to be seen"
    assert np.array_equal(pictures[target], sets[target // 4].picture(target % 4, 2))
    before = bank.shard_path(tmp_path, 0).stat().st_mtime_ns
    with bank.Renderers(tmp_path, 1, 0) as renderers:
        renderers.wait(1)
        assert renderers.ready() == 1
    assert bank.shard_path(tmp_path, 0).stat().st_mtime_ns == before


def toy(work: Path, fails_at: int = -1) -> TimedRun:
    """A stage of a few numbers."""
    torch.manual_seed(0)
    module = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)

    def loss_of(rng: random.Random, noise: torch.Generator) -> torch.Tensor:
        if run.step == fails_at:
            raise KeyboardInterrupt
        return (module(torch.randn(8, 4, 3, 3, generator=noise)) - rng.random()).square().mean()

    run = TimedRun(work, Stage("toy", module, 1e-2, 3, loss_of, ema=0.9))
    return run


def test_a_stopped_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    unbroken = toy(whole)
    unbroken.go(whole, Clock(whole, 60, time.monotonic()), 60, 9)
    with pytest.raises(KeyboardInterrupt):
        toy(parts, fails_at=5).go(parts, Clock(parts, 60, time.monotonic()), 60, 9)
    resumed = toy(parts)
    assert resumed.step == 5
    resumed.go(parts, Clock(parts, 60, time.monotonic()), 60, 9)
    assert all(torch.equal(one, resumed.averaged()[name]) for name, one in unbroken.averaged().items())


def test_stages_keep_to_the_budget_over_several_runs(tmp_path: Path) -> None:
    clock = Clock(tmp_path, 100, time.monotonic() - 10)
    assert clock.allot("text") == pytest.approx(90 * SHARES["text"], abs=0.5)
    clock.save()
    again = Clock(tmp_path, 100, time.monotonic() - 30)
    assert again.spent == pytest.approx(40, abs=0.5)
    left = SHARES["transformer"] + SHARES["evaluate"]
    assert again.allot("transformer") == pytest.approx(60 * SHARES["transformer"] / left, abs=0.5)
    run = toy(tmp_path)
    began = time.monotonic()
    run.go(tmp_path, again, 0.5, None)
    assert 0.4 < time.monotonic() - began < 3 and run.step > 1
    assert rate_factor(0.2, 500) == 1 and rate_factor(0.999, 500) == pytest.approx(0.02, abs=1e-3)


def test_a_render_is_nearest_to_itself_among_its_variants() -> None:
    garment = RichGarment("sweater", "red", print="star", place="chest", hood=True)
    panel = (garment, Scene("front", "grey"))
    assert set(variants(panel)) == {"motif", "place", "hood", "pockets"}
    for name, others in variants(panel).items():
        true, wrong = (np.asarray(render(one, panel[1], 4, 2).image) for one in others[:2])
        assert nearest_is_true(panel, 4, true)[name] and not nearest_is_true(panel, 4, wrong)[name]


def test_the_table_says_where_it_is_worse() -> None:
    facts = {"autoencoder, dB": {"alone": 31.0}, "richer world": {}}
    rows = table(
        facts | {"card": {"dress": {"colour": 0.9, "print": 0.5}}, "today": {"dress": {"colour": 0.95}}}
    )
    assert "| dress | colour | 0.95 | 0.9 | NO |" in rows and "| dress | print |  | 0.5 |  |" in rows


@pytest.mark.slow
def test_the_whole_recipe_is_killed_and_goes_on(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        words = [
            "--device",
            "cpu",
            "--tiny",
            "--out",
            str(tmp_path / name),
            "--work",
            str(tmp_path / f"{name}-work"),
        ]
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        return subprocess.Popen(
            [sys.executable, "-m", "recipes.pocket", *words], cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
        )

    assert start("whole").wait() == 0
    for stage in ("autoencoder", "transformer"):
        run, state = start("parts"), tmp_path / "parts-work" / f"{stage}.state.safetensors"
        while not state.exists():
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert start("parts").wait() == 0
    for stage in ("text", "autoencoder", "transformer"):
        whole, parts = (
            load_tensors(tmp_path / f"{name}-work" / f"{stage}.state.safetensors")[0]
            for name in ("whole", "parts")
        )
        assert whole.keys() == parts.keys() and all(
            torch.equal(one, parts[key]) for key, one in whole.items()
        )
    out = tmp_path / "parts"
    sizes = [file.stat().st_size for file in out.rglob("*") if file.is_file()]
    assert max(sizes) < 16 << 20 and sum(sizes) < 40 << 20
    assert {"edits.png", "tryons.png", "singles.png", "results.md", "card.jsonl"} <= {
        one.name for one in out.iterdir()
    }
    results = json.loads((out / "results.json").read_text())
    assert results["card"].keys() == results["today"].keys() >= {"singles", "dress", "boards, silent"}
    pipeline = Flux2KleinPipeline.from_pretrained(out / "checkpoint", torch_dtype=torch.float32)
    picture = pipeline(
        prompt="a red dress", width=96, height=144, num_inference_steps=1, max_sequence_length=80
    ).images[0]
    assert picture.size == (96, 144)
    assert json.loads((out / "checkpoint" / "triptych.json").read_text())["panel_width"] == 96
