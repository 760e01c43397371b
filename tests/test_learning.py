"""Models learn: over-fitting four triptychs lowers the loss on them by a stated factor."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.backbones.registry import load_backbone
from triptych.data.embeddings import EmbeddingFolder
from triptych.lora.adapter import load_lora
from triptych.pictures.panels import PanelLayout, concatenate
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import render
from triptych.tasks.tryon import TRY_ON
from triptych.training.data import TrainingSet
from triptych.training.loss import losses_of
from triptych.verbs.embed import EmbedConfig, embed
from triptych.verbs.train import TrainConfig, train


def write_rendered(folder: Path, count: int, layout: PanelLayout) -> None:
    folder.mkdir(parents=True)
    rng = random.Random(3)
    for number in range(count):
        garment, scenes = sample_triptych(rng)
        panels = [render(garment, scene, rng.getrandbits(30)).image for scene in scenes]
        concatenate(panels, layout).save(folder / f"item-{number}.png")
        (folder / f"item-{number}.txt").write_text(triptych_caption(garment, scenes).text)


@pytest.mark.parametrize("context", [pytest.param("noisy", marks=pytest.mark.slow), "clean"])
def test_over_fitting_four_triptychs_lowers_the_loss(tmp_path: Path, context: str) -> None:
    write_rendered(tmp_path / "triptychs", 4, TRY_ON.layout(48, 72))
    before, after = over_fit(tmp_path, "pocket", context, steps=60, learning_rate=3e-3)
    assert after < 0.75 * before, f"loss {before:.4f} before, {after:.4f} after"


@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_random_weights_learn_too(tmp_path: Path, tiny: Path, context: str) -> None:
    """Every family's LoRA gets hold of the loss. How far is bounded: first and last layer are random, narrow
    and frozen.
    """
    write_rendered(tmp_path / "triptychs", 4, TRY_ON.layout(32, 48))
    before, after = over_fit(tmp_path, str(tiny), context, steps=40, learning_rate=1e-2)
    assert after < 0.9 * before, f"loss {before:.4f} before, {after:.4f} after"


def over_fit(work: Path, model: str, context: str, steps: int, learning_rate: float) -> tuple[float, float]:
    """Mean loss of the base model and of a LoRA trained on everything in `work`."""
    embed(EmbedConfig(work=work, model=model, batch_size=4, columns=3)).finish()
    options: dict[str, Any] = {
        "batch_size": 4,
        "learning_rate": learning_rate,
        "gradient_checkpointing": False,
        "validation_steps": 0,
        "lr_warmup_steps": 5,
    }
    if context == "clean":
        options["context_dropout"] = 0.0
    config = TrainConfig(
        work=work,
        model=model,
        max_train_steps=steps,
        ema_decay=0.9,
        caption_dropout=0.0,
        context=context,
        **options,
    )
    train(config).finish()

    backbone = load_backbone(model)
    data = TrainingSet(EmbeddingFolder(work / "embeddings" / backbone.name), config)
    base, trained = backbone.load_transformer(), backbone.load_transformer()
    load_lora(trained, work / "lora")
    with torch.no_grad():  # the same noise and times for both, none of them seen in training
        batches = [data.draw(backbone, step, 0, 1) for step in range(900, 916)]
        losses = [
            [float(losses_of(config, backbone, one, batch).sample_B.mean()) for batch in batches]
            for one in (base, trained)
        ]
    before, after = (sum(values) / len(values) for values in losses)
    return before, after
