"""A training that a signal ends: it saves, says so, and goes on to the LoRA of one that nobody stopped; and
one that goes on longer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych import cli, flow
from triptych.backbones.registry import load_backbone
from triptych.data.embeddings import read_about
from triptych.errors import ConfigError, ModelError, WorkError
from triptych.events import Event, Run
from triptych.lora.adapter import FILE_NAME, add_lora, load_lora, read_lora
from triptych.pocket.raw_catalogue import write_raw_catalogue
from triptych.signals import Stopped, ending_after_this_step, ending_at_once
from triptych.training.continuation import check_init_lora, start_from
from triptych.verbs.train import train

from .test_resume import PROCESSES, finish, rows_of, same_lora, start
from .test_train import config, write_records

OPTIONS: dict[str, Any] = {
    "max_train_steps": 60,
    "checkpointing_steps": 1000,
    "lora_dropout": 0.2,
    "gradient_checkpointing": False,
}
LENGTH = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_flux: Path) -> Path:
    """The work folder of a training that nobody stopped."""
    work = tmp_path_factory.mktemp("whole")
    write_records(work, [f"id-{n}" for n in range(3)], tiny_flux)
    finish(start(work, tiny_flux, OPTIONS))
    return work


def command_line(work: str, model: str, rank: int = 0, processes: int = 1, port: int = 0) -> None:
    """`triptych train` as a process of its own, with what it says in a file."""
    os.environ.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    options = config(Path(work), Path(model), **OPTIONS).model_dump(mode="json", exclude_defaults=True)
    words = [
        word
        for name, value in options.items()
        if value is not False
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    with (
        open(Path(work) / f"said-{rank}.txt", "w") as said,
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        code = cli.main(["train", *words, "--no-gradient-checkpointing"])
    sys.exit(code)


def wait_for(condition: Any, process: Any) -> None:
    while not condition():
        assert process.is_alive(), "it ended before it could be stopped"
        time.sleep(0.001)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_at_hand(
    tmp_path: Path, tiny_flux: Path, whole: Path, number: int, code: int
) -> None:
    shutil.copytree(whole / "embeddings", tmp_path / "embeddings")
    process = PROCESSES.Process(target=command_line, args=(str(tmp_path), str(tiny_flux)))
    process.start()
    wait_for(lambda: len(rows_of(tmp_path)) >= 3, process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    steps = len(rows_of(tmp_path))
    assert 3 <= steps < LENGTH
    assert (
        f"stopped at step {steps}, which is saved; the same command goes on from there"
        in (tmp_path / "said-0.txt").read_text()
    )
    again = PROCESSES.Process(
        target=command_line, args=(str(tmp_path), str(tiny_flux))
    )  # as `whole` was: no state of other tests
    again.start()
    again.join(60)
    assert again.exitcode == 0
    assert re.search(rf"resumed at +{steps}\n", (tmp_path / "said-0.txt").read_text())
    assert same_lora(tmp_path, whole)


def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(
    tmp_path: Path, tiny_flux: Path, whole: Path
) -> None:
    shutil.copytree(whole / "embeddings", tmp_path / "embeddings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        PROCESSES.Process(target=command_line, args=(str(tmp_path), str(tiny_flux), rank, 2, port))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    wait_for(lambda: len(rows_of(tmp_path)) >= 2, both[0])
    os.kill(both[1].pid, signal.SIGTERM)
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [143, 143]
    assert read_lora(tmp_path / "lora" / "checkpoints" / f"step-{len(rows_of(tmp_path)):08d}")[1][
        "steps"
    ] == len(rows_of(tmp_path))


def test_a_pipeline_that_is_stopped_anywhere_goes_on_with_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at the second caption, and at the second step of the training."""
    shop, work, passed = tmp_path / "shop", tmp_path / "work", Run.nested
    write_raw_catalogue(shop, items=2, seed=0)
    for name in ("human", "garment"):
        for photo in sorted((shop / "labels" / name).iterdir())[8:]:
            photo.unlink()
    options = {
        "work": str(work),
        "model": "pocket",
        "clean": {"photos": str(shop / "photos")}
        | {name: str(shop / "labels" / name) for name in ("human", "garment")},
        "caption": {"vlm_model": "pocket"},
        "train": {"max_train_steps": 4, "batch_size": 1, "rank": 2, "num_validation_images": 0},
    }
    (tmp_path / "shop.yaml").write_text(json.dumps(options))
    words, units = ["run", "--config", str(tmp_path / "shop.yaml"), "--json"], dict[str, list[str]]()

    def stopping_in(stage: str) -> Callable[[Run], Iterator[Event]]:
        def nested(run: Run) -> Iterator[Event]:
            for event in passed(run):
                units.setdefault(run.name, []).append(event.status)
                yield event
                if run.name == stage and len(units[stage]) == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        return nested

    for stage in ("caption", "train"):
        monkeypatch.setattr(Run, "nested", stopping_in(stage))
        units.clear()
        assert cli.main(words) == 130
        said = capsys.readouterr()
        assert said.out == "" and "Traceback" not in said.err
        last = said.err.strip().splitlines()[-1]
        assert "the same command" in last and ("stopped at step 2" in last) == (stage == "train")
        assert list(units)[-1] == stage
        assert not [path for path in work.rglob("*") if path.suffix in (".tmp", ".part")]
    monkeypatch.setattr(Run, "nested", stopping_in("nowhere"))
    units.clear()
    assert cli.main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert units.pop("train") == ["kept", "kept", "done", "done"]
    assert {status for statuses in units.values() for status in statuses} <= {"kept", "rejected"}
    assert (summary["train"]["resumed_at"], summary["train"]["train_steps"]) == (2, 4)
    assert read_lora(work)[1]["steps"] == 4


