"""Training: it learns, it never mixes up ids, it resumes to the same LoRA, and diffusers loads what it
leaves.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from triptych import flow
from triptych.backbones.contract import Backbone, Text
from triptych.backbones.registry import load_backbone
from triptych.data.embeddings import (
    EMPTY,
    EmbeddingFolder,
    EmbeddingRecord,
    read_about,
    save_record,
    save_text,
)
from triptych.errors import ModelError, WorkError
from triptych.lora.adapter import FILE_NAME, add_lora, load_lora, lora_state, read_lora, save_lora
from triptych.pictures.panels import PanelLayout
from triptych.sampling.prompts import encode_texts
from triptych.session import load_models
from triptych.signals import Stopped
from triptych.store.folder import is_held
from triptych.tasks.tryon import TRY_ON
from triptych.training.asked import SAVE, STOP, ask, saved_folder
from triptych.training.checkpoints import steps_saved
from triptych.training.data import TrainingSet, ids_of_batch
from triptych.training.optimizer import learning_rate
from triptych.verbs.train import TrainConfig, train

from .conftest import latent_shape

LAYOUT = TRY_ON.layout(32, 48)


@functools.cache
def family(model: Path) -> tuple[Backbone, Text]:
    """A backbone and text tensors of the shapes it has."""
    backbone = load_backbone(str(model), "cpu", "fp32")
    return backbone, encode_texts(backbone.load_text_encoder(), [], backbone.settings.max_sequence_length)[""]


def write_records(work: Path, ids: list[str], model: Path, layout: PanelLayout = LAYOUT) -> Path:
    """Records whose latents and text both carry their id's number, so that a mix-up shows."""
    backbone, empty = family(model)
    folder = work / "embeddings" / backbone.name
    unit = backbone.settings.stride // backbone.family.latents_per_token
    height, width = layout.size[1] // unit, layout.size[0] // unit
    made_with = backbone.encoder_fingerprint
    for id in ids:
        number = float(id.split("-")[1])
        generator = flow.generator_for("record", id)
        mean = torch.randn(16, height, width, generator=generator) * 0.1 + number
        text = {name: torch.full_like(value, number) for name, value in empty.items()}
        record = EmbeddingRecord(
            id, mean, torch.full_like(mean, 0.01), text, layout, "i" + id, "c" + id, made_with
        )
        save_record(record, folder / f"{id}.safetensors")
    save_text(
        {name: torch.zeros_like(value) for name, value in empty.items()},
        made_with,
        folder / f"{EMPTY}.safetensors",
    )
    return folder


def config(work: Path, model: Path, **changes) -> TrainConfig:
    base = {
        "max_train_steps": 6,
        "batch_size": 2,
        "device": "cpu",
        "dtype": "fp32",
        "validation_steps": 0,
        "learning_rate": 1e-3,
    }
    return TrainConfig(
        work=work, model=str(model), **{**base, "rank": 4, "alpha": 4, "checkpointing_steps": 2, **changes}
    )


def training_set(work: Path, options: TrainConfig) -> TrainingSet:
    return TrainingSet(
        EmbeddingFolder(work / "embeddings" / load_backbone(options.model, "cpu", "fp32").name), options
    )


def test_latents_and_text_of_every_batch_carry_the_same_id(tmp_path: Path, tiny: Path) -> None:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 12)], tiny)
    backbone = load_backbone(str(tiny), "cpu", "fp32")
    data = training_set(tmp_path, config(tmp_path, tiny, batch_size=4, caption_dropout=0.0))
    everything = []
    for step in range(11):
        batch = data.draw(backbone, step, 0, 1)
        numbers = batch.clean_BCHW.mean((1, 2, 3)).round()
        assert batch.text
        assert all(torch.equal(numbers, value.flatten(1)[:, 0]) for value in batch.text.values())
        everything += numbers.tolist()
    assert sorted(everything) == sorted(list(range(1, 12)) * 4), "each epoch shows each triptych once"
    assert everything[:11] != everything[11:22], "each epoch has an order of its own"


