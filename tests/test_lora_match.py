"""A LoRA of one base on another: said as just that, before panels, prompts or weights are looked at."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.match import check_lora_fits
from triptych.lora.models import known_base, takes_loras_of
from triptych.session import Session, load_models

LAYOUT = {"width": 48, "height": 72, "roles": ["front", "back", "worn"], "columns": 3}


def lora(folder: Path, width: int, name: str = "transformer_blocks.0.attn.to_q", **about: object) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {
        f"transformer.{name}.lora_A.weight": torch.ones(2, width),
        f"transformer.{name}.lora_B.weight": torch.ones(width, 2),
    }
    save_file(tensors, folder / "lora.safetensors", {"triptych": json.dumps(about)} if about else None)
    return folder / "lora.safetensors"


@pytest.fixture
def dev(tmp_path: Path, tiny_flux: Path) -> Path:
    """The tiny checkpoint under the real model's name, without weights: nothing here may need them."""
    folder = tmp_path / "FLUX.1-dev"
    shutil.copytree(tiny_flux, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.parametrize(
    ("width", "name", "about", "words"),
    [
        (
            128,
            "transformer_blocks.0.attn.to_q",
            {"base_model": "pocket", "family": "flux", "layout": LAYOUT},
            r"was trained on pocket, and this is FLUX\.1-dev: the LoRA's layers are 128 wide, the model's 32",
        ),
        (
            128,
            "transformer_blocks.0.attn.to_q",
            {},
            r"was trained on another model, and this is FLUX\.1-dev: .* 128 wide",
        ),
        (32, "transformer_blocks.7.attn.to_q", {}, r"has no layer 'transformer_blocks\.7\.attn\.to_q'"),
        (32, "x_embedder", {}, "'x_embedder' is 32×64 there, and 32×32 in the LoRA"),
        (
            32,
            "transformer_blocks.0.attn2.to_q",
            {},
            "trained on Stable Diffusion 3, and this is FLUX.1-dev, a FLUX.1 model",
        ),
        (
            32,
            "transformer_blocks.0.attn.to_q",
            {"family": "sd3", "base_model": "stabilityai/stable-diffusion-3.5-large"},
            "SD3.5 large",
        ),
    ],
)
def test_another_base_is_said_before_anything_else(
    tmp_path: Path,
    dev: Path,
    width: int,
    name: str,
    about: dict,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = lora(tmp_path / "l", width, name, **about)
    for call in (
        lambda: check_lora_fits(str(dev), file),
        lambda: Session(str(dev), lora=file),
        lambda: load_models(str(dev), [], file),
    ):
        with pytest.raises(ModelError, match=words):
            call()
    assert (
        main(
            [
                "generate",
                "--model",
                str(dev),
                "--lora",
                str(file),
                "--prompt",
                "x",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    assert "was trained on" in " ".join(capsys.readouterr().err.split())


def test_a_sister_of_the_same_sizes_is_a_warning(
    tmp_path: Path, dev: Path, tiny_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = lora(tmp_path / "l", 32, base_model="black-forest-labs/FLUX.1-schnell", family="flux")
    assert "trained on FLUX.1-schnell, and this is FLUX.1-dev" in check_lora_fits(str(dev), file)
    assert not check_lora_fits(str(dev), lora(tmp_path / "m", 32, base_model="FLUX.1-dev"))
    assert not check_lora_fits(str(dev), lora(tmp_path / "n", 32)), "another program's file says nothing"
    whole = tmp_path / "whole" / "FLUX.1-dev"
    shutil.copytree(tiny_flux, whole)
    with caplog.at_level(logging.WARNING):
        load_models(str(whole), [], file, device="cpu", dtype="fp32")
    assert "FLUX.1-schnell" in caplog.text


def of_layers(folder: Path, width: int, *names: str, **metadata: str) -> Path:
    """Another program's file."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name in names:
        tensors[f"transformer.{name}.lora_A.weight"] = torch.ones(2, width)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.ones(width, 2)
    save_file(tensors, folder / "lora.safetensors", metadata or None)
    return folder / "lora.safetensors"


def test_of_two_models_of_one_width_each_refuses_the_others_lora(
    tmp_path: Path, dev: Path, tiny_flux2: Path
) -> None:
    """Attention of the double blocks, which FLUX.1 and FLUX.2 share."""
    klein = tmp_path / "FLUX.2-klein-4B"
    shutil.copytree(tiny_flux2, klein, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((klein / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    every = [f"transformer_blocks.{number}.attn.to_q" for number in range(config["num_layers"])]
    said = of_layers(tmp_path / "a", 32, *every, ss_base_model_version="flux1")
    with pytest.raises(
        ModelError, match=r"trained on FLUX\.1, and this is FLUX\.2-klein-4B, a FLUX\.2 model"
    ):
        check_lora_fits(str(klein), said)
    said = of_layers(tmp_path / "b", 32, every[0], ss_base_model_version="flux_2_klein_4b")
    with pytest.raises(ModelError, match=r"trained on FLUX\.2, and this is FLUX\.1-dev, a FLUX\.1 model"):
        check_lora_fits(str(dev), said)
    assert not check_lora_fits(str(klein), of_layers(tmp_path / "c", width, *every))
    with pytest.raises(
        ModelError, match=r"a/lora\.safetensors adapts only layers that FLUX\.1 and FLUX\.2 share"
    ):
        check_lora_fits(str(klein), of_layers(tmp_path / "a", width, "context_embedder"))
    with pytest.raises(ModelError, match=r"has no layer 'single_transformer_blocks\.99\.attn\.to_out'"):
        name = "single_transformer_blocks.99.attn.to_out"
        tensors = {f"transformer.{name}.lora_A.weight": torch.ones(2, 4 * width)}
        tensors[f"transformer.{name}.lora_B.weight"] = torch.ones(width, 2)
        save_file(tensors, tmp_path / "a" / "lora.safetensors")
        check_lora_fits(str(klein), tmp_path / "a" / "lora.safetensors")


def test_the_bases_lora_runs_on_the_distilled_model_without_a_warning(
    tmp_path: Path, tiny_flux2: Path
) -> None:
    warned = {}
    for model in ("FLUX.2-klein-4B", "FLUX.2-klein-base-4B", "FLUX.2-klein-9b-kv"):
        folder = tmp_path / model
        shutil.copytree(tiny_flux2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        for trained in ("FLUX.2-klein-base-4B", "FLUX.2-klein-4B"):
            file = lora(
                tmp_path / "l",
                32,
                "transformer_blocks.0.attn.to_v",
                family="flux2",
                base_model=f"black-forest-labs/{trained}",
            )
            warned[model, trained] = check_lora_fits(str(folder), file)
    assert {pair for pair, words in warned.items() if not words} == {
        ("FLUX.2-klein-4B", "FLUX.2-klein-base-4B"),
        ("FLUX.2-klein-4B", "FLUX.2-klein-4B"),
        ("FLUX.2-klein-base-4B", "FLUX.2-klein-base-4B"),
    }
    assert (
        "trained on FLUX.2-klein-4B, and this is FLUX.2-klein-base-4B"
        in warned["FLUX.2-klein-base-4B", "FLUX.2-klein-4B"]
    )


def test_distilled_models_take_the_loras_of_their_base() -> None:
    names = ("base-4B", "4B", "base-9B", "9B", "9b-kv")
    klein = [known_base(f"black-forest-labs/FLUX.2-klein-{name}") for name in names]
    assert klein == [f"FLUX.2-klein-{name}" for name in ("base-4B", "4B", "base-9B", "9B", "9B-KV")]
    assert known_base("black-forest-labs/FLUX.2-dev") == "FLUX.2-dev"
    taken = {(model, trained) for model in klein for trained in klein if takes_loras_of(model, trained)}
    twins = {(klein[1], klein[0]), (klein[3], klein[2]), (klein[4], klein[2])}
    assert taken == {(model, model) for model in klein} | twins


def test_a_model_that_cannot_be_reached_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    assert not check_lora_fits("nobody/nothing", lora(tmp_path / "l", 128))
