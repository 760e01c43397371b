"""The metadata about its training in a LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.backbones.families import Family
from triptych.config.marks import CLEAN_ONLY, marked
from triptych.lora.adapter import LoraFile
from triptych.store.files import digest, sha256_file
from triptych.training.config import TrainConfig, placement_of, settings_that_matter
from triptych.training.data import TrainingSet
from triptych.training.state import TrainState


def about_lora(
    config: TrainConfig, family: Family, data: TrainingSet, state: TrainState, init: LoraFile | None
) -> dict[str, Any]:
    """The metadata for this training, without settings that had no effect and without paths on this
    machine.
    """
    recipe = {
        name: value
        for name, value in settings_that_matter(config).items()
        if name not in ("model", "context")
    }
    recipe["max_train_steps"] = config.max_train_steps
    clean = {name: recipe.pop(name) for name in sorted(marked(TrainConfig, CLEAN_ONLY))}
    about: dict[str, Any] = {
        "family": family.name,
        "base_model": Path(config.model).resolve().name if Path(config.model).exists() else config.model,
        "layout": data.layout.to_dict() | {"made": list(data.layout.made)},
        "context": config.context,
        "steps": state.step,
        "triptychs": len(data.ids),
        "data_sha256": digest(
            sorted((row["image_sha256"], row["caption_sha256"]) for row in data.records.about.values())
        ),
    }
    if data.markers:
        about["markers"] = list(data.markers)
    clean.pop("context_placement")
    if config.context != "noisy":
        about |= {name: clean.pop(name) for name in ("context_lora", "context_reading")}
        about["context_placement"] = placement_of(config, family)
        recipe |= clean
    if len(state.lengths) > 1:
        about["lengths"] = sorted(state.lengths.items())
    if state.threads:
        about["cpu_threads"] = state.threads
    if init is not None:
        about["init_lora"] = {"sha256": sha256_file(init.path), "steps": init.about.get("steps")}
    return about | {"recipe": recipe}
