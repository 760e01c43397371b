"""The parts of the training loop: what is drawn, what counts in the loss, what is logged, when it stops."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import triptych
from triptych import flow
from triptych.backbones.registry import load_backbone
from triptych.cli import main
from triptych.config.stage import load_config, section, validated
from triptych.data.embeddings import load_record, save_record
from triptych.data.pairing import triptych_id
from triptych.data.triptychs import item_of
from triptych.errors import ConfigError, WorkError
from triptych.lora.adapter import FILE_NAME, add_lora, lora_state, read_lora
from triptych.tasks.tryon import TRY_ON
from triptych.training.checkpoints import load_newest, save_checkpoint
from triptych.training.data import draw_held_out, draw_time, ids_of_step, steps_of_epochs
from triptych.training.log import duration
from triptych.training.loss import BINS, Losses, LossMeter, losses_of
from triptych.training.optimizer import make_optimizer, optimizer_class
from triptych.training.state import TrainState
from triptych.verbs import STAGES
from triptych.verbs.run import PIPELINE
from triptych.verbs.train import TrainConfig, train

from .test_resume import same_lora
from .test_train import LAYOUT, config, training_set, write_records

PRESETS = sorted((Path(triptych.__file__).parent / "presets").glob("*.yaml"))


def rows(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "lora" / "train.jsonl").read_text().splitlines()]


@pytest.fixture
def work(tmp_path: Path, tiny_flux: Path) -> Path:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    return tmp_path


# --- What is drawn
# ------------------------------------------------------------------------------------------------------


def test_a_step_is_the_same_however_it_is_split_into_passes(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    drawn = []
    for size, passes in ((4, 1), (2, 2), (1, 4)):
        data = training_set(work, config(work, tiny_flux, batch_size=size, caption_dropout=0.5))
        batches = [data.draw(backbone, 3, number, passes) for number in range(passes)]
        drawn.append(
            [
                torch.cat([getattr(batch, name) for batch in batches])
                for name in ("clean_BCHW", "noise_BCHW", "t_B")
            ]
        )
        drawn[-1].append(torch.cat([batch.text["prompt_embeds"] for batch in batches]))
    for parts in zip(*drawn, strict=True):
        assert torch.equal(parts[0], parts[1]) and torch.equal(parts[0], parts[2])


def test_each_step_is_of_one_bucket_and_every_id_is_seen_equally_often() -> None:
    buckets = [[f"a{n}" for n in range(5)], [f"b{n}" for n in range(2)], ["c"]]
    steps = [ids_of_step(buckets, 7, step, 3) for step in range(5 * 8)]
    assert all(len({id[0] for id in ids}) == 1 for ids in steps)
    assert set(Counter(id for ids in steps for id in ids).values()) == {15}
    assert len({ids[0][0] for ids in steps[:8]}) == 3, "buckets take turns"
    assert steps != [ids_of_step(buckets, 8, step, 3) for step in range(40)]


def test_canvases_of_two_sizes_train_in_batches_of_one_size(work: Path, tiny_flux: Path) -> None:
    wide = TRY_ON.layout(48, 32)
    write_records(work, ["id-5", "id-6"], tiny_flux, wide)
    options = config(work, tiny_flux)
    backbone, data = load_backbone(str(tiny_flux), "cpu", "fp32"), training_set(work, options)
    layouts = [data.draw(backbone, step, 0, 1).layout for step in range(6)]
    assert Counter(layout.size for layout in layouts) == {LAYOUT.size: 4, wide.size: 2}
    train(options).finish()
    assert len(rows(work)) == 6


def test_noise_levels_keep_to_their_range_and_shift(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")

    def times(**changes: Any) -> torch.Tensor:
        options = config(work, tiny_flux, **changes)
        return torch.stack([draw_time(options, backbone, LAYOUT, flow.generator_for(n)) for n in range(400)])

    plain = times(shift=1.0)
    assert plain.median().item() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(times(shift=3.0), 3 * plain / (1 + 2 * plain))
    assert torch.equal(times(), times(shift=float(np.exp(backbone.mu(2 * 3, 28)))))
    narrow = times(shift=1.0, min_t=0.2, max_t=0.6)
    assert torch.allclose(narrow, 0.2 + 0.4 * plain)


def test_whole_items_are_held_out() -> None:
    ids = [f"dress-{n}-{worn:012x}" for n in range(6) for worn in range(3)] + ["my-own"]
    items = {id: item_of(id, None) for id in ids}  # records of older versions, which name no item
    held = draw_held_out(items, 0, 4)
    assert len(held) in (4, 6)
    assert {items[id] for id in ids if id in held}.isdisjoint(items[id] for id in ids if id not in held)
    assert draw_held_out(items, 0, 0) == []
    assert {tuple(draw_held_out(items, seed, 4)) for seed in range(5)} != {tuple(held)}


LONG = "a-very-long-stock-number-" * 3
NAMES = ["红色连衣裙", "蓝色外套", "ワンピース", "تنورة", "платье-1", "юбка-1", LONG + "a", LONG + "b"]


def test_items_of_any_script_and_length_are_told_apart() -> None:
    items = {triptych_id(name, f"{worn}"): name for name in NAMES for worn in range(2)}
    for count in (1, 2, 3):
        held = draw_held_out(items, 0, count)
        assert len(held) == 2 * -(-count // 2), "whole items of two, and no more of them than asked for"
    alone = {id: item_of(id, None) for id in items if id.startswith("item-")}
    assert len(draw_held_out(alone, 0, 1)) == 1, "where nobody says, names without ASCII are not one item"


def test_training_sees_draws_of_the_posterior_and_not_its_mean(work: Path, tiny_flux: Path) -> None:
    data = training_set(work, config(work, tiny_flux, batch_size=4))
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    batches = [data.draw(backbone, step, 0, 1) for step in range(2)]
    means = {
        float(data.records[id].latent_mean_CHW.mean().round()): data.records[id].latent_mean_CHW
        for id in data.ids
    }
    apart = torch.stack(
        [latents - means[float(latents.mean().round())] for batch in batches for latents in batch.clean_BCHW]
    )
    assert 0.009 < float(apart.std()) < 0.011, "the records' posteriors are 0.01 wide"
    assert len({float(one.sum()) for one in apart}) == 8, "each draw is another"


# --- The loss
# -----------------------------------------------------------------------------------------------------------


def losses_where_only_one_panel_is_wrong(
    work: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, **changes: Any
) -> Losses:
    """The true velocity but for an error of 2 in one panel."""
    options = config(work, tiny_flux, **changes)
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    batch = training_set(work, options).draw(backbone, 0, 0, 1)
    error = 2.0 * torch.from_numpy(LAYOUT.mask([wrong], 8))
    truth = flow.velocity_target(batch.clean_BCHW, batch.noise_BCHW)
    monkeypatch.setattr(backbone, "velocity", lambda *_: truth + error)
    return losses_of(options, backbone, torch.nn.Identity(), batch)


def test_panel_weights_weigh_the_means_of_panels(
    work: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = losses_where_only_one_panel_is_wrong(work, tiny_flux, monkeypatch, "back")
    assert torch.allclose(plain.panel_BP, torch.tensor([[0.0, 4.0, 0.0]] * 2))
    assert torch.allclose(plain.sample_B, torch.full((2,), 4 / 3)), "as the plain mean squared error"
    weights = {"front": 1.0, "back": 0.5, "worn": 2.5}
    weighed = losses_where_only_one_panel_is_wrong(
        work, tiny_flux, monkeypatch, "back", panel_weights=weights
    )
    assert torch.allclose(weighed.sample_B, torch.full((2,), 0.5))
    small = {"front": 0.1, "back": 0.1, "worn": 0.0}
    weighed = losses_where_only_one_panel_is_wrong(work, tiny_flux, monkeypatch, "back", panel_weights=small)
    assert torch.allclose(weighed.sample_B, torch.full((2,), 2.0)), "only their proportion matters"
    named = losses_where_only_one_panel_is_wrong(
        work, tiny_flux, monkeypatch, "back", panel_weights={"back": 2.0}
    )
    assert torch.allclose(named.sample_B, torch.full((2,), 2.0)), "a panel that is not named weighs 1"


def test_a_loss_mask_says_where_errors_count_and_panels_stay_equal(
    work: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = work / "masks"
    masks.mkdir()
    pixels = np.zeros((48, 96), dtype=np.uint8)
    pixels[:8, :4] = 255  # half of one latent of the front
    pixels[:, 64:] = 255  # the worn panel; nothing of the back
    for n in range(1, 5):
        Image.fromarray(pixels).save(masks / f"id-{n}.png")
    at = {"loss_masks": masks}
    front = losses_where_only_one_panel_is_wrong(work, tiny_flux, monkeypatch, "front", **at)
    assert torch.allclose(front.sample_B, torch.full((2,), 2.0)), (
        "half a latent of the front weighs as much as all of the worn panel"
    )
    assert torch.equal(front.area_BP, torch.tensor([[0.5, 0.0, 24.0]] * 2))
    back = losses_where_only_one_panel_is_wrong(work, tiny_flux, monkeypatch, "back", **at)
    assert torch.equal(back.sample_B, torch.zeros(2))
    before = training_set(work, config(work, tiny_flux, **at)).fingerprint
    Image.fromarray(255 - pixels).save(masks / "id-1.png")
    assert training_set(work, config(work, tiny_flux, **at)).fingerprint != before, (
        "another mask is another training"
    )


def test_nothing_outside_the_learned_part_has_a_gradient(
    work: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(work, tiny_flux, panel_weights={"front": 0.0})
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    batch = training_set(work, options).draw(backbone, 0, 0, 1)
    predicted = torch.randn(2, 16, 6, 12, requires_grad=True)
    monkeypatch.setattr(backbone, "velocity", lambda *_: predicted)
    losses_of(options, backbone, torch.nn.Identity(), batch).sample_B.mean().backward()
    assert predicted.grad is not None
    assert (predicted.grad[..., :4] == 0).all()
    assert (predicted.grad[..., 4:] != 0).all()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_noise_levels_share_one_reading_and_learn_the_same(work: Path, tiny: Path, batch_size: int) -> None:
    """Three levels at once: the losses and gradients of three batches, each with a reading of its own."""
    options = config(work, tiny, context="clean", noise_levels=3, batch_size=batch_size)
    write_records(work, [f"id-{n}" for n in range(1, 5)], tiny)
    backbone, data = load_backbone(str(tiny), "cpu", "fp32"), training_set(work, options)
    transformer = backbone.load_transformer()
    parameters = add_lora(transformer, backbone.lora_layers(transformer), 4, 4, 0.0, 0)
    torch.manual_seed(0)
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.05)
    reads = []
    monkey = type(backbone).read

    def counted(self: Any, *arguments: Any) -> Any:
        reads.append(len(arguments[1]))
        return monkey(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone), "read", counted)
        batch = data.draw(backbone, 5, 0, 1)
        assert len(batch.t_B) == 3 * batch_size and len(set(batch.t_B.tolist())) == 3 * batch_size
        together = losses_of(options, backbone, transformer, batch).sample_B
    assert reads == [batch_size]
    gradients = torch.autograd.grad(together.mean(), parameters)
    parts = []
    for level in range(3):
        rows_of = {
            name: getattr(batch, name)[level::3]
            for name in ("clean_BCHW", "noise_BCHW", "t_B", "learned_BHW")
        }
        alone = replace(
            batch, **rows_of, text={name: value[level::3] for name, value in batch.text.items()}, levels=1
        )
        parts.append(losses_of(options, backbone, transformer, alone).sample_B)
    assert torch.allclose(together, torch.stack(parts, 1).flatten(), rtol=1e-5, atol=1e-6)
    separate = torch.autograd.grad(torch.stack(parts).mean(), parameters)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, separate, strict=True))


def test_the_log_has_the_loss_by_panel_and_noise_level(work: Path, tiny_flux: Path) -> None:
    train(config(work, tiny_flux, batch_size=4, gradient_accumulation_steps=3)).finish()
    for row in rows(work):
        assert {
            "tokens_per_second",
            "seconds_per_step",
            "peak_memory_gib",
            "grad_norm",
            "learning_rate",
        } <= row.keys()
        assert row["loss"] == pytest.approx(sum(row[f"loss/{role}"] for role in LAYOUT.roles) / 3, rel=1e-4)
        assert row["tokens_per_second"] * row["seconds_per_step"] == pytest.approx(12 * 18, rel=1e-4)
        assert 0.05 < row["peak_memory_gib"] < 64
    assert {name for row in rows(work) for name in row} >= {f"loss/{name}" for name in BINS}
    assert list((work / "lora" / "tensorboard" / "triptych").glob("events*"))


def test_the_meter_sorts_by_noise_level(work: Path, tiny_flux: Path) -> None:
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    data, meter = training_set(work, config(work, tiny_flux)), LossMeter()
    for t, loss in ((0.1, 1.0), (0.3, 2.0), (0.3, 4.0), (1.0, 5.0)):
        one = torch.tensor([[loss] * 3])
        meter.add(data.fixed(backbone, "id-1", t), Losses(one, torch.tensor([[1.0, 1.0, 0.0]]), one[:, 0]))
    means = meter.means(backbone.device)
    assert means == {
        "loss": 3.0,
        "loss/front": 3.0,
        "loss/back": 3.0,
        f"loss/{BINS[0]}": 1.0,
        f"loss/{BINS[1]}": 3.0,
        f"loss/{BINS[3]}": 5.0,
    }


# --- Validation and stopping
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_the_validation_loss_is_the_same_for_the_same_weights(
    work: Path, tiny_flux: Path, context: str
) -> None:
    """With a learning rate of next to nothing the LoRA stays what it was; the training loss still varies."""
    options = {
        "learning_rate": 1e-30,
        "validation_steps": 1,
        "num_validation_triptychs": 2,
        "max_train_steps": 3,
        "context": context,
    }
    summary = train(config(work, tiny_flux, num_validation_images=0, batch_size=4, **options)).finish()
    assert (summary["triptychs"], summary["held_out"]) == (2, 2)
    found = [
        {name: value for name, value in row.items() if name.startswith("validation/")} for row in rows(work)
    ]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == [
        "validation/loss",
        "validation/t 0.25",
        "validation/t 0.50",
        "validation/t 0.75",
        "validation/t 1.00",
    ]
    assert found[0]["validation/loss"] == pytest.approx(sum(list(found[0].values())[1:]) / 4, rel=1e-5)
    assert summary["validation_loss"] == pytest.approx(found[0]["validation/loss"], rel=1e-5)
    assert len({row["loss"] for row in rows(work)}) == 3


def test_held_out_triptychs_are_not_trained_on(work: Path, tiny_flux: Path) -> None:
    data = training_set(work, config(work, tiny_flux, num_validation_triptychs=1))
    seen = {id for step in range(20) for id in ids_of_step(data.buckets, 0, step, 4)}
    assert len(data.held_out) == 1
    assert seen == {f"id-{n}" for n in range(1, 5)} - set(data.held_out)
    with pytest.raises(ConfigError, match=r"None of the 4 triptychs is left"):
        training_set(work, config(work, tiny_flux, num_validation_triptychs=4))


def test_training_stops_early_and_keeps_the_best_also_when_resumed(
    work: Path, tiny_flux: Path, tmp_path: Path
) -> None:
    """At this learning rate the validation loss rises again soon."""
    early = {
        "early_stopping_patience": 2,
        "num_validation_triptychs": 1,
        "validation_steps": 2,
        "num_validation_images": 0,
    }
    options = {
        **early,
        "max_train_steps": 60,
        "learning_rate": 0.5,
        "lr_warmup_steps": 4,
        "ema_decay": 0.0,
        "gradient_checkpointing": False,
    }
    summary = train(config(work, tiny_flux, **options)).finish()
    losses = [row["validation/loss"] for row in rows(work) if "validation/loss" in row]
    assert summary["train_steps"] == 2 * len(losses) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    assert read_lora(work)[1]["steps"] == summary["train_steps"]
    assert train(config(work, tiny_flux, **options)).finish()["train_steps"] == summary["train_steps"]

    best = tmp_path / "best"  # the LoRA kept is the one of the lowest loss
    write_records(best, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    run = train(config(best, tiny_flux, **options))
    for number, _ in enumerate(run, 1):
        if number == summary["train_steps"] - 4:
            run.close()
            break
    at_best = load_newest(best / "lora" / "checkpoints")
    assert at_best is not None and at_best[0] == summary["train_steps"] - 4
    kept = load_file(work / "lora" / FILE_NAME)
    assert all(
        torch.equal(kept[f"transformer.{name.removeprefix('ema.')}"], t)
        for name, t in at_best[1].items()
        if name.startswith("ema.")
    )
    train(config(best, tiny_flux, **options)).finish()
    assert same_lora(work, best)


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(work: Path, tiny_flux: Path) -> None:
    options = config(work, tiny_flux, batch_size=1, max_train_steps=20, checkpointing_steps=10)
    fourth = ids_of_step(training_set(work, options).buckets, options.seed, 3, 1)[0]
    path = work / "embeddings" / "flux" / f"{fourth}.safetensors"
    record = load_record(path)
    record.latent_mean_CHW[3, 2, 5] = float("nan")
    save_record(record, path)
    for _ in range(2):  # the second time from the state that was left
        with pytest.raises(WorkError, match="not finite after step 3") as caught:
            train(options).finish()
        assert "--learning-rate" in caught.value.hint
    found = load_newest(work / "lora" / "checkpoints")
    assert found is not None and found[0] == 3
    assert all(tensor.isfinite().all() for tensor in found[1].values())
    assert not (work / "lora" / FILE_NAME).exists()
    assert [row["step"] for row in rows(work)] == [1, 2, 3]


def test_a_gradient_that_is_no_number_stops_too(work: Path, tiny_flux: Path) -> None:
    """So large an alpha leaves the first loss what it is, since B is zero, but not the gradient's norm."""
    options = config(work, tiny_flux, alpha=1e24)
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    with torch.no_grad():
        batch = training_set(work, options).draw(backbone, 0, 0, 1)
        assert losses_of(options, backbone, backbone.load_transformer(), batch).sample_B.isfinite().all()
    with pytest.raises(WorkError, match="not finite after step 0"):
        train(options).finish()
    assert not list((work / "lora").glob("checkpoints/step-*"))
    assert not (work / "lora" / FILE_NAME).exists()


