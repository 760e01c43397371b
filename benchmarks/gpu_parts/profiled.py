"""Where a run spends its time: kernels or the host. CUPTI's own records are added up here; the tables of
torch.profiler take longer than all runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_parts.bench import Bench, Figures, Skip
from gpu_parts.model import Random, Shop, largest, random_model
from gpu_parts.sampling import CLEAN, EXACT, PART
from gpu_parts.training import SETTINGS, variant, with_checkpointing
from train import OurStep, ScriptStep, write_records

LONGEST = 12
RANGES = "Optimizer.", "ProfilerStep", "## "
"""What torch marks by name on the card's time line too, and is no kernel."""
STEPS = "noisy", "clean, 35 %", "clean, 35 %, no checkpointing"


def waiting(bench: Bench) -> None:
    """Is it the card that takes the time, or the host? Seconds of a run by the clock; of these, seconds in
    which kernels run; kernels; lines at which Python waits for the card; the kernels that take longest.
    Sampling: 2 steps."""
    made = random_model(bench, largest(bench))
    _steps(bench, made)  # first: there a LoRA comes into the model, which sampling is not to have
    shop = Shop(made, made.models())
    runs: dict[str, Callable[[], Any]] = {
        "sampling, pipeline": lambda: shop.stock(2, 1.0),
        "sampling, exact": lambda: shop.ours(replace(EXACT, num_inference_steps=2), 1.0),
        "sampling, clean, 36 %": lambda: shop.ours(replace(CLEAN, num_inference_steps=2), PART),
    }
    for name, run in runs.items():
        bench.row(name, lambda run=run: profiled(bench, run))


def _steps(bench: Bench, made: Random) -> None:
    models, work = made.models(), bench.work / "waiting"
    write_records(models, made.size, work)
    first = OurStep(models, work)
    script = ScriptStep(models, work, cached=True)
    script.optimizer = first.state.optimizer
    runs: dict[str, Callable[[], Any]] = {
        "training, script": with_checkpointing(script, script.transformer, True)
    }
    runs |= {
        f"training, {name}": variant(bench, made, models, first, work, **SETTINGS[name]).run for name in STEPS
    }
    for name, run in runs.items():
        bench.row(name, lambda run=run: profiled(bench, run))


def profiled(bench: Bench, run: Callable[[], Any]) -> Figures:
    """The figures of one run, after one that is not counted."""
    run()
    wall = min(bench.seconds(run) for _ in range(1 if bench.tiny else 2))
    waits = bench.waits(run)
    with profile(activities=[_activity(bench)], acc_events=False) as recorded:
        run()
        bench.wait()
    kind = DeviceType.CUDA if bench.card else DeviceType.CPU
    events = [
        (one.name(), one.start_ns(), one.duration_ns())
        for one in recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
        if one.device_type() == kind and one.duration_ns() > 0 and not one.name().startswith(RANGES)
    ]
    if not events:
        raise Skip("the profiler saw nothing")
    by_name: dict[str, list[int]] = defaultdict(list)
    for name, _, nanoseconds in events:
        by_name[name[:100]].append(nanoseconds)
    longest = sorted(by_name, key=lambda name: -sum(by_name[name]))[:LONGEST]
    top = {name: {"ms": sum(by_name[name]) / 1e6, "times": len(by_name[name])} for name in longest}
    figures: Figures = {"s": wall, "longest": longest[0][:40], "top": top}
    if bench.card:
        busy = union(events) / 1e9
        figures |= {"kernels_s": busy, "share": busy / wall, "kernels": len(events)}
    return {**figures, "waits": sum(waits.values()), "lines": waits}


def _activity(bench: Bench) -> ProfilerActivity:
    return ProfilerActivity.CUDA if bench.card else ProfilerActivity.CPU


def union(events: Iterable[tuple[str, int, int]]) -> int:
    """Nanoseconds in which at least one of the events runs; each has a name, a start and a duration."""
    total, end = 0, 0
    for _, start, length in sorted(events, key=lambda event: event[1]):
        total += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return total