def test_caption_dropout_feeds_the_empty_prompt_at_its_rate(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    data = training_set(tmp_path, config(tmp_path, tiny_flux, batch_size=4, caption_dropout=0.3))
    states = torch.cat(
        [data.draw(backbone, step, 0, 1).text["prompt_embeds"][:, 0, 0] for step in range(100)]
    )
    assert 0.2 < (states == 0).float().mean().item() < 0.4


def test_a_step_leaves_cudnns_attention_out(tmp_path: Path, tiny_flux: Path) -> None:
    """Its gradients were wrong on a card; whoever calls gets PyTorch's own choice back."""
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    asked = torch.backends.cuda.cudnn_sdp_enabled
    before = asked()
    during = [asked() for _ in train(config(tmp_path, tiny_flux, max_train_steps=2, validation_steps=0))]
    assert before and during == [False, False] and asked()


def test_a_stopped_run_resumes_to_the_same_lora(tmp_path: Path, tiny: Path) -> None:
    options = {
        "max_train_steps": 7,
        "gradient_accumulation_steps": 2,
        "lora_dropout": 0.2,
        "caption_dropout": 0.3,
    }
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for work in (whole, stopped):
        write_records(work, [f"id-{n}" for n in range(3)], tiny)
    train(config(whole, tiny, **options)).finish()
    for stop_after in (1, 3, 5):  # between checkpoints, so that steps are done twice
        run = train(config(stopped, tiny, **options))
        for number, _ in enumerate(run, 1):
            if number == stop_after:
                break
        run.close()
    last = train(config(stopped, tiny, **options)).finish()
    assert last["resumed_at"] > 0
    theirs, ours = (load_file(work / "lora" / FILE_NAME) for work in (whole, stopped))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    rows = [json.loads(line)["step"] for line in (stopped / "lora" / "train.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 8))


def test_a_file_in_its_folder_asks_a_training_to_save_or_to_stop(tmp_path: Path, tiny_flux: Path) -> None:
    """And a request that was left for an earlier run counts no more."""
    write_records(tmp_path, ["id-0", "id-1"], tiny_flux)
    options = config(tmp_path, tiny_flux, max_train_steps=9, checkpointing_steps=100, ema_decay=0)
    folder = tmp_path / "lora"
    folder.mkdir()
    ask(folder, STOP)
    with pytest.raises(Stopped, match="stopped at step 4") as stopped:
        for number, _ in enumerate(train(options), 1):
            assert is_held(folder, "train")
            if number == 2:
                ask(folder, SAVE)
            if number == 4:
                ask(folder, STOP)
    assert stopped.value.exit_code == 130 and not is_held(folder, "train")
    assert [path.name for path in saved_folder(folder, 2).parent.iterdir()] == ["step-00000002"]
    assert steps_saved(folder / "checkpoints") == [4]
    assert not list(folder.glob("*.request"))
    about = read_about(saved_folder(folder, 2) / FILE_NAME)
    assert about and about["steps"] == 2
    summary = train(options).finish()
    assert (summary["resumed_at"], summary["train_steps"]) == (4, 9)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, tiny_flux: Path) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for work in (whole, damaged):
        write_records(work, ["id-1", "id-2"], tiny_flux)
        train(config(work, tiny_flux)).finish()
    (damaged / "lora" / FILE_NAME).unlink()
    newest = damaged / "lora" / "checkpoints" / "step-00000006" / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 0xFF
    newest.write_bytes(data)
    assert train(config(damaged, tiny_flux)).finish()["resumed_at"] == 4
    theirs, ours = (load_file(work / "lora" / FILE_NAME) for work in (whole, damaged))
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_a_finished_training_is_kept_and_other_settings_are_refused(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    train(config(tmp_path, tiny_flux, max_train_steps=2)).finish()
    before = (tmp_path / "lora" / FILE_NAME).stat().st_mtime_ns
    assert train(config(tmp_path, tiny_flux, max_train_steps=2)).finish()["train_steps"] == 2
    assert (tmp_path / "lora" / FILE_NAME).stat().st_mtime_ns == before
    with pytest.raises(WorkError, match="rank"):
        train(config(tmp_path, tiny_flux, max_train_steps=2, rank=8))


def test_diffusers_loads_the_lora_at_our_strength(tmp_path: Path, tiny: Path) -> None:
    """alpha is folded in, so diffusers, which reads no alpha from the file, must compute what we compute."""
    models = load_models(str(tiny), ["a dress"], device="cpu", dtype="fp32")
    transformer, backbone = models.transformer, models.backbone
    add_lora(transformer, backbone.lora_layers(transformer), rank=4, alpha=12, dropout=0.0, seed=1)
    with torch.no_grad():
        for name, tensor in lora_state(transformer).items():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=flow.generator_for(name)) * 0.1)
    latents, text = torch.randn(1, *latent_shape(models.backbone)), models.text(["a dress"])
    trained = backbone.velocity(transformer, latents, torch.tensor([0.5]), text, 1.0)
    file = tmp_path / FILE_NAME
    save_lora(file, lora_state(transformer), 4, 12, {"layout": LAYOUT.to_dict()})

    pipe = DiffusionPipeline.from_pretrained(tiny)
    pipe.load_lora_weights(tmp_path)
    theirs = backbone.velocity(pipe.transformer, latents, torch.tensor([0.5]), text, 1.0)
    assert (trained - theirs).abs().max() < 1e-5

    fresh = backbone.load_transformer()
    about = load_lora(fresh, file)
    assert about["layout"]["width"] == 32
    ours = backbone.velocity(fresh, latents, torch.tensor([0.5]), text, 1.0)
    assert (trained - ours).abs().max() < 1e-5
    half = backbone.load_transformer()
    load_lora(half, file, 0.5)
    weaker = backbone.velocity(half, latents, torch.tensor([0.5]), text, 1.0)
    assert (trained - weaker).abs().max() > 1e-3
    with safe_open(file, "pt") as stream:
        assert "lora_adapter_metadata" in stream.metadata()


def test_alpha_in_a_files_metadata_is_heeded(tmp_path: Path, tiny_flux: Path) -> None:
    """Trainers of diffusers keep alpha in lora_adapter_metadata and do not fold it; the strength must be
    theirs.
    """
    key = "transformer_blocks.0.attn.to_q"
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    tensors = {f"transformer.{key}.lora_A.weight": a, f"transformer.{key}.lora_B.weight": b}
    adapter = {"transformer.r": 4, "transformer.lora_alpha": 1, "transformer.target_modules": [key]}
    save_file(
        tensors, tmp_path / FILE_NAME, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(adapter)}
    )
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    pipe.load_lora_weights(tmp_path)
    ours = load_backbone(str(tiny_flux), "cpu", "fp32").load_transformer()
    load_lora(ours, tmp_path)
    x = torch.randn(2, 32)
    theirs = pipe.transformer.get_submodule(key)(x)
    assert (ours.get_submodule(key)(x) - theirs).abs().max() < 1e-5
    assert (ours.get_submodule(key).base_layer(x) - theirs).abs().max() > 0.1


