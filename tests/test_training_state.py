"""The state of a training as its checkpoints hold it: LoRA, average and optimizer."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from triptych import flow
from triptych.backbones.registry import load_backbone
from triptych.errors import ConfigError, WorkError
from triptych.lora.adapter import add_lora, lora_state
from triptych.training.checkpoints import load_newest, save_checkpoint
from triptych.training.optimizer import make_optimizer, optimizer_class
from triptych.training.state import TrainState
from triptych.verbs.train import train

from .test_train import config, write_records


@pytest.fixture
def work(tmp_path: Path, tiny_flux: Path) -> Path:
    write_records(tmp_path, [f"id-{n}" for n in range(1, 5)], tiny_flux)
    return tmp_path


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
