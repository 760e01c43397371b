"""A LoRA's strength, compared with what the program that made the file computed: its layers' weights before
and after.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import FILE_NAME, load_lora, open_lora, read_header

WIDTH = 16
NAMES = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.attn.to_q",
    "transformer_blocks.1.ff.net.2",
    "x_embedder",
    "proj_out",
)


class Tiny(nn.Module):
    """A module with some of FLUX.1's layer names."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            owner, into = self, 4 * WIDTH if "net.2" in name else WIDTH
            *path, last = name.split(".")
            for part in path:
                owner = owner._modules.setdefault(part, nn.Module())
            owner.add_module(last, nn.Linear(into, WIDTH, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in NAMES}


def by_peft(folder: Path, before: nn.Module, **config: Any) -> dict[str, Tensor]:
    """Train (with random numbers) and save a LoRA with peft; the live change of each layer's weight."""
    torch.manual_seed(1)
    base = weights(before)
    model = get_peft_model(before, LoraConfig(**{"r": 4, "target_modules": list(NAMES), **config}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").is_file()
    merged = model.merge_and_unload()
    return {name: weight - base[name] for name, weight in weights(merged).items()}


def changes(path: Path) -> dict[str, Tensor]:
    """What our layers add to each weight."""
    torch.manual_seed(5)
    model = Tiny()
    base = weights(model)
    load_lora(model, path)
    return {
        name: module.get_delta_weight("default")
        if hasattr(module := model.get_submodule(name), "get_delta_weight")
        else base[name] * 0
        for name in NAMES
    }


def same(made: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    for name, change in truth.items():
        assert (made[name] - change).abs().max() < 1e-5 * max(1.0, float(change.abs().max())), name


PEFT = {
    "alpha above rank": {"lora_alpha": 16},
    "alpha below rank": {"lora_alpha": 1},
    "rslora": {"lora_alpha": 16, "use_rslora": True},
    "rank_pattern": {"lora_alpha": 8, "rank_pattern": {"to_q": 2, "x_embedder": 6}},
    "rank_pattern and rslora": {"lora_alpha": 8, "rank_pattern": {"x_embedder": 2}, "use_rslora": True},
    "alpha_pattern, a name": {
        "lora_alpha": 4,
        "alpha_pattern": {"proj_out": 1, "transformer_blocks.0.attn.to_q": 9},
    },
    "alpha_pattern, an expression": {"lora_alpha": 4, "alpha_pattern": {r".*transformer_blocks\.0\..*": 16}},
    "alpha_pattern, alternatives": {
        "lora_alpha": 4,
        "alpha_pattern": {r"transformer_blocks\.\d+\.(attn|ff)\..*": 12, "x_.*": 1},
    },
    "alpha_pattern, the first counts": {"lora_alpha": 4, "alpha_pattern": {".*embedder": 1, ".*r": 8}},
    "alpha_pattern, from the start": {
        "lora_alpha": 4,
        "alpha_pattern": {r"^transformer_blocks\.1": 2, "^x_embedder": 2},
    },
    "eva keeps the base": {"lora_alpha": 8, "init_lora_weights": "gaussian"},
    "layers left out": {"lora_alpha": 8, "target_modules": ["x_embedder", "to_q"]},
}


@pytest.mark.parametrize("case", PEFT)
def test_a_peft_folder_means_what_peft_computes(tmp_path: Path, case: str) -> None:
    truth = by_peft(tmp_path / "peft", Tiny(), **PEFT[case])
    same(changes(tmp_path / "peft"), truth)
    for given in (
        tmp_path / "peft",
        tmp_path / "peft" / "adapter_model.safetensors",
        tmp_path / "peft" / "adapter_config.json",
    ):
        out = tmp_path / f"{given.name}-ours.safetensors"
        assert main(["lora", "convert", str(given), str(out)]) == 0
        same(changes(out), truth)
    inside = {
        f"transformer.{k}": v
        for k, v in json.loads((tmp_path / "peft" / "adapter_config.json").read_text()).items()
    }
    tensors = {
        key.removeprefix("base_model.model."): tensor
        for key, tensor in load_file(tmp_path / "peft/adapter_model.safetensors").items()
    }
    adapter = {"lora_adapter_metadata": json.dumps(inside)}
    save_file(
        {f"transformer.{key}": tensor for key, tensor in tensors.items()},
        tmp_path / "diffusers.safetensors",
        adapter,
    )
    same(changes(tmp_path / "diffusers.safetensors"), truth)
    adapter = {
        "lora_adapter_metadata": json.dumps(
            {key.removeprefix("transformer."): value for key, value in inside.items()}
        )
    }
    save_file(
        tensors, tmp_path / "model.safetensors", adapter
    )  # as a diffusers model writes it, without prefixes
    same(changes(tmp_path / "model.safetensors"), truth)


def test_pissa_is_refused_and_its_conversion_is_right(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, alone = Tiny(), Tiny()
    alone.load_state_dict(model.state_dict())
    base = weights(model)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=list(NAMES), init_lora_weights="pissa")
    )
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(tmp_path / "pissa")
    with pytest.raises(ModelError, match="PiSSA"):
        read_header(tmp_path / "pissa")
    merged = weights(adapted.merge_and_unload())
    # What peft's own conversion to a plain LoRA means: [B', B] [A'; −A] of the trained and the first
    # matrices.
    first, last = (load_file(tmp_path / which / "adapter_model.safetensors") for which in ("start", "pissa"))
    plain = {
        key: torch.cat([last[key], -first[key]], 0)
        if "lora_A" in key
        else torch.cat([last[key], first[key]], 1)
        for key in last
    }
    (tmp_path / "plain").mkdir()
    save_file(plain, tmp_path / "plain" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "pissa" / "adapter_config.json").read_text()) | {
        "r": 8,
        "lora_alpha": 16,
        "init_lora_weights": True,
    }
    (tmp_path / "plain" / "adapter_config.json").write_text(json.dumps(config))
    same(changes(tmp_path / "plain"), {name: merged[name] - base[name] for name in NAMES})


def peft_file(
    folder: Path,
    config: Mapping[str, Any] | str | None,
    name: str = "adapter_model.safetensors",
    prefix: str = "base_model.model.",
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {
            f"{prefix}x_embedder.lora_A.weight": torch.ones(4, WIDTH),
            f"{prefix}x_embedder.lora_B.weight": torch.ones(WIDTH, 4),
        },
        folder / name,
    )
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder / name


PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PLAIN | {"init_lora_weights": "pissa_niter_16"}, "PiSSA"),
        (PLAIN | {"init_lora_weights": "OLoRA"}, "OLoRA"),
        (PLAIN | {"init_lora_weights": "loftq"}, "LoftQ"),
        (PLAIN | {"init_lora_weights": "corda"}, "CorDA"),
        (PLAIN | {"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        (PLAIN | {"init_lora_weights": "novel"}, "novel"),
        (PLAIN | {"init_lora_weights": [1]}, "changed the base"),
        (PLAIN | {"use_dora": True}, "DoRA"),
        (PLAIN | {"lora_bias": True}, "lora_bias"),
        (PLAIN | {"bias": "all"}, "biases"),
        (PLAIN | {"modules_to_save": ["proj_out"]}, "modules_to_save"),
        (PLAIN | {"layer_replication": [[0, 2]]}, "layer_replication"),
        (PLAIN | {"use_qalora": True}, "QALoRA"),
        (PLAIN | {"alora_invocation_tokens": [1]}, "aLoRA"),
        (PLAIN | {"target_parameters": ["w"]}, "target_parameters"),
        (PLAIN | {"trainable_token_indices": [1]}, "trainable_token_indices"),
        (PLAIN | {"use_newthing": True}, "use_newthing"),
        (PLAIN | {"peft_type": "LOHA"}, "LOHA"),
        (PLAIN | {"r": 8}, "rank 8"),
        (PLAIN | {"rank_pattern": {"x_embedder": 2}}, "rank 2"),
        (PLAIN | {"lora_alpha": None}, "alpha"),
        (PLAIN | {"lora_alpha": True}, "alpha"),
        (PLAIN | {"lora_alpha": -1}, "alpha"),
        ({"r": 4}, "alpha"),
        (PLAIN | {"use_rslora": "yes"}, "use_rslora"),
        (PLAIN | {"alpha_pattern": {"(": 1}}, "pattern"),
        (PLAIN | {"alpha_pattern": {"a)|(x_embedder": 1}}, "pattern"),
        (PLAIN | {"alpha_pattern": {"x_embedder": "2"}}, "alpha"),
        (PLAIN | {"alpha_pattern": {r"(?<=a)x.*": 2}}, "pattern"),
        (PLAIN | {"alpha_pattern": {"x" * 400: 2}}, "pattern"),
        (PLAIN | {"alpha_pattern": {f"a{n}": 2 for n in range(5000)}}, "pattern"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "JSON object"),
        (" " * (5 << 20), "cannot be read"),
    ],
)
def test_more_than_a_plain_lora_is_refused_by_name(tmp_path: Path, config: Any, words: str) -> None:
    """In adapter_config.json, and the same inside a diffusers file."""
    peft_file(tmp_path / "peft", config)
    with pytest.raises(ModelError, match=words) as caught:
        read_header(tmp_path / "peft")
    assert caught.value.hint and len(str(caught.value)) < 500
    if isinstance(config, dict):
        tensors = {
            f"transformer.x_embedder.lora_{side}.weight": torch.ones(*shape)
            for side, shape in (("A", (4, WIDTH)), ("B", (WIDTH, 4)))
        }
        inside = {
            "lora_adapter_metadata": json.dumps(
                {f"transformer.{key}": value for key, value in config.items()}
            )
        }
        save_file(tensors, tmp_path / "inside.safetensors", inside)
        with pytest.raises(ModelError, match=words):
            read_header(tmp_path / "inside.safetensors")


def test_patterns_whose_order_is_lost_are_said(tmp_path: Path) -> None:
    """peft sorts a config's keys when it saves: of two that fit one layer, which came first in training
    nobody knows.
    """
    file = peft_file(tmp_path, PLAIN | {"alpha_pattern": {".*": 8, "x_.*": 2}})
    assert (read_header(file).scales, len(read_header(file).warnings)) == (
        {"base_model.model.x_embedder": 2.0},
        1,
    )
    assert not read_header(
        peft_file(tmp_path / "b", PLAIN | {"alpha_pattern": {".*": 8, "x_.*": 8}})
    ).warnings


def test_what_does_not_say_its_strength_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = peft_file(tmp_path / "a", None)
    with caplog.at_level(logging.WARNING):
        changes(alone)
    assert "how strong" in caplog.text
    for words in (["inspect", str(alone)], ["convert", str(alone), str(tmp_path / "out.safetensors")]):
        capsys.readouterr()
        assert main(["lora", *words, "--json"]) == 0
        assert "how strong" in json.loads(capsys.readouterr().out)["warnings"][0]
    # A config that lies beside a silent file of another name is its own, or is not: nobody guesses.
    other = peft_file(tmp_path / "b", PLAIN, "mine.safetensors", prefix="transformer.")
    with pytest.raises(ModelError, match="another strength"):
        read_header(other)
    assert read_header(
        peft_file(tmp_path / "c", PLAIN | {"lora_alpha": 4}, "mine.safetensors", prefix="transformer.")
    ).scales == {"transformer.x_embedder": 1.0}
    assert read_header(peft_file(tmp_path / "d", PLAIN, "mine.safetensors")).scales == {
        "base_model.model.x_embedder": 2.0
    }, "peft's names"
    with pytest.raises(ModelError, match="pickle"):
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "adapter_model.bin").write_bytes(b"x")
        read_header(tmp_path / "e")