def test_weights_that_are_no_numbers_are_never_saved(work: Path, tiny_flux: Path) -> None:
    """The first gradient is finite, but weight decay makes some weights overflow."""
    options = {
        "learning_rate": 3e30,
        "weight_decay": 1e8,
        "rank": 1,
        "lr_warmup_steps": 0,
        "checkpointing_steps": 1,
    }
    with pytest.raises(WorkError, match="not finite after step 1"):
        train(config(work, tiny_flux, **options)).finish()
    assert not list((work / "lora").glob("checkpoints/step-*"))
    assert not (work / "lora" / FILE_NAME).exists()


def test_a_resumed_run_has_as_many_events_as_it_says(work: Path, tiny_flux: Path) -> None:
    run = train(config(work, tiny_flux))
    next(event for event in run if event.id == "step 4")
    run.close()
    events = list(train(config(work, tiny_flux)))
    assert [event.status for event in events] == ["kept"] * 4 + ["done"] * 2
    assert events[-1].note.endswith("s/step"), "the time that is left stands in the bar"


def test_a_full_disk_under_tensorboard_is_a_sentence(tmp_path: Path) -> None:
    code = (
        "import resource, sys, time; from pathlib import Path; from triptych.training.log import TrainLog\n"
        "from triptych.errors import WorkError\n"
        "log = TrainLog(Path(sys.argv[1]), Path(sys.argv[1]) / 'board', 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n    for step in range(100): log.draw(step, {'loss/worn': 1.0}); time.sleep(0.005)\n    "
        "log.flush()\n"
        "except WorkError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], timeout=120, capture_output=True, text=True
    )
    assert "disk is full" in done.stdout
    assert "Traceback" not in done.stderr


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (8.4, 89, 600, 5399, 12000)] == [
        "8 s",
        "89 s",
        "10 min",
        "1 h 30 min",
        "3 h 20 min",
    ]


