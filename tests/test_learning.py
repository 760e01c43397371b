"""The pocket model learns: over-fitting four triptychs lowers the loss on them by a stated factor."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from triptych.backbones.registry import load_backbone
from triptych.embeddings import EmbeddingFolder
from triptych.lora import load_lora
from triptych.panels import PanelLayout, concatenate
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import render
from triptych.stages.embed import EmbedConfig, embed
from triptych.stages.train import TrainConfig, batch_loss, train


def write_rendered(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = random.Random(3)
    for number in range(count):
        garment, scenes = sample_triptych(rng)
        panels = [render(garment, scene, rng.getrandbits(30)).image for scene in scenes]
        concatenate(panels, PanelLayout(48, 72)).save(folder / f"item-{number}.png")
        (folder / f"item-{number}.txt").write_text(triptych_caption(garment, scenes).text)


@pytest.mark.parametrize(("context", "factor"), [("noisy", 0.75), ("clean", 0.75)])
def test_over_fitting_four_triptychs_lowers_the_loss(tmp_path: Path, context: str, factor: float) -> None:
    write_rendered(tmp_path / "triptychs", 4)
    embed(EmbedConfig(work=tmp_path, batch_size=4)).finish()
    options = {"batch_size": 4, "learning_rate": 3e-3, "gradient_checkpointing": False, "validation_steps": 0, "lr_warmup_steps": 5}
    config = TrainConfig(
        work=tmp_path, max_train_steps=60, ema_decay=0.9, caption_dropout=0.0, context=context, context_dropout=0.0, **options
    )
    train(config).finish()

    backbone = load_backbone("pocket")
    data = EmbeddingFolder(tmp_path / "embeddings" / "flux")
    base, trained = backbone.load_transformer(), backbone.load_transformer()
    load_lora(trained, tmp_path / "lora")
    with torch.no_grad():  # the same noise and times for both, none of them seen in training
        losses = [[float(batch_loss(config, backbone, model, data, step, 0)) for step in range(900, 916)] for model in (base, trained)]
    before, after = (sum(values) / len(values) for values in losses)
    assert after < factor * before, f"loss {before:.4f} before, {after:.4f} after"
