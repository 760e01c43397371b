"""Validate the averaged LoRA on fixed inputs: a loss with fixed noise, and pictures."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image, ImageDraw
from torch import nn

from triptych import progress
from triptych.backbones.contract import Backbone
from triptych.pictures.fonts import font_for
from triptych.pictures.panels import split
from triptych.pictures.sheets import plain
from triptych.sampling.canvas import decoded
from triptych.sampling.generate import generate_triptych
from triptych.sampling.opened import OpenedModel
from triptych.training.config import TrainConfig, placement_of
from triptych.training.data import TrainingSet
from triptych.training.loss import losses_of
from triptych.training.state import TrainState
from triptych.training.twin import Twin

LEVELS = (0.25, 0.5, 0.75, 1.0)
"""The noise levels of validation."""


@torch.no_grad()
def validation_loss(
    config: TrainConfig, backbone: Backbone, transformer: nn.Module, data: TrainingSet
) -> dict[str, float]:
    """The loss on the held-out triptychs with fixed noise: its mean `validation/loss`, and `validation/t
    <level>`.

    With clean context, all generated panels are learned whole, as in `generate` with photos for the given
    panels.
    """
    means = {}
    for number, t in enumerate(LEVELS):
        progress.doing("validating", number, len(LEVELS))
        losses = [
            losses_of(config, backbone, transformer, data.fixed(backbone, id, t)).sample_B
            for id in data.held_out
        ]
        means[f"validation/t {t:.2f}"] = float(torch.cat(losses).mean())
    return {"validation/loss": sum(means.values()) / len(means), **means}


def validation_pictures(
    config: TrainConfig,
    backbone: Backbone,
    transformer: nn.Module,
    data: TrainingSet,
    state: TrainState,
    twin: Twin | None = None,
) -> Image.Image:
    """Panels that `generate` makes from the given ones, each with a fixed seed: the true panel above, the
    generated one below, and with a `twin` that model's below it, all labelled.

    The true panels are decoded by the autoencoder. Held-out triptychs come first. transformer: the model in
    training, with the averaged LoRA of `state`.
    """
    ids = [*data.held_out, *data.ids][: config.num_validation_images]
    texts = {"": data.records.empty, **{id: data.records[id].text for id in ids}}
    trained = {
        "context": config.context,
        "context_lora": config.context_lora,
        "context_reading": config.context_reading,
        "context_placement": placement_of(config, backbone.family),
    }
    autoencoder = backbone.load_autoencoder()
    model = OpenedModel(backbone, transformer, autoencoder, texts, trained=trained)
    truths = {id: _truth(model, data, id) for id in ids}
    rows: dict[str, list[tuple[str, Image.Image]]] = {}
    for id, truth in truths.items():
        kind = "held out" if id in data.held_out else "trained on"
        made = _made(config, model, data, id, truth)
        rows[id] = [(f"true, {kind}: {id}", truth), (f"made at step {state.step}: {id}", made)]
    if twin is not None:
        with twin.opened(state.average, transformer) as other:
            model = OpenedModel(twin.backbone, other, autoencoder, texts, trained=trained)
            for id, truth in truths.items():
                made = _made(config, model, data, id, truth)
                rows[id].append((f"made by {twin.name} at step {state.step}: {id}", made))
            del model, other  # so that the card is free before the other model is back
    return _labelled([row for several in rows.values() for row in several])


def _truth(model: OpenedModel, data: TrainingSet, id: str) -> Image.Image:
    """A triptych as the autoencoder shows it."""
    latents = data.records[id].latent_mean_CHW[None].to(model.backbone.device)
    return decoded(model, latents, data.layouts[id])[0]


def _made(
    config: TrainConfig, model: OpenedModel, data: TrainingSet, id: str, truth: Image.Image
) -> Image.Image:
    """The triptych with its made panels generated from the given ones."""
    layout = replace(data.layouts[id], trim=None)  # these are panels already
    panels = dict(zip(layout.roles, split(truth, layout), strict=True))
    given = {role: panels[role] for role in layout.given}
    ids = [*data.held_out, *data.ids]
    with progress.within("validation picture"), model.backbone.autocast():
        seed = config.seed + ids.index(id)
        return generate_triptych(model, [id], layout, [seed], products=[given])[0]


def _labelled(rows: list[tuple[str, Image.Image]]) -> Image.Image:
    """Stack pictures vertically, each below a line of text."""
    line = 18
    sheet = Image.new(
        "RGB", (max(image.width for _, image in rows), sum(image.height + line for _, image in rows)), "white"
    )
    draw, top = ImageDraw.Draw(sheet), 0
    for label, image in rows:
        text = plain(label)
        if font := font_for(text, line - 6):
            draw.text((2, top + 1), text, "#202020", font)
        sheet.paste(image, (0, top + line))
        top += line + image.height
    return sheet