def test_epochs_are_passes_over_what_is_trained_on(work: Path, tiny_flux: Path) -> None:
    assert steps_of_epochs(2, 40, 4) == 20
    assert steps_of_epochs(0.5, 3, 4) == 1
    run = train(
        config(
            work, tiny_flux, epochs=3, batch_size=1, gradient_accumulation_steps=2, num_validation_triptychs=1
        )
    )
    assert len(run) == 5
    assert run.finish()["train_steps"] == 5
    by_steps = config(
        work,
        tiny_flux,
        max_train_steps=5,
        batch_size=1,
        gradient_accumulation_steps=2,
        num_validation_triptychs=1,
    )
    assert train(by_steps).finish()["train_steps"] == 5, "the same training, said otherwise"


# --- Checkpoints
# --------------------------------------------------------------------------------------------------------


def test_a_new_checkpoint_is_kept_and_damaged_later_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, {"x": torch.tensor([float(step)])}, {"k": step, "d": 0.1}, keep=3)
    (tmp_path / "step-00000006" / "state.safetensors").write_bytes(b"damaged")
    (tmp_path / "step-00000004" / "state.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        found = load_newest(tmp_path)
    assert (
        found is not None
        and found[0] == 2
        and found[1]["x"].tolist() == [2.0]
        and found[2] == {"k": 2, "d": 0.1}
    )
    assert "step-00000006 is damaged" in caplog.text and "step-00000004 cannot be read" in caplog.text
    save_checkpoint(tmp_path, 3, {"x": torch.tensor([3.0])}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    (tmp_path / "step-00000003" / "state.safetensors").unlink()
    assert load_newest(tmp_path) is None
    assert "starting from the beginning" in caplog.text


def test_no_checkpoint_is_deleted_before_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(1)}, {}, keep=1)

    def no_space(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(WorkError, match="disk is full"):
        save_checkpoint(tmp_path, 2, {"x": torch.ones(1)}, {}, keep=1)
    found = load_newest(tmp_path)
    assert found is not None and found[0] == 1


def test_a_training_folder_holds_no_pickle(work: Path, tiny_flux: Path) -> None:
    train(config(work, tiny_flux, max_train_steps=2)).finish()
    files = [file for file in (work / "lora").rglob("*") if file.is_file()]
    kinds = {file.suffix for file in files if not file.name.startswith("events.out.tfevents")}
    assert kinds - {".lock"} == {".safetensors", ".json", ".jsonl"}


# --- Optimizers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_optimizer_that_is_not_installed_is_named_before_any_work(
    work: Path, tiny_flux: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs the package {package}, which is not installed") as caught:
        train(config(work, tiny_flux, optimizer=name, learning_rate=1.0))
    assert "triptych[optimizers]" in caught.value.hint
    assert not (work / "lora").exists()


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "prodigy"])
def test_every_optimizers_state_survives_a_checkpoint(
    work: Path, tiny_flux: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        optimizer_class(name)
    except ConfigError as error:
        pytest.skip(str(error))
    options = config(
        work, tiny_flux, optimizer=name, learning_rate=1.0 if name == "prodigy" else 1e-2, rank=256
    )

    def begin() -> TrainState:
        transformer = load_backbone(str(tiny_flux), "cpu", "fp32").load_transformer()
        parameters = add_lora(
            transformer, ("attn.to_q",), 256, 256, 0.0, 0
        )  # large enough for 8 bits: 4096 numbers
        return TrainState(transformer, parameters, make_optimizer(options, parameters))

    def go(state: TrainState, steps: int) -> None:
        for _ in range(steps):
            for number, parameter in enumerate(state.parameters):
                parameter.grad = torch.randn(
                    parameter.shape, generator=flow.generator_for(state.step, number)
                )
            state.update(options.learning_rate, 0.9)

    one, two = begin(), begin()
    go(one, 6)
    go(two, 3)
    two.save(tmp_path / "checkpoints", 1)
    three = begin()
    three.restore(tmp_path / "checkpoints")
    assert three.step == 3
    go(three, 3)
    for state in (lora_state(one.transformer), one.average):
        other = lora_state(three.transformer) if state is not one.average else three.average
        assert all(torch.equal(state[key], other[key]) for key in state)
    assert any((a != b).any() for a, b in zip(one.average.values(), two.average.values(), strict=True))
    assert capsys.readouterr().out == "", "stdout is for the summary"


# --- Settings
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_t": 0.6, "max_t": 0.6}, "No noise level lies between --min-t 0.6 and --max-t 0.6"),
        ({"panel_weights": {"side": 1.0}}, "'side: 1' has no meaning"),
        ({"panel_weights": {"worn": -1.0}}, "'worn: -1' has no meaning"),
        ({"panel_weights": {"worn": 0.0}, "context": "clean"}, "weight 0"),
        ({"noise_levels": 4}, "--noise-levels does nothing with noisy context"),
        ({"context_lora": True}, "--context-lora does nothing with noisy context"),
        ({"context_reading": "products"}, "--context-reading does nothing with noisy context"),
        ({"context_dropout": 0.0}, "--context-dropout does nothing with noisy context"),
        ({"shard_base": True, "quantize": "int8"}, "cannot be quantised or swapped"),
        ({"early_stopping_patience": 2, "num_validation_triptychs": 1}, "nothing is validated"),
        ({"optimizer": "prodigy", "learning_rate": 1e-4}, "0.0001 would learn nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    work: Path, tiny_flux: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(config(work, tiny_flux, **changes))
    assert message in str(caught.value)
    assert caught.value.hint


def test_the_command_line_weighs_panels_and_counts_epochs(
    work: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--work",
        str(work),
        "--model",
        str(tiny_flux),
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--validation-steps",
        "0",
    ]
    options = ["--epochs", "1", "--panel-weights.worn", "2", "--panel-weights.back", "0.5", "--json"]
    assert main(["train", *words, *options]) == 0
    assert json.loads(capsys.readouterr().out)["train_steps"] == 1
    assert read_lora(work)[1]["recipe"]["panel_weights"] == {"worn": 2.0, "back": 0.5}


def test_defaults_are_the_published_recipe() -> None:
    """ali-vilab's config/movie-shots.yml, which is AdamW in 8 bits besides."""
    options = TrainConfig()
    assert (options.rank, options.alpha, options.learning_rate, options.batch_size) == (16, 16, 1e-4, 4)
    assert (options.ema_decay, options.caption_dropout, options.guidance_scale, options.context) == (
        0.99,
        0.05,
        1.0,
        "noisy",
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_configs_that_every_stage_accepts(preset: Path) -> None:
    data = load_config(
        [Path(__file__).parents[1] / "configs" / "flux-dev.yaml", Path(preset.stem)],
        STAGES,
    )
    configs: dict[str, Any] = {}
    for stage in PIPELINE:
        _, model = stage.load()
        configs[stage.name] = validated(model, section(data, stage.name, model), stage.name)
    options = configs["train"]
    assert options.batch_size * options.gradient_accumulation_steps == 4, (
        "the recipe's batch, however it is split"
    )
    card = int(preset.stem.removesuffix("gb"))
    assert options.quantize == ("none" if card == 80 else "int8-torchao" if card == 24 else "nf4")
    for verb in ("generate", "tryon"):  # with the base the LoRA was trained on
        _, model = next(stage for stage in STAGES if stage.name == verb).load()
        assert validated(model, section(data, verb, model), verb).quantize == options.quantize  # type: ignore[attr-defined]
    assert configs["concat"].panel_width % 16 == configs["concat"].panel_height % 16 == 0


def test_there_is_a_preset_for_each_size_of_card() -> None:
    assert {path.stem for path in PRESETS} == {"12gb", "16gb", "24gb", "80gb"}
