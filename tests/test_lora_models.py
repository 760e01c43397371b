"""Whose LoRA a file is: by its layers and by its metadata, and what is done about other models that have
FLUX.1's names.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.backbones.registry import load_backbone
from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import load_lora, read_header
from triptych.training.config import TrainConfig
from triptych.training.continuation import check_init_lora


def attention(width: int, *blocks: str, part: str = "attn.to_q") -> dict[str, Tensor]:
    tensors = {}
    for block in blocks:
        tensors[f"transformer.{block}.{part}.lora_A.weight"] = torch.full((1, width), 0.01)
        tensors[f"transformer.{block}.{part}.lora_B.weight"] = torch.full((width, 1), 0.01)
    return tensors


def double(*numbers: int) -> list[str]:
    return [f"transformer_blocks.{number}" for number in numbers]


def single(*numbers: int) -> list[str]:
    return [f"single_transformer_blocks.{number}" for number in numbers]


SMALL = attention(64, *double(0))
FLUX_2 = {
    "transformer.single_transformer_blocks.0.attn.to_out.lora_A.weight": torch.full((1, 256), 0.01),
    "transformer.single_transformer_blocks.0.attn.to_out.lora_B.weight": torch.full((64, 1), 0.01),
}
LOOKALIKES = [
    (SMALL, {"modelspec.architecture": "chroma/lora"}, "Chroma"),
    (SMALL, {"ss_base_model_version": "Chroma1-HD"}, "Chroma"),
    (SMALL, {"modelspec.architecture": "qwen-image/lora"}, "Qwen-Image"),
    (SMALL, {"ss_base_model_version": "qwen_image_edit"}, "Qwen-Image"),
    (SMALL, {"modelspec.architecture": "flux-3-klein/lora"}, "FLUX 3"),
    (SMALL, {"modelspec.architecture": "Z-Image-Turbo"}, "Z-Image"),
    (SMALL, {"ss_base_model_version": "lumina2"}, "Lumina"),
    (SMALL, {"modelspec.architecture": "LongCat-Image"}, "LongCat"),
    (SMALL, {"ss_base_model_version": "ovis-image"}, "Ovis-Image"),
    (SMALL, {"base_model": "briaai/FIBO"}, "Bria"),
    (SMALL, {"modelspec.architecture": "hunyuan-video"}, "HunyuanVideo"),
    (attention(3072, *double(0, 59)), {}, "Qwen-Image"),
    (attention(3072, *double(0, 19), *single(39)), {}, "HunyuanVideo"),
    (attention(3072, *single(38)), {}, "HunyuanVideo"),
    (FLUX_2, {"ss_base_model_version": "Chroma1-HD"}, "Chroma"),
    (FLUX_2, {"base_model": "black-forest-labs/FLUX.3-klein"}, "FLUX 3"),
]


@pytest.mark.parametrize(("tensors", "metadata", "title"), LOOKALIKES)
def test_another_model_with_the_same_names_is_named_and_never_applied(
    tmp_path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    title: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, metadata)
    assert main(["lora", "inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == title
    for target in ("diffusers", "kohya"):
        assert main(["lora", "convert", str(file), str(tmp_path / "b.safetensors"), "--to", target]) == 1
        assert f"is for {title}" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match=title):
        load_lora(nn.Module(), file)
    with pytest.raises(ModelError, match=title):
        check_init_lora(TrainConfig(init_lora=file), load_backbone("pocket", "cpu", "fp32"))


@pytest.mark.parametrize(
    ("tensors", "metadata", "family", "warned"),
    [
        (attention(3072, *double(0, 18), *single(37)), {}, "flux", ""),
        (
            attention(3072, *double(0)),
            {"modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "flux1"},
            "flux",
            "",
        ),
        (SMALL, {"modelspec.architecture": "../../etc/passwd"}, "flux", ""),
        (
            SMALL,
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
            "flux",
            "Stable Diffusion XL",
        ),
        (SMALL, {"ss_base_model_version": "sd_v1"}, "flux", "Stable Diffusion"),
        (
            SMALL,
            {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "flux-1-dev/lora"},
            "flux",
            "Stable Diffusion XL",
        ),
        (SMALL, {"modelspec.architecture": "stable-diffusion-3.5-large/lora"}, "sd3", ""),
        (SMALL, {"ss_base_model_version": "sd3.5"}, "sd3", ""),
        (attention(64, *single(0)), {"ss_base_model_version": "sd3"}, "flux", "Stable Diffusion 3"),
        (attention(2432, *double(0, 37)), {}, "sd3", ""),
        (attention(1536, *double(0, 23)), {}, "sd3", ""),
        (attention(64, *double(0), part="attn2.to_q"), {"triptych": '{"family": "flux"}'}, "sd3", "FLUX.1"),
        (SMALL, {"modelspec.architecture": "flux-2-dev/lora"}, "flux2", ""),
        (SMALL, {"ss_base_model_version": "flux2_klein_4b"}, "flux2", ""),
        (SMALL, {"triptych": '{"family": "flux2"}'}, "flux2", ""),
        (SMALL, {"ss_sd_model_name": "flux-2-klein-base-4b.safetensors"}, "flux2", ""),
        (FLUX_2, {}, "flux2", ""),
        (FLUX_2, {"ss_base_model_version": "flux1"}, "flux2", "FLUX.1"),
        (FLUX_2, {"ss_base_model_version": "sd3.5"}, "flux2", "Stable Diffusion 3"),
        (attention(64, *single(0)), {"ss_base_model_version": "flux2_klein_4b"}, "flux", "FLUX.2"),
        # widths and numbers of blocks: FLUX.2-klein-9B and dev; FLUX.2-klein-4B, which is as wide as FLUX.1
        (attention(4096, *double(0)), {}, "flux2", ""),
        (attention(6144, *double(0, 7)), {}, "flux2", ""),
        (attention(4096, *double(0), *single(0)), {}, "flux", ""),
        (attention(6144, *double(0, 7)), {"ss_base_model_version": "flux1"}, "flux2", "FLUX.1"),
        (attention(3072, *double(*range(5))), {}, "flux2", ""),
        (attention(3072, *double(*range(5))), {"ss_base_model_version": "flux1"}, "flux", ""),
        (attention(3072, *double(*range(5)), part="attn.add_k_proj"), {}, "flux2", ""),
        (attention(3072, *double(*range(6))), {}, "flux", ""),
        (attention(3072, *double(*range(1, 5))), {}, "flux", ""),
        (
            attention(3072, *double(*range(19))),
            {"ss_base_model_version": "flux_2_klein_4b"},
            "flux",
            "FLUX.2",
        ),
    ],
)
def test_the_family_follows_the_layers_and_then_known_words(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], family: str, warned: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    header = read_header(tmp_path / "a.safetensors")
    assert (header.family, header.model.other) == (family, False)
    assert [warned in warning for warning in header.warnings] == ([True] if warned else [])


@pytest.mark.parametrize(
    ("width", "blocks", "version", "either"),
    [
        (3072, (1, 4), "", True),
        (3072, (1, 5), "", False),
        (3072, (0, 1, 2, 3, 4), "", False),
        (3072, (1, 4), "flux1", False),
        (3072, (1, 4), "flux_2_klein_4b", False),
        (3072, (1, 4), "sd3", False),
        (4096, (1, 4), "", False),
        (1536, (1, 4), "", False),
        (64, (1, 40), "", True),
    ],
)
def test_what_may_be_flux_1_or_flux_2_is_said_to_be_either(
    tmp_path: Path, width: int, blocks: tuple[int, ...], version: str, either: bool
) -> None:
    save_file(
        attention(width, *double(*blocks)), tmp_path / "a.safetensors", {"ss_base_model_version": version}
    )
    model = read_header(tmp_path / "a.safetensors").model
    assert (model.either, model.title == "FLUX.1 or FLUX.2") == (either, either)
    assert not (model.either and model.certain)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model."])
def test_a_lora_of_all_linear_layers_of_stable_diffusion_3(
    tmp_path: Path, tiny_sd3: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """ai-toolkit adapts every linear layer in the blocks: modulations of three sizes, and of the last block
    what exists of it.
    """
    transformer = load_backbone(str(tiny_sd3), "cpu", "fp32").load_transformer()
    plain = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    sizes = {
        module.out_features // module.in_features
        for name, module in plain.items()
        if name.endswith(("norm1.linear", "context.linear"))
    }
    assert sizes == {2, 6, 9}
    torch.manual_seed(0)
    tensors, change = {}, {}
    for name, module in plain.items():
        down, up = torch.randn(2, module.in_features), torch.randn(module.out_features, 2)
        tensors |= {
            f"{prefix}{name}.lora_A.weight": down,
            f"{prefix}{name}.lora_B.weight": up,
            f"{prefix}{name}.alpha": torch.tensor(4.0),
        }
        change[name] = 2.0 * up @ down
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors").model.title == "Stable Diffusion 3"
    with caplog.at_level(logging.WARNING):
        load_lora(transformer, tmp_path / "a.safetensors")
    assert not caplog.text
    for name, delta in change.items():
        assert (transformer.get_submodule(name).get_delta_weight("default") - delta).abs().max() < 1e-4, name


def test_a_size_that_no_model_has_is_refused_with_both_names(tmp_path: Path) -> None:
    save_file(
        {"transformer.transformer_blocks.0.norm1_context.linear.lora_A.weight": torch.ones(2, 128),
         "transformer.transformer_blocks.0.norm1_context.linear.lora_B.weight": torch.ones(384, 2)},
        tmp_path / "a.safetensors",
    )  # fmt: skip
    with pytest.raises(
        ModelError, match=r"384×128 weights, which fit neither FLUX\.1, FLUX\.2 nor Stable Diffusion 3"
    ):
        read_header(tmp_path / "a.safetensors")


def test_the_name_of_the_file_it_was_trained_on_is_a_warning(tmp_path: Path) -> None:
    named = {"ss_sd_model_name": "chroma-unlocked-v50.safetensors", "ss_base_model_version": "flux1"}
    for number, (metadata, words) in enumerate(
        [
            (named, "Chroma"),
            ({"pretrained_model_name_or_path": "lodestones\\Chroma1-HD"}, "Chroma"),
            ({"ss_sd_model_name": "flux1-dev.safetensors"}, None),
            ({"ss_sd_model_name": "/qwen/models/flux1-dev.safetensors"}, None),
        ]
    ):
        save_file(SMALL, tmp_path / f"{number}.safetensors", metadata)
        header = read_header(tmp_path / f"{number}.safetensors")
        assert not header.model.other
        assert [words in warning for warning in header.warnings] == ([True] if words else []), metadata
