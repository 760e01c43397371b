"""train --validation-model: pictures of the LoRA on a second model, such as the base's distilled twin."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych.backbones.registry import load_backbone
from triptych.errors import ConfigError, ModelError
from triptych.lora.adapter import add_lora, lora_state
from triptych.pictures.panels import split
from triptych.sampling.canvas import decoded
from triptych.sampling.generate import generate_triptych
from triptych.session import load_models
from triptych.training.twin import open_twin
from triptych.verbs.train import train

from .test_train import LAYOUT, config, training_set, write_records


def copy(model: Path, to: Path, **index: object) -> Path:
    """A model folder whose model_index.json says something else."""
    shutil.copytree(model, to)
    about = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**about, **index}))
    return to


@pytest.fixture
def distilled(tiny_flux2: Path, tmp_path: Path) -> Path:
    """The base's twin: distilled, with other weights in its transformer, and without settings of its own."""
    folder = copy(tiny_flux2, tmp_path / "klein-distilled", is_distilled=True)
    (folder / "triptych.json").write_text(
        '{"panel_width": 32, "panel_height": 48, "max_sequence_length": 24}'
    )
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return folder


def test_pictures_are_those_of_the_lora_on_the_distilled_model(
    tmp_path: Path, tiny_flux2: Path, distilled: Path
) -> None:
    """Its own number of steps and no guidance, the base's embeddings: what `generate` makes with the LoRA."""
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    options = config(
        tmp_path,
        tiny_flux2,
        max_train_steps=2,
        validation_steps=2,
        learning_rate=0.05,
        ema_decay=0.0,
        validation_model=str(distilled),
    )
    train(options).finish()
    sheet = np.asarray(Image.open(tmp_path / "lora" / "samples" / "step-000002.png"))
    assert sheet.shape == (6 * (18 + 48), 96, 3), "true, made, made by the other, of two triptychs"
    rows = sheet.reshape(6, 66, 96, 3)
    assert (rows[1, 18:] != rows[2, 18:]).any()
    record = training_set(tmp_path, options).records["id-2"]
    model = load_models(str(distilled), [], device="cpu", dtype="fp32", lora=tmp_path / "lora")
    assert model.sampling().num_inference_steps == 4 and model.sampling().true_cfg_scale == 1.0
    empty = training_set(tmp_path, options).records.empty
    model.texts = {"": empty, "id-2": record.text}
    (truth,) = decoded(model, record.latent_mean_CHW[None], LAYOUT)
    panels = dict(zip(LAYOUT.roles, split(truth, LAYOUT), strict=True))
    given = {role: panels[role] for role in LAYOUT.given}
    (made,) = generate_triptych(model, ["id-2"], LAYOUT, [options.seed + 1], products=[given])
    assert np.abs(np.asarray(made).astype(int) - rows[5, 18:]).max() <= 1


def test_it_is_no_part_of_the_training_and_is_loaded_only_meanwhile(
    tmp_path: Path, tiny_flux2: Path, distilled: Path
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    base = {"max_train_steps": 2, "validation_steps": 1, "num_validation_images": 1}
    train(config(tmp_path, tiny_flux2, **base, validation_model=str(distilled))).finish()
    there = config(tmp_path, tiny_flux2, **base)
    train(there).finish()  # the same training: nothing is refused
    backbone = load_backbone(str(tiny_flux2), "cpu", "fp32")
    transformer = backbone.load_transformer()
    add_lora(transformer, backbone.lora_layers(transformer), 4, 4, 0.0, 0)
    twin = open_twin(there.model_copy(update={"validation_model": str(distilled)}), backbone)
    assert twin is not None and twin.name == "klein-distilled"
    with twin.opened(lora_state(transformer), transformer) as other:
        loaded = weakref.ref(other)
        assert other is not transformer
        pairs = zip(lora_state(other).values(), lora_state(transformer).values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        del other
    gc.collect()
    assert loaded() is None
    assert open_twin(there, backbone) is None


def test_another_kind_of_model_is_refused(
    tmp_path: Path, tiny_flux2: Path, tiny_flux: Path, distilled: Path
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)

    def refused(model: Path, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            train(config(tmp_path, tiny_flux2, validation_steps=1, validation_model=str(model)))

    refused(tiny_flux, r"it is a model of FLUX\.1, not of FLUX\.2")
    wide = copy(distilled, tmp_path / "wide")
    about = json.loads((wide / "transformer" / "config.json").read_text())
    (wide / "transformer" / "config.json").write_text(json.dumps({**about, "num_attention_heads": 4}))
    refused(wide, "layers of other sizes")
    words = copy(distilled, tmp_path / "words")
    file = words / "text_encoder" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    refused(words, "its text encoder is another one")
    chats = copy(distilled, tmp_path / "chats")
    template = chats / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<think>", "<Brand>"))
    refused(chats, "its text encoder is another one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_steps": 0}, "validation pictures, and none are made"),
        ({"num_validation_images": 0}, "validation pictures, and none are made"),
        ({"shard_base": True}, "is not sharded"),
    ],
)
def test_a_second_model_without_pictures_is_refused(
    tmp_path: Path, tiny_flux2: Path, changes: dict[str, Any], message: str
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux2)
    given = {"validation_steps": 1, "validation_model": str(tiny_flux2), **changes}
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path, tiny_flux2, **given))
