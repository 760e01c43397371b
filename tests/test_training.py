"""The parts of the training loop: what counts in the loss, what is logged, when it stops."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from triptych import flow
from triptych.backbones.registry import load_backbone
from triptych.data.embeddings import load_record, save_record
from triptych.errors import WorkError
from triptych.lora.adapter import FILE_NAME, add_lora, read_lora
from triptych.training.checkpoints import load_newest
from triptych.training.data import ids_of_step, steps_of_epochs
from triptych.training.log import duration
from triptych.training.loss import BINS, Losses, LossMeter, losses_of
from triptych.verbs.train import train

from .test_resume import same_lora
from .test_train import LAYOUT, config, training_set, write_records


def rows(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "lora" / "train.jsonl").read_text().splitlines()]


@pytest.fixture
def work(tmp_path: Path, tiny_flux: Path) -> Path:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    return tmp_path


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
        reads.append(len(arguments[1][0].latents_BCHW))
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
    means, norm = meter.means(backbone.device, torch.tensor(2.5))
    assert norm == 2.5
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