def test_signals_outside_a_training_end_at_once_and_inside_a_second_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ending_at_once():
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
        with ending_after_this_step() as request:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # a launcher passes it on: still one
            assert request.number == signal.SIGINT
            request.at -= 2
            os.kill(os.getpid(), signal.SIGTERM)  # whoever asks twice in words still wants the step saved
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with ending_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lora_can_be_taken_from_any_checkpoint(
    tmp_path: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    run = train(config(tmp_path, tiny_flux, max_train_steps=8))
    for event in run:
        if event.id == "step 5":
            break
    run.close()
    checkpoint = tmp_path / "lora" / "checkpoints" / "step-00000004"
    with pytest.raises(ModelError, match="is not finished") as caught:
        read_lora(tmp_path / "lora")
    assert str(checkpoint) in caught.value.hint
    shorter = tmp_path / "shorter"
    shutil.copytree(tmp_path / "embeddings", shorter / "embeddings")
    shutil.copytree(tmp_path / "lora", shorter / "lora")
    train(config(shorter, tiny_flux, max_train_steps=4)).finish()  # ends the training at that step
    expected, about = read_lora(shorter)
    assert about["steps"] == 4
    for source in (checkpoint, checkpoint / "state.safetensors"):
        out = tmp_path / f"{source.name}.safetensors"
        assert cli.main(["lora", "convert", str(source), str(out)]) == 0
        state, said = read_lora(out)
        assert said["steps"] == 4
        assert said["layout"] == about["layout"]
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
    with pytest.raises(WorkError, match="at step 4 already") as refused:
        train(config(tmp_path, tiny_flux, max_train_steps=3))
    assert "steps there: 2, 4" in refused.value.hint
    with pytest.raises(WorkError, match="of 4 steps already"):
        train(config(shorter, tiny_flux, max_train_steps=3))


def test_a_training_goes_on_longer(tmp_path: Path, tiny_flux: Path) -> None:
    longer, killed = tmp_path / "longer", tmp_path / "killed"
    for work in (longer, killed):
        write_records(work, ["id-1", "id-2"], tiny_flux)
        train(config(work, tiny_flux, max_train_steps=3)).finish()
    assert train(config(longer, tiny_flux, max_train_steps=6)).finish()["resumed_at"] == 3
    run = train(config(killed, tiny_flux, max_train_steps=6))
    for event in run:
        if event.id == "step 5" and event.status == "done":
            break
    run.close()
    assert train(config(killed, tiny_flux, max_train_steps=6)).finish()["resumed_at"] == 4
    assert same_lora(longer, killed)
    assert [row["step"] for row in rows_of(longer)] == [1, 2, 3, 4, 5, 6]
    about = read_about(longer / "lora" / FILE_NAME) or {}
    assert (about["steps"], about["lengths"]) == (6, [[0, 3], [3, 6]])
    assert train(config(longer, tiny_flux, max_train_steps=6)).finish()["loss"] is not None, (
        "and then it is done"
    )
    shutil.rmtree(longer / "lora" / "checkpoints")
    with pytest.raises(WorkError, match="no checkpoint") as caught:
        train(config(longer, tiny_flux, max_train_steps=9))
    assert "--init-lora" in caught.value.hint


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (8, 2), (6, 12)])
def test_a_training_starts_from_a_lora_at_its_very_strength(
    tmp_path: Path, tiny_flux: Path, rank: int, alpha: float
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    train(config(tmp_path, tiny_flux, max_train_steps=4, learning_rate=0.05)).finish()
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    options = config(
        tmp_path,
        tiny_flux,
        init_lora=tmp_path / "lora",
        rank=rank,
        alpha=alpha,
        lora_folder=tmp_path / "more",
    )
    loaded, started, plain = (backbone.load_transformer() for _ in range(3))
    load_lora(loaded, tmp_path / "lora")
    add_lora(started, backbone.lora_layers(started), rank, alpha, 0.0, 0)
    file = check_init_lora(options, backbone)
    assert file is not None
    start_from(file, started, options)
    x = torch.randn(2, 32, generator=flow.generator_for("x"))
    name = "transformer_blocks.0.attn.to_q"
    theirs, ours, base = (model.get_submodule(name)(x) for model in (loaded, started, plain))
    assert (theirs - base).abs().max() > 1e-3
    assert (theirs - ours).abs().max() < 1e-6
    summary = train(options).finish()
    assert summary["train_steps"] == 6
    about = read_lora(tmp_path / "more")[1]
    assert about["init_lora"]["steps"] == 4
    with pytest.raises(WorkError, match="init_lora"):
        train(options.model_copy(update={"init_lora": None}))


def test_a_lora_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, tiny_flux: Path, tiny_sd3: Path
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    train(config(tmp_path, tiny_flux, max_train_steps=1)).finish()
    at = {"init_lora": tmp_path / "lora", "lora_folder": tmp_path / "more"}
    with pytest.raises(ConfigError, match="rank 4") as caught:
        train(config(tmp_path, tiny_flux, rank=2, **at))
    assert caught.value.hint == "Give --rank 4."
    write_records(tmp_path, ["id-1", "id-2"], tiny_sd3)
    with pytest.raises(ModelError, match="one for FLUX"):
        train(config(tmp_path, tiny_sd3, **at))
    with pytest.raises(ModelError, match="no LoRA"):
        train(config(tmp_path, tiny_flux, **{**at, "init_lora": tmp_path / "nowhere"}))


def test_a_training_ended_early_keeps_the_rows_of_its_later_checkpoints(
    tmp_path: Path, tiny_flux: Path
) -> None:
    shorter, longer = tmp_path / "shorter", tmp_path / "longer"
    for work in (shorter, longer):
        write_records(work, ["id-1", "id-2"], tiny_flux)
    run = train(config(shorter, tiny_flux, max_train_steps=8))
    for event in run:
        if event.id == "step 7":
            break
    run.close()  # checkpoints of steps 2, 4 and 6
    for _ in range(2):  # made, and kept
        summary = train(config(shorter, tiny_flux, max_train_steps=4)).finish()
        assert (summary["train_steps"], read_lora(shorter / "lora")[1]["steps"]) == (4, 4)
        assert summary["loss"] == pytest.approx(sum(row["loss"] for row in rows_of(shorter)[:4]) / 4)
    assert train(config(shorter, tiny_flux, max_train_steps=8)).finish()["resumed_at"] == 6
    train(config(longer, tiny_flux, max_train_steps=8)).finish()
    assert [row["step"] for row in rows_of(shorter)] == list(range(1, 9))
    assert [row["loss"] for row in rows_of(shorter)] == [row["loss"] for row in rows_of(longer)]
    assert same_lora(shorter, longer)


def test_another_number_of_threads_is_told(
    tmp_path: Path, tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_records(tmp_path, ["id-1", "id-2"], tiny_flux)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        train(config(tmp_path, tiny_flux, max_train_steps=2)).finish()
        train(config(tmp_path, tiny_flux, max_train_steps=3)).finish()
        assert "CPU threads" not in caplog.text
        torch.set_num_threads(2)
        train(config(tmp_path, tiny_flux, max_train_steps=4)).finish()
    finally:
        torch.set_num_threads(before)
    assert "ran on 1 CPU threads before and continues with 2 CPU threads" in caplog.text
