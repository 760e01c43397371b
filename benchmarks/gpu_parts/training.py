"""An optimizer step against diffusers' script on the same weights, LoRA and kernels; its memory beside
`plan`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_parts.bench import Bench, Variant
from gpu_parts.model import Random, largest, random_model
from train import OurStep, ScriptStep, same_loss, write_records
from triptych.sampling.opened import OpenedModel

SETTINGS: dict[str, dict[str, Any]] = {
    "noisy": {},
    "clean, whole panel": {"share": 1.0},
    "clean, 35 %": {"share": 0.35},
    "clean, 35 %, 4 noise levels": {"share": 0.35, "noise_levels": 4},
    "noisy, batch of 4": {"batch_size": 4},
    "clean, LoRA reads": {"share": 1.0, "context_lora": True},
    "noisy, no checkpointing": {"gradient_checkpointing": False},
    "clean, 35 %, no checkpointing": {"share": 0.35, "gradient_checkpointing": False},
}
"""share: of the worn panel that is learned; the rest is TrainConfig's."""

PLANNED = ("noisy", "clean, whole panel", "noisy, batch of 4", "noisy, no checkpointing")
"""Whose memory is compared with the plan: one takes seconds, in which the card has nothing to do."""


def training(bench: Bench) -> None:
    """Seconds per triptych and noise level of a step with gradient checkpointing and AdamW, against
    train_dreambooth_lora_flux.py's."""
    made = random_model(bench, largest(bench))
    models, work = made.models(), bench.work / "steps"
    write_records(models, made.size, work)
    first = OurStep(models, work)
    script = ScriptStep(models, work, cached=True)
    script.optimizer = first.state.optimizer  # one for all, so that no variant's memory counts another's
    bench.row("loss apart from the script's", lambda: {"apart": same_loss(first, script)})
    variants = {"script": Variant(_with_checkpointing(script, script.transformer, True))}
    variants |= {
        name: _variant(bench, made, models, first, name in PLANNED, **settings)
        for name, settings in SETTINGS.items()
    }
    bench.compare("script", variants, 1 if bench.tiny else 4)
    bench.row("a step of noisy waits for the card", lambda: _waits(bench, variants["noisy"]))


def optimizers(bench: Bench) -> None:
    """Steps of `noisy` by optimizer, and their memory: AdamW's two moments in float32 or 8 bits, Prodigy's
    four in float32."""
    made = random_model(bench, largest(bench))
    models, work = made.models(), bench.work / "optimizers"
    write_records(models, made.size, work)
    for name in ("adamw", "adamw8bit", "prodigy"):
        bench.compare(
            name,
            {name: _variant(bench, made, models, None, True, optimizer=name, work=work)},
            1 if bench.tiny else 3,
        )


def _variant(
    bench: Bench, made: Random, models: OpenedModel, first: OurStep | None, planned: bool, **settings: Any
) -> Variant:
    """A step with these settings; it is made when it is first run. first: whose optimizer and average it
    takes."""
    plan = {name: value for name, value in settings.items() if name not in ("share", "work")}
    plan["context"] = "clean" if "share" in settings else "noisy"
    checkpointing, steps = settings.get("gradient_checkpointing", True), list[OurStep]()

    def run() -> None:
        if not steps:
            work = settings.pop("work", None) or bench.work / "steps"
            steps.append(OurStep(models, work, **settings))
            if first is not None:
                steps[0].state = first.state
        _with_checkpointing(steps[0], models.transformer, checkpointing)()

    units = settings.get("batch_size", 1) * settings.get("noise_levels", 1)
    return Variant(run, units, (lambda: made.planned_training(**plan)) if planned else None)


def _with_checkpointing(step: Callable[[], float], transformer: Any, on: bool) -> Callable[[], float]:
    def run() -> float:
        if on:
            transformer.enable_gradient_checkpointing()
        else:
            transformer.disable_gradient_checkpointing()
        return step()

    return run


def _waits(bench: Bench, one: Variant) -> dict[str, Any]:
    lines = bench.waits(one.run)
    return {"waits": sum(lines.values()), "lines": lines}
