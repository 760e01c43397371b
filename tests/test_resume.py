"""A training that is stopped anywhere, or spread over two processes, makes the same LoRA."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triptych.data.shards import Packer
from triptych.errors import WorkError
from triptych.events import Run
from triptych.lora.adapter import FILE_NAME
from triptych.training import checkpoints
from triptych.verbs import train as train_module
from triptych.verbs.train import train

from .test_train import config, write_records

# Two passes to a step and a checkpoint after steps 2, 4 and 5; everything random is on.
OPTIONS: dict[str, Any] = {
    "max_train_steps": 5,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.2,
    "caption_dropout": 0.3,
    "gradient_checkpointing": False,
    "checkpoints_total_limit": 1,
}


CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_flux: Path) -> Path:
    """The work folder of a training that nobody stopped."""
    work = tmp_path_factory.mktemp("whole")
    write_records(work, [f"id-{n}" for n in range(3)], tiny_flux)
    train(config(work, tiny_flux, **OPTIONS)).finish()
    return work


def same_lora(a: Path, b: Path) -> bool:
    left, right = (load_file(work / "lora" / FILE_NAME) for work in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def stop_here() -> None:
    raise Stopped


def stop_at(
    call: int, function: Callable, stop: Callable[[], None], instead: Callable | None = None
) -> Callable:
    """`function`, but at its n-th call the process ends, after doing what `instead` does."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            if instead is not None:
                instead(*args, **kwargs)
            stop()
        return function(*args, **kwargs)

    return wrapped


