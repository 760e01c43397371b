"""`plan` for FLUX.2-klein: counts, references, a card of 12 GB, the jump of the time shift."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.cli import main
from triptych.planning import runs
from triptych.planning.memory import held_panels
from triptych.planning.shapes import model_shapes
from triptych.planning.shift import shift_warning
from triptych.sampling.clean_context import ContextCache
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.tasks.tryon import TRY_ON
from triptych.vton.config import TryonConfig
from triptych.vton.dress import try_on
from triptych.vton.request import Person

from .test_flux2 import LENGTH, PROMPT, photo
from .test_flux2 import models as models
from .test_plan import FLUX, LAYOUT

KLEIN = "black-forest-labs/FLUX.2-klein"


@pytest.mark.parametrize(
    ("model", "transformer", "encoder", "lora", "layers"),
    [
        ("base-4B", 3_875_544_576, 3_114_088_192, 24_084_480, 100),
        ("4B", 3_875_544_576, 3_114_088_192, 24_084_480, 100),
        ("base-9B", 9_078_581_248, 5_831_883_520, 43_515_904, 144),
        ("9B", 9_078_581_248, 5_831_883_520, 43_515_904, 144),
        ("9b-kv", 9_078_581_248, 5_831_883_520, 43_515_904, 144),
    ],
)
def test_counts_of_klein(model: str, transformer: int, encoder: int, lora: int, layers: int) -> None:
    """Of the text encoder the 27 layers that the prompt needs, and no head."""
    shapes = model_shapes(f"{KLEIN}-{model}")
    counts = shapes.parameters
    assert (counts["transformer"], counts["text_encoder"]) == (transformer, encoder)
    assert len(shapes.build("text_encoder", torch.float32).layers) == 27  # type: ignore[arg-type]
    assert shapes.lora_parameters(16) == lora
    assert len(shapes.family.lora_layers(shapes.build("transformer", torch.float32))) == layers
    assert shapes.distilled == (not model.startswith("base"))
    assert shapes.settings.num_inference_steps == (28 if model.startswith("base") else 4)
    assert counts["vae"] == 84_046_115


def sampled(model: str = f"{KLEIN}-4B", repainted: float = 1.0, **changes: object) -> runs.Sampled:
    """A run of the distilled klein-4B in bf16, with the product photos as references unless changed."""
    given = {"context": "clean", "context_placement": "reference", **changes}
    sampling = Sampling(4, None, 1.0, **given)
    return runs.sampling_run(
        model_shapes(model), sampling, LAYOUT, 512, torch.bfloat16, 0, repainted=repainted, cache_bytes=4e9
    )


def test_references_are_planned_as_they_are_sampled() -> None:
    """26·d²·S·B + 4·S·K·d·B for S tokens that attend to K: read once or run at every step; the person besides
    where a polygon is known.
    """
    d, blocks, panel, text = 3072, 25, 36 * 48, 512

    def flops(run: int, seen: int) -> float:
        return 2 * 13 * d**2 * run * blocks + 4 * run * seen * d * blocks

    read = sampled()
    once, steps = flops(2 * panel, 2 * panel), 4 * flops(panel + text, 3 * panel + text)
    assert read.profile.flops == pytest.approx(once + steps, rel=0.03)
    assert read.kept == 2 * panel * blocks * 2 * d * 2
    native = sampled(context="native")
    assert native.kept == 0
    assert native.profile.flops == pytest.approx(4 * flops(3 * panel + text, 3 * panel + text), rel=0.03)
    noisy = sampled(context="noisy")
    assert noisy.profile.flops == pytest.approx(native.profile.flops, rel=0.001)
    person = sampled(repainted=0.35)
    assert person.kept / read.kept == pytest.approx(1 + 0.65 / 2, rel=0.01)
    fast = sampled(repainted=0.35, active_tokens="polygon")
    assert fast.kept == person.kept
    assert fast.profile.flops < 0.75 * person.profile.flops
    buffer = 2 * (3 * panel + text) * blocks * d * 2
    assert read.profile.peak - read.kept > buffer, "all blocks' keys and values lie in one buffer each"


def test_klein_samples_on_12_gb_without_quantising(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--model", f"{KLEIN}-base-4B", "--card", "rtx-3060", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["card"] == "rtx-3060-12gb"
    assert plan["generate"]["fits"] and plan["tryon"]["fits"]
    assert plan["lora_parameters"] == 48_168_960, "rank 32"
    assert plan["tokens"] == {"image": 5184, "references": 0, "text": 512}
    change = plan["train"]["change"]
    assert change == {"batch_size": 1, "gradient_accumulation_steps": 4}, "nothing quantised or swapped"
    assert plan["train"]["seconds_each_with_change"] < 1.06 * plan["train"]["seconds_each"]
    assert plan["for_run"].endswith("--config klein-12gb")
    assert re.search(r"tryon fits, but it is tight .* --context-cache-gib 0 saves 1\.31 GiB", plan["verdict"])
    assert plan["warnings"] == []


@pytest.mark.parametrize(
    ("width", "height", "shift", "words"),
    [
        (576, 768, "panel", None),
        (1024, 992, "panel", None),
        (1024, 1024, "panel", "panel, near 4,300.*smaller panels, such as 928×928"),
        (1024, 1152, "panel", "panel, beyond 4,300.*smaller panels, such as"),
        (576, 768, "canvas", "canvas, beyond 4,300.*--time-shift panel counts one panel"),
        (528, 688, "canvas", "canvas, near 4,300.*--time-shift panel"),
    ],
)
def test_the_jump_of_the_time_shift_is_told(width: int, height: int, shift: str, words: str | None) -> None:
    layout, sampling = TRY_ON.layout(width, height), Sampling(time_shift=shift)  # type: ignore[arg-type]
    told = shift_warning(model_shapes(f"{KLEIN}-base-4B"), sampling, layout)
    assert shift_warning(model_shapes(FLUX), sampling, layout) is None
    assert (told is None) if words is None else (told and re.search(words, told)), told


@pytest.mark.parametrize("reading", ["joint", "products"])
def test_the_cache_that_a_batch_fills_is_planned(models: OpenedModel, reading: str) -> None:
    layout, sampling = TRY_ON.layout(96, 96), Sampling(1, None, 1.0, context="clean")
    sampling = replace(sampling, context_placement="reference", context_reading=reading)
    _, cells = runs.cells_learned(layout.only(("worn",)), 16, 0.35**0.5)
    repaint = np.kron(cells.numpy(), np.ones((16, 16), np.float32))
    front, back = photo(1, (96, 96)), photo(2, (96, 96))

    def held(persons: range, room: int) -> int:
        models.contexts = ContextCache(room)
        for number in persons:
            person = Person(photo(number, (96, 96)), repaint, PROMPT, [0])
            try_on(models, front, back, [person], layout, sampling, feather=0)
        return models.contexts.nbytes

    shapes = model_shapes(models.backbone.model)
    about = {"repainted": 0.35, "cache_bytes": 1e9}
    one = runs.sampling_run(shapes, sampling, layout, LENGTH, torch.float32, 0, **about).kept
    assert one == pytest.approx(held(range(10, 11), 1 << 30), rel=0.1)
    room = int(2.5 * one)
    config = TryonConfig(model="pocket-klein", batch=Path("jobs.csv"), context_cache_gib=room / 2**30)
    assert held_panels(one, config) == pytest.approx(held(range(10, 17), room), rel=0.25)