def kohya(folder: Path, alpha: float | None, metadata: dict[str, str]) -> Path:
    stem = "lora_unet_img_in"
    tensors = {
        f"{stem}.lora_down.weight": torch.ones(16, WIDTH),
        f"{stem}.lora_up.weight": torch.ones(WIDTH, 16),
    }
    tensors |= {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
    save_file(tensors, folder / FILE_NAME, metadata)
    return folder / FILE_NAME


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"ss_network_dim": "16", "ss_network_alpha": "1.0"}, 1 / 16),
        ({"ss_network_alpha": "8"}, 0.5),
        ({"ss_network_alpha": "None", "ss_network_dim": "16"}, 1.0),
        ({"lora_alpha": "32", "lora_rank": "16"}, 2.0),
        ({"lora_alpha": "32", "rank": "16", "use_rslora": "True"}, 8.0),
        ({"network_alpha": "4"}, 0.25),
        ({"alpha": "4"}, 0.25),
        ({"transformer.lora_alpha": "64", "transformer.r": "16"}, 4.0),
        ({"transformer.lora_alpha": "64", "text_encoder.lora_alpha": "8"}, 4.0),
        ({"lora_config": '{"r": 16, "lora_alpha": 4}'}, 0.25),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 64}'}, 4.0),
        ({"ss_network_alpha": "8", "lora_alpha": "8.0"}, 0.5),
        ({"linear_alpha": "8", "linear": "16"}, 0.5),
        ({"network_alphas": "8"}, 0.5),
        ({"config": '{"lora_alpha": 8, "r": 16}'}, 0.5),
        ({"training_config": '{"lora_rank": 16, "lora_alpha": "8"}'}, 0.5),
        ({"config": '{"network": {"type": "lora", "linear": 16, "linear_alpha": 8}}'}, 0.5),
        ({"config": '{"alpha": 8, "lr": 1e-4}'}, 1.0),  # of what is not said
        ({"config": "a remark"}, 1.0),
        ({"network_alpha": "8", "config": '{"lora_alpha": 4}'}, 0.5),  # said plainly
    ],
)
def test_alpha_in_plain_metadata(tmp_path: Path, metadata: dict[str, str], scale: float) -> None:
    file = kohya(tmp_path, None, metadata)
    assert list(open_lora(file).scales.values()) == [pytest.approx(scale)]
    assert main(["lora", "convert", str(file), str(tmp_path / "ours.safetensors")]) == 0
    again = open_lora(tmp_path / "ours.safetensors")
    assert list(again.scales.values()) == [1.0], "folded once, and nothing is left that says otherwise"
    assert torch.equal(again.state["x_embedder.lora_B.weight"], torch.full((WIDTH, 16), scale))