def half_written(tensors: dict, path: Path, metadata: dict) -> None:
    checkpoints_save_file(tensors, path, metadata)
    os.truncate(path, path.stat().st_size // 2)


checkpoints_save_file = checkpoints.save_file

POINTS = [
    *[
        ("in a forward pass", number) for number in range(1, 11)
    ],  # every second one between two passes of a step
    *[("after a step", number) for number in range(1, 5)],
    *[
        (place, number)
        for place in ("tensors half written", "no hash yet", "not published yet", "not pruned yet")
        for number in (1, 2, 3)
    ],
]


def run_and_stop(
    run: Run, place: str, number: int, patch: pytest.MonkeyPatch, stop: Callable[[], None]
) -> None:
    """Iterate a training that calls `stop` at a place, when it comes there for the n-th time."""
    if place == "in a forward pass":
        patch.setattr(train_module, "losses_of", stop_at(number, train_module.losses_of, stop))
    elif place == "tensors half written":
        patch.setattr(checkpoints, "save_file", stop_at(number, checkpoints.save_file, stop, half_written))
    elif place == "no hash yet":
        patch.setattr(checkpoints, "write_json", stop_at(number, checkpoints.write_json, stop))
    elif place == "not published yet":
        patch.setattr(checkpoints, "rename", stop_at(number, checkpoints.rename, stop))
    elif place == "not pruned yet":
        patch.setattr(checkpoints, "_prune", stop_at(number, checkpoints._prune, stop))
    for done, _ in enumerate(run, 1):
        if place == "after a step" and done == number:
            run.close()
            stop()


def steps_saved(place: str, number: int) -> int:
    """The step of the newest whole checkpoint after a stop."""
    done = {"in a forward pass": (number - 1) // 2, "after a step": number}.get(place)
    return (
        min(4, done // 2 * 2)
        if done is not None
        else [0, 2, 4, 5][number if place == "not pruned yet" else number - 1]
    )


OFTEN = {
    *(("in a forward pass", number) for number in (1, 2, 7, 10)),
    *(("after a step", number) for number in (1, 4)),
    *(("tensors half written", number) for number in (1, 3)),
    *(("not published yet", number) for number in (1, 2)),
    *(("not pruned yet", number) for number in (2, 3)),
    ("no hash yet", 2),
}
"""Every kind, first and last, in `make test`; all of them in `make test-slow`."""


def mostly_slow(often: set[tuple[str, int]]) -> list[Any]:
    return [point if point in often else pytest.param(*point, marks=pytest.mark.slow) for point in POINTS]


@pytest.mark.parametrize(("place", "number"), mostly_slow(OFTEN))
def test_a_run_stopped_anywhere_makes_the_same_lora(
    tmp_path: Path, tiny_flux: Path, whole: Path, place: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "embeddings", tmp_path / "embeddings")
    run = train(config(tmp_path, tiny_flux, **OPTIONS))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        run_and_stop(run, place, number, patch, stop_here)
    assert not (tmp_path / "lora" / FILE_NAME).exists()
    summary = train(config(tmp_path, tiny_flux, **OPTIONS)).finish()
    assert summary["resumed_at"] == steps_saved(place, number)
    assert same_lora(tmp_path, whole)
    rows = [json.loads(line) for line in (tmp_path / "lora" / "train.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (whole / "lora" / "train.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in kept]
    standing = sorted(path.name for path in (tmp_path / "lora" / "checkpoints").iterdir())
    # Where nothing was left to save, nothing was pruned either.
    assert (
        standing == ["step-00000005"]
        if (place, number) != ("not pruned yet", 3)
        else ["step-00000004", "step-00000005"]
    )


def test_there_are_enough_stop_points() -> None:
    assert len(set(POINTS)) >= 25


# --- Real processes
# -----------------------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("forkserver")  # torch is imported once; its children start at once


def run_process(
    work: str,
    model: str,
    options: dict[str, Any],
    environment: dict[str, str],
    point: tuple[str, int] | None = None,
) -> None:
    """Train; with a `point` the process kills itself there."""
    os.environ.update(environment)
    run = train(config(Path(work), Path(model), **options))
    if point is None:
        run.finish()
    else:
        with pytest.MonkeyPatch.context() as patch:
            run_and_stop(run, *point, patch, lambda: os.kill(os.getpid(), signal.SIGKILL))


def start(
    work: Path,
    model: Path,
    options: dict[str, Any],
    processes: int = 1,
    stops: dict[int, tuple[str, int]] | None = None,
) -> list[Any]:
    """Start processes that train together; `stops`: where the process of a rank kills itself."""
    port = free_port()
    PROCESSES.set_forkserver_preload(["triptych.verbs.train", "torch.utils.tensorboard", "tests.test_train"])
    started = []
    for rank in range(processes):
        environment = {
            "WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        process = PROCESSES.Process(
            target=run_process, args=(str(work), str(model), options, environment, (stops or {}).get(rank))
        )
        process.start()
        started.append(process)
    return started


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def finish(processes: list[Any]) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def kill_when(condition: Callable[[], bool], processes: list[Any]) -> None:
    """`kill -9` as soon as something is so; fails if the training ends before."""
    while not condition():
        assert all(process.is_alive() for process in processes), "it ended before it could be killed"
        time.sleep(0.001)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(30)
        assert process.exitcode == -signal.SIGKILL


def rows_of(work: Path) -> list[dict[str, float]]:
    path = work / "lora" / "train.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


@pytest.mark.slow  # kills at single places stand in `make test`
def test_a_run_killed_again_and_again_makes_the_same_lora(
    tmp_path: Path, tiny_flux: Path, whole: Path
) -> None:
    longer = {**OPTIONS, "max_train_steps": 60, "lr_warmup_steps": 2}
    killed, untouched = tmp_path / "killed", tmp_path / "untouched"
    for work in (killed, untouched):
        shutil.copytree(whole / "embeddings", work / "embeddings")
    parts = killed / "lora" / "checkpoints"
    conditions = [
        lambda: len(rows_of(killed)) >= 5,
        lambda: any(parts.glob(".part-*")) and len(rows_of(killed)) >= 8,  # in the midst of a save
        lambda: len(rows_of(killed)) >= 17,
        lambda: any(parts.glob(".part-*")) and len(rows_of(killed)) >= 20,
    ]
    for condition in conditions:
        kill_when(condition, start(killed, tiny_flux, longer))
    finish(start(killed, tiny_flux, longer))
    finish(start(untouched, tiny_flux, longer))
    assert same_lora(killed, untouched)


def test_two_processes_make_the_lora_of_one_and_resume(tmp_path: Path, tiny_flux: Path, whole: Path) -> None:
    """One process with two passes to a step has the same global batch as two with one; order of summation
    apart.
    """
    halves = {**OPTIONS, "gradient_accumulation_steps": 1, "num_validation_triptychs": 0}
    two, killed = tmp_path / "two", tmp_path / "killed"
    for work in (two, killed):
        shutil.copytree(whole / "embeddings", work / "embeddings")
    finish(start(two, tiny_flux, halves, 2))
    ones, twos = rows_of(whole), rows_of(two)
    assert len(ones) == len(twos) == 5
    for one, other in zip(ones, twos, strict=True):
        names = {name for name in one if name.startswith(("loss", "grad_norm"))}
        assert "loss/worn" in names and names <= other.keys()
        assert all(abs(one[name] - other[name]) <= 1e-5 * max(1.0, abs(one[name])) for name in names)
    kill_when(lambda: len(rows_of(killed)) >= 3, start(killed, tiny_flux, halves, 2))
    finish(start(killed, tiny_flux, halves, 2))
    assert same_lora(two, killed)
    with pytest.raises(WorkError, match="processes"):
        train(config(two, tiny_flux, **halves))


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory, tiny_flux: Path, whole: Path) -> Path:
    """The work folder of a training by two processes that nobody stopped."""
    work = tmp_path_factory.mktemp("two")
    shutil.copytree(whole / "embeddings", work / "embeddings")
    finish(start(work, tiny_flux, OPTIONS, 2))
    return work


SOME = {("in a forward pass", 4), ("after a step", 3), ("tensors half written", 2), ("not published yet", 2)}


@pytest.mark.parametrize(("place", "number"), mostly_slow(SOME))
def test_two_processes_stopped_anywhere_make_the_same_lora(
    tmp_path: Path, tiny_flux: Path, whole_of_two: Path, place: str, number: int
) -> None:
    """One of the two is killed, the other one with it; the first alone saves, so it is the one that dies
    while saving.
    """
    shutil.copytree(whole_of_two / "embeddings", tmp_path / "embeddings")
    victim = number % 2 if place in ("in a forward pass", "after a step") else 0
    processes = start(tmp_path, tiny_flux, OPTIONS, 2, {victim: (place, number)})
    processes[victim].join(120)
    assert processes[victim].exitcode == -signal.SIGKILL
    processes[1 - victim].kill()
    processes[1 - victim].join(30)
    finish(start(tmp_path, tiny_flux, OPTIONS, 2))
    assert same_lora(tmp_path, whole_of_two)
    losses, kept = (
        [(row["step"], row["loss"]) for row in rows_of(work)] for work in (tmp_path, whole_of_two)
    )
    assert losses == kept


@pytest.mark.parametrize("launch", [pytest.param("two-cards", marks=pytest.mark.slow), "fsdp"])
def test_accelerate_launches_two_processes_that_compute_what_one_does(
    tmp_path: Path, tiny_flux: Path, whole: Path, launch: str
) -> None:
    """Both configs that ship, on gloo: whole frozen models, and FSDP2 with a part of it in each process."""
    options = {
        **OPTIONS,
        "gradient_accumulation_steps": 1,
        "num_validation_triptychs": 1,
        "num_validation_images": 1,
        "max_train_steps": 3,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    for work in (one, two):
        shutil.copytree(whole / "embeddings", work / "embeddings")
    train(config(one, tiny_flux, **{**options, "gradient_accumulation_steps": 2})).finish()
    settings = config(two, tiny_flux, validation_steps=2, **options).model_dump(
        mode="json", exclude_defaults=True
    )
    (two / "triptych.yaml").write_text(json.dumps({"train": settings}))  # JSON is YAML
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    launcher = [
        accelerate,
        "launch",
        "--config_file",
        str(CONFIGS / f"{launch}.yaml"),
        "--main_process_port",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "error"}
    done = subprocess.run(
        [*launcher, "-m", "triptych", "train", "--config", str(two / "triptych.yaml")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(re.findall(r"train steps +3", done.stdout)) == 1, "one of the processes talks"
    for alone, both in zip(rows_of(one), rows_of(two), strict=True):
        names = {name for name in alone if name.startswith(("loss", "grad_norm"))}
        assert all(abs(alone[name] - both[name]) <= 1e-5 * max(1.0, abs(alone[name])) for name in names)
    assert list((two / "lora" / "samples").glob("*.png"))


def test_packed_embeddings_train_and_resume_to_the_same_lora(
    whole: Path, tmp_path: Path, tiny_flux: Path
) -> None:
    write_records(tmp_path, [f"id-{n}" for n in range(3)], tiny_flux)
    (folder,) = (tmp_path / "embeddings").iterdir()
    Packer(folder, 1 << 30).close()
    assert not list(folder.glob("*.safetensors")) and len(list(folder.glob("shards/*"))) == 1
    run = train(config(tmp_path, tiny_flux, **OPTIONS))
    for _ in range(3):
        next(run)
    run.close()
    assert train(config(tmp_path, tiny_flux, **OPTIONS)).finish()["resumed_at"] > 0
    assert same_lora(whole, tmp_path)
