"""An optimizer step against diffusers' script on the same weights, LoRA and kernels; its memory beside
`plan`'s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts.bench import Bench, Variant
from gpu_parts.model import Random, largest, random_model
from gpu_parts.plans import question
from train import OurStep, ScriptStep, same_loss, write_records
from triptych.compute.recompute import recompute_blocks
from triptych.sampling.opened import OpenedModel

SETTINGS: dict[str, dict[str, Any]] = {
    "noisy": {},
    "clean, whole panel": {"share": 1.0},
    "clean, 35 %": {"share": 0.35},
    "clean, 35 %, 4 noise levels": {"share": 0.35, "noise_levels": 4},
    "noisy, no checkpointing": {"gradient_checkpointing": False},
    "clean, 35 %, no checkpointing": {"share": 0.35, "gradient_checkpointing": False},
}
"""share: of the worn panel that is learned; the rest is TrainConfig's."""


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
    variants = {"script": Variant(with_checkpointing(script, script.transformer, True))}
    variants |= {
        name: variant(bench, made, models, first, work, **settings) for name, settings in SETTINGS.items()
    }
    bench.compare("script", variants, 1 if bench.tiny else 4, sharing=3)


def optimizers(bench: Bench) -> None:
    """Steps of `noisy` by optimizer, and their memory: AdamW's two moments in float32 or 8 bits, Prodigy's
    four in float32."""
    made = random_model(bench, largest(bench))
    models, work = made.models(), bench.work / "optimizers"
    write_records(models, made.size, work)
    for name in ("adamw", "adamw8bit", "prodigy"):
        one = variant(bench, made, models, None, work, optimizer=name)
        bench.compare(name, {name: one}, 1 if bench.tiny else 4)


def variant(
    bench: Bench, made: Random, models: OpenedModel, first: OurStep | None, work: Path, **settings: Any
) -> Variant:
    """A step with these settings; it is made when it is first run. first: whose optimizer and average it
    takes."""
    plan = {name: value for name, value in settings.items() if name != "share"}
    plan["context"] = "clean" if "share" in settings else "noisy"
    asked = question(made, "training", **plan) if settings.get("share", 1.0) == 1.0 else None
    checkpointing, steps = settings.get("gradient_checkpointing", True), list[OurStep]()

    def run() -> None:
        if not steps:
            steps.append(OurStep(models, work, **settings))
            if first is not None:
                steps[0].state = first.state
        with_checkpointing(steps[0], models.transformer, checkpointing)()

    units = settings.get("batch_size", 1) * settings.get("noise_levels", 1)
    return Variant(run, units, asked)


def with_checkpointing(step: Callable[[], float], transformer: Any, on: bool) -> Callable[[], float]:
    def run() -> float:
        if not on:
            transformer.disable_gradient_checkpointing()
        elif isinstance(step, OurStep):
            recompute_blocks(transformer, random=False)
        else:
            transformer.enable_gradient_checkpointing()
        return step()

    return run
