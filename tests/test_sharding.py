"""A base model that is sharded over two processes: what each of them holds, and the LoRA that comes out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from triptych.backbones.registry import load_backbone
from triptych.errors import ConfigError, ModelError
from triptych.training import distributed
from triptych.training.results import Results
from triptych.verbs import train as train_module
from triptych.verbs.train import train

from .test_resume import PROCESSES, finish, free_port, same_lora, start
from .test_train import config, write_records

BLOCKS = 15
OPTIONS: dict[str, Any] = {
    "max_train_steps": 2,
    "lora_dropout": 0.2,
    "num_validation_triptychs": 1,
    "num_validation_images": 1,
    "validation_steps": 2,
}


@pytest.fixture(scope="module")
def deep_flux(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with many blocks, none of which holds more than a seventh of their weights."""
    from diffusers import FluxTransformer2DModel

    model = tmp_path_factory.mktemp("deep") / "deep-flux"
    shutil.copytree(tiny_flux, model)
    shape = {**FluxTransformer2DModel.load_config(model / "transformer"), "num_single_layers": BLOCKS - 1}
    torch.manual_seed(4)
    shutil.rmtree(model / "transformer")
    FluxTransformer2DModel.from_config(shape).save_pretrained(model / "transformer")
    return model


class Held:
    """What a process holds of the blocks' frozen weights while it trains."""

    def __init__(self, blocks: list[nn.Module], whole: int) -> None:
        self.blocks, self.whole = blocks, whole
        self.own = sum(p.to_local().untyped_storage().nbytes() for b in blocks for p in _sharded(b))
        self.peak = self.own
        self._gathered: dict[int, Tensor] = {}  # FSDP2 keeps a gathered weight, and empties its storage
        for block in blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_hook(lambda *_: self.look())
            for parameter in block.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(lambda _: self.look())

    def look(self) -> None:
        plain = [p for b in self.blocks for p in b.parameters() if not p.requires_grad]
        self._gathered |= {id(p): p for p in plain if not isinstance(p, DTensor)}
        storages = {s.data_ptr(): s.nbytes() for s in (p.untyped_storage() for p in self._gathered.values())}
        self.peak = max(self.peak, self.own + sum(storages.values()))

    def sharded(self) -> int:
        """Number of blocks that are sharded now."""
        return sum(bool(_sharded(block)) for block in self.blocks)


def _sharded(block: nn.Module) -> list[DTensor]:
    return [parameter for parameter in block.parameters() if isinstance(parameter, DTensor)]


def train_watched(rank: int, port: int, work: str, model: str) -> None:
    """Train with a sharded base, and write down what this process held, when."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    held: list[Held] = []
    seen: dict[str, list[int]] = {"forward": [], "validation": [], "step": []}

    def sharding(transformer: nn.Module, blocks: Any, trained: Any, device: torch.device) -> None:
        whole = sum(p.nbytes for b in blocks.values() for p in b.parameters() if not p.requires_grad)
        shard(transformer, blocks, trained, device)
        assert not any(isinstance(parameter, DTensor) for parameter in trained)
        held.append(Held(list(blocks.values()), whole))

    def noting(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            made = run(*args)
            seen[name].append(held[0].sharded())
            return made

        return noted

    shard = distributed.shard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "shard", sharding)
        patch.setattr(train_module, "losses_of", noting("forward", train_module.losses_of))
        patch.setattr(Results, "validated", noting("validation", Results.validated))
        for _ in train(config(Path(work), Path(model), shard_base=True, **OPTIONS)):
            seen["step"].append(held[0].sharded())
    numbers = {**seen, "whole": held[0].whole, "own": held[0].own, "peak": held[0].peak}
    (Path(work) / f"{rank}.json").write_text(json.dumps(numbers))


def test_a_sharded_base_stays_sharded_and_trains_the_same_lora(tmp_path: Path, deep_flux: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    write_records(whole, [f"id-{n}" for n in range(3)], deep_flux)
    shutil.copytree(whole / "embeddings", sharded / "embeddings")
    finish(start(whole, deep_flux, {**OPTIONS, "num_validation_images": 0}, 2))
    port = free_port()
    watched = [
        PROCESSES.Process(target=train_watched, args=(rank, port, str(sharded), str(deep_flux)))
        for rank in range(2)
    ]
    for process in watched:
        process.start()
    finish(watched)
    seen = [json.loads((sharded / f"{rank}.json").read_text()) for rank in range(2)]
    for one in seen:
        assert one["forward"] == [BLOCKS] * 2  # one pass in each process, two steps
        assert one["validation"] == [BLOCKS] * 2  # before the first step, and after the last
        assert one["step"] == [BLOCKS] * 2
        assert one["own"] <= 0.55 * one["whole"]
        assert one["own"] < one["peak"] <= 0.7 * one["whole"]
    assert sum(one["own"] for one in seen) >= seen[0]["whole"]
    assert same_lora(whole, sharded)
    assert len(list((sharded / "lora" / "samples").glob("*.png"))) == 2


def test_each_process_takes_its_own_card_before_it_uses_any(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls alone, in their order; no card is needed."""
    calls: list[Any] = []

    def empty(*size: int, device: torch.device) -> None:
        calls.append(("used", str(device)))
        raise RuntimeError("no such card here")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("current", str(device))))
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, device_id, timeout: calls.append((backend, str(device_id))),
    )
    assert distributed.own_device("auto") == distributed.own_device("cuda") == "cuda:1"
    with pytest.raises(ModelError, match="'cuda:1' cannot be used"):
        load_backbone(str(tiny_flux), "cuda:1")
    distributed.join(torch.device("cuda:1"))
    assert calls == [("current", "cuda:1"), ("used", "cuda:1"), ("current", "cuda:1"), ("nccl", "cuda:1")]
    with pytest.raises(ConfigError, match="one card for 2 processes"):
        distributed.own_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="2 CUDA cards"):
        distributed.own_device("cuda")
