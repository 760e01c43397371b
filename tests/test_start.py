"""What is settled before a model computes: the device, its dtype, PyTorch's allocator, and words about a card
that stands idle. Machines that are not here are told of by what PyTorch says about them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.backbones import registry
from triptych.backbones.registry import load_backbone
from triptych.captioning.captioners import load_captioner
from triptych.cli import metadata, settle_allocator
from triptych.compute.devices import default_device, default_dtype, usable_device
from triptych.errors import ModelError
from triptych.training import distributed

from .device_sim import Card


@pytest.mark.parametrize(
    ("version", "more"), [("2.10.0", ""), ("2.13.1+cu130", ",pinned_max_round_threshold_mb:16")]
)
def test_the_allocator_is_settled_by_what_its_version_knows(
    version: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: version)
    settled: dict[str, str] = {}
    settle_allocator(settled, "linux")
    assert settled == {"PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:True{more}"}


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_user_s_allocator_stays_and_windows_has_none(name: str) -> None:
    own, other = {name: ""}, dict[str, str]()
    settle_allocator(own, "linux")
    settle_allocator(other, "win32")
    assert own == {name: ""} and other == {}


def test_this_pytorch_takes_the_settings() -> None:
    """It refuses a key that it does not know as soon as it is imported."""
    settled = dict(os.environ)
    settled.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    settle_allocator(settled, "linux")
    ask = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run(
        [sys.executable, "-c", ask], env=settled, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == settled["PYTORCH_CUDA_ALLOC_CONF"] and not done.stderr


@pytest.mark.parametrize(("cuda", "words"), [(None, "is built for the CPU alone"), ("13.0", "cannot use it")])
def test_a_card_that_stands_idle_is_told_of(
    cuda: str | None,
    words: str,
    tiny_flux: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(registry.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    caplog.set_level(logging.WARNING)
    load_backbone("pocket", "auto")
    load_backbone(str(tiny_flux), "cpu")
    assert not caplog.messages, "a small model, and who asks for the CPU, need no card"
    load_backbone(str(tiny_flux), "auto")
    assert words in caplog.messages[0] and str(tiny_flux) in caplog.messages[0]
    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    load_backbone(str(tiny_flux), "auto")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("macos", "dtype"), [((13, 6), torch.float32), ((14, 0), torch.bfloat16)])
def test_an_apple_gpu_computes_in_bfloat16_where_it_can_and_is_never_chosen(
    macos: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: macos >= version)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_dtype(torch.device("mps")) == dtype
    assert default_device().type != "mps"


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:7"])
def test_a_device_that_is_not_here_is_a_sentence(device: str) -> None:
    with pytest.raises(ModelError, match=f"'{device}' cannot be used here"):
        usable_device(device)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "nccl")])
def test_processes_wait_for_the_one_that_makes_validation_pictures(
    device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, Any]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda name, *, timeout, **_: begun.append((name, timeout))
    )
    distributed.join(torch.device(device))
    assert begun == [(backend, distributed.PATIENCE)] and distributed.PATIENCE.total_seconds() > 3600


def test_a_captioner_runs_on_the_device_that_is_asked_for() -> None:
    with pytest.raises(ModelError, match="'mps' cannot be used here"):
        load_captioner("pocket", device="mps")
    with Card() as card:
        load_captioner("pocket", device="cpu")
        assert card.live == 0
        captioner = load_captioner("pocket", device="cuda")
        assert card.live > 0
        del captioner


@pytest.mark.parametrize(("native", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_card_that_emulates_bfloat16_computes_in_float32(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert default_dtype(torch.device("cuda", 1)) == dtype