def test_embeddings_of_another_model_are_refused(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, ["id-1"], tiny_flux)
    with pytest.raises(WorkError, match="another model"):
        train(TrainConfig(work=tmp_path, model="pocket"))


def test_settings_may_change_as_long_as_nothing_is_trained(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, ["id-1"], tiny_flux)
    run = train(config(tmp_path, tiny_flux))
    next(run)
    run.close()
    train(config(tmp_path, tiny_flux, batch_size=1, max_train_steps=1)).finish()


@pytest.mark.parametrize("damage", ["foreign", "nan", "shape", "pickle", "half"])
def test_a_lora_that_does_not_fit_is_refused_by_name(tmp_path: Path, tiny_flux: Path, damage: str) -> None:
    transformer = load_backbone(str(tiny_flux), "cpu", "fp32").load_transformer()
    a, b = torch.zeros(2, 32), torch.zeros(32, 2)
    key = "transformer_blocks.0.attn.to_q"
    state = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    file = tmp_path / FILE_NAME
    if damage == "foreign":
        state = {"nonsense.lora_A.weight": a, "nonsense.lora_B.weight": b}
    elif damage == "nan":
        b[0, 0] = float("nan")
    elif damage == "shape":
        state[f"{key}.lora_A.weight"] = torch.zeros(2, 31)
    elif damage == "half":
        del state[f"{key}.lora_B.weight"]
    save_lora(file, state, 2, 2, {})
    if damage == "pickle":
        file.write_bytes(b"\x80\x04\x95canary.")
    with pytest.raises(ModelError) as caught:
        load_lora(transformer, tmp_path)
    assert caught.value.hint


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainConfig(max_train_steps=100, lr_warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, options) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[99] < 0.001
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_batches_are_a_function_of_the_seed_and_their_number() -> None:
    ids = [f"{n}" for n in range(10)]
    assert ids_of_batch(ids, 0, 7, 4) == ids_of_batch(ids, 0, 7, 4)
    stream = [id for number in range(5) for id in ids_of_batch(ids, 0, number, 4)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == ids
    assert stream != [id for number in range(5) for id in ids_of_batch(ids, 1, number, 4)]


def test_validation_pictures_come_from_the_sampler(tmp_path: Path, tiny: Path) -> None:
    from PIL import Image

    write_records(tmp_path, ["id-1", "id-2"], tiny)
    train(config(tmp_path, tiny, max_train_steps=2, validation_steps=2)).finish()
    sheets = [
        np.asarray(Image.open(tmp_path / "lora" / "samples" / f"step-{step:06d}.png")) for step in (0, 2)
    ]
    assert all(sheet.shape == (4 * (18 + 48), 96, 3) for sheet in sheets)
    rows = [sheet.reshape(4, 66, 96, 3) for sheet in sheets]
    assert all((row[:18] != 255).any() and (row[:18] == 255).any() for row in rows[1]), (
        "each picture has a label"
    )
    assert (rows[0][0, 18:] == rows[1][0, 18:]).all() and (rows[0][1, 18:] != rows[1][1, 18:]).any(), (
        "the truth, and what is made"
    )
    board = EventAccumulator(str(tmp_path / "lora" / "tensorboard" / "triptych")).Reload()
    assert [event.step for event in board.Images("validation/pictures")] == [0, 2]


def test_read_lora_of_a_work_folder(tmp_path: Path, tiny_flux: Path) -> None:
    write_records(tmp_path, ["id-1"], tiny_flux)
    train(config(tmp_path, tiny_flux, max_train_steps=1)).finish()
    state, about = read_lora(tmp_path)
    assert about["layout"]["width"] == 32
    assert about["context"] == "noisy"
    assert about["base_model"] == tiny_flux.name, "a folder's place on this machine stays on this machine"
    assert about["recipe"]["rank"] == 4
    assert about["cpu_threads"] == torch.get_num_threads()
    assert not {"context_lora", "context_reading"} & about.keys(), "nothing that was not done"
    assert not {"context_dropout", "noise_levels"} & about["recipe"].keys()
    assert about["recipe"]["learning_rate"] == 1e-3
    more = tmp_path / "more"
    write_records(more, ["id-1", "id-2"], tiny_flux)
    train(config(more, tiny_flux, max_train_steps=1)).finish()
    assert read_lora(more)[1]["data_sha256"] != about["data_sha256"]
    assert len(state) == 2 * (12 + 2 * 5)
    shutil.rmtree(tmp_path / "lora")
    with pytest.raises(ModelError, match="no LoRA"):
        read_lora(tmp_path)