@pytest.mark.parametrize(
    ("alpha", "metadata", "words"),
    [
        (16.0, {"ss_network_alpha": "1"}, "two strengths"),
        (16.0, {"lora_alpha": "1"}, "two strengths"),
        (None, {"ss_network_alpha": "1", "lora_alpha": "2"}, "more than one alpha"),
        (
            None,
            {"ss_network_alpha": "1", "ss_network_dim": "8"},
            "rank 8 by its metadata under 'ss_network_alpha' and 'ss_network_dim'",
        ),
        (
            None,
            {
                "lora_alpha": "2",
                "lora_adapter_metadata": '{"transformer.r": 16, "transformer.lora_alpha": 1}',
            },
            "two strengths",
        ),
        (None, {"lora_alpha": "much"}, "lora_alpha"),
        (None, {"lora_alpha": "X8"}, "lora_alpha"),
        (None, {"lora_alpha": "nan"}, ""),
        (None, {"lora_alpha": "-4"}, "lora_alpha"),
        (None, {"lora_alpha": "1e400"}, "lora_alpha"),
        (None, {"lora_alpha": "4", "rank": "1.5"}, "rank"),
    ],
)
def test_strengths_that_disagree_or_make_no_sense(
    tmp_path: Path, alpha: float | None, metadata: dict[str, str], words: str
) -> None:
    file = kohya(tmp_path, alpha, metadata)
    if not words:  # not a number is what some write for "none"
        assert list(read_header(file).scales.values()) == [1.0]
        return
    with pytest.raises(ModelError, match=words):
        read_header(file)


def test_split_qkv_is_said(tmp_path: Path) -> None:
    assert (
        "split_qkv"
        in read_header(kohya(tmp_path, 4.0, {"ss_network_args": '{"split_qkv": "True"}'})).warnings[0]
    )
    assert not read_header(kohya(tmp_path, 4.0, {"ss_network_args": "what"})).warnings
