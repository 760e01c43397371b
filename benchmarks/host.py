"""Milliseconds that the host needs for one transformer pass or training step, whatever the card.

    OMP_NUM_THREADS=1 python benchmarks/host.py --out host.json

FLUX.1-dev's 19 + 38 blocks at a width of 128 and panels of 64 × 96 px: the arithmetic is next to nothing, so
the processor's time is about what a card would wait for the host. Fastest of a few rounds, in which each
variant runs once. `--profile NAME` prints where one variant spends it.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flux_like import PROMPT, Size, flux_like
from gpu_parts.model import random_lora
from train import OurStep, ScriptStep, window, write_records
from triptych.compute.recompute import recompute_blocks
from triptych.lora.adapter import load_lora
from triptych.sampling.opened import OpenedModel
from triptych.sampling.options import Sampling
from triptych.sampling.sampler import Canvases, Known, sample_latents
from triptych.tasks.tryon import TRY_ON

DEEP = Size(heads=2, double=19, single=38, width=64, height=96, words=16)
SHARE, STEPS = 0.36, 8
Run = Callable[[], object]


def sampling_runs(models: OpenedModel, size: Size) -> dict[str, Run]:
    """A try-on's latents in 8 steps, with noisy and clean context."""
    layout = TRY_ON.layout(size.width, size.height)
    shape = (16, layout.size[1] // 8, layout.size[0] // 8)
    tokens = window(layout, SHARE)
    known = Known(torch.randn(1, *shape), tokens.repeat_interleave(2, 0).repeat_interleave(2, 1).float())
    text, empty = models.text([PROMPT]), models.text([""])
    canvases = Canvases(layout, shape, text, [0], empty, known)
    noisy = Sampling(STEPS, time_shift="canvas")
    runs = {"noisy": noisy, "clean, 36 %": replace(noisy, context="clean")}
    return {
        name: partial(sample_latents, models.backbone, models.transformer, canvases, sampling)
        for name, sampling in runs.items()
    }


def training_runs(models: OpenedModel, work: Path) -> dict[str, Run]:
    """A step of diffusers' script, with noisy and with clean context; each with and without checkpointing."""
    script = ScriptStep(models, work, cached=True)
    runs: dict[str, Run] = {}
    steps = {"script": script, "noisy": OurStep(models, work), "clean, 36 %": OurStep(models, work, SHARE)}
    for name, step in steps.items():
        transformer: Any = script.transformer if step is script else models.transformer
        for on in (False, True):
            runs[f"{name}{', checkpointing' if on else ''}"] = partial(_step, transformer, on, step)
    return runs


def _step(transformer: Any, checkpointing: bool, step: Run) -> None:
    if transformer.gradient_checkpointing != checkpointing:
        if not checkpointing:
            transformer.disable_gradient_checkpointing()
        elif isinstance(step, OurStep):
            recompute_blocks(transformer, random=False)
        else:
            transformer.enable_gradient_checkpointing()
    step()


def prepared(size: Size, dtype: torch.dtype, work: Path) -> dict[str, tuple[Run, int]]:
    """Every variant: how it is run, and how many passes or steps a run has."""
    plain = flux_like(size, dtype, work / "plain")
    runs = {f"pass, {name}": (run, STEPS) for name, run in sampling_runs(plain, size).items()}
    adapted = flux_like(size, dtype, work / "lora")
    load_lora(adapted.transformer, random_lora(work / "file", adapted, "flux"))
    runs |= {f"pass, {name}, LoRA": (run, STEPS) for name, run in sampling_runs(adapted, size).items()}
    trained = flux_like(size, dtype, work / "trained")
    write_records(trained, size, work)
    # The folder of embeddings has the family's name, whatever the model.
    runs |= {f"step, {name}": (run, 1) for name, run in training_runs(trained, work).items()}
    return runs


def fastest(runs: dict[str, tuple[Run, int]], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time for each."""
    best: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, (run, times) in runs.items():
            gc.collect()
            begun = time.process_time()
            run()
            seconds = (time.process_time() - begun) / times
            if number:  # the first run allocates
                best[name] = min(best.get(name, seconds * 1e3), seconds * 1e3)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--profile", action="store_true", help="where they spend their time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = prepared(DEEP, getattr(torch, options.dtype), Path(folder))
        runs = {name: run for name, run in runs.items() if options.only in name}
        for name, milliseconds in (made := fastest(runs, options.rounds)).items():
            print(f"{name:36} {milliseconds:7.1f} ms", flush=True)
        if options.out:
            options.out.write_text(json.dumps(made, indent=1))
        for name, (run, _) in runs.items() if options.profile else ():
            print(name)
            with cProfile.Profile(time.process_time) as profiled:
                run()
            pstats.Stats(profiled).sort_stats("cumtime").print_stats(60)


if __name__ == "__main__":
    main()
