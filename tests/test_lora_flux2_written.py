"""LoRA files of FLUX.2 that are written here, by the rules of diffusers and of ComfyUI; and what is said of
them.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.flux2_files import (
    as_diffusers_converts,
    check_deltas,
    comfyui_adds,
    deltas,
    diffusers_loads,
    tiny_flux2_transformer,
)
from tests.lora_files import (
    HIDDEN,
    PEFT,
    dotted,
    linears,
    pair,
    save,
    underscored,
    write,
)
from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import FILE_NAME, load_lora, modelspec, read_header
from triptych.lora.flux2_names import DIFFUSERS, NATIVE
from triptych.lora.targets import not_read


@pytest.fixture(scope="module")
def base() -> Flux2Transformer2DModel:
    return tiny_flux2_transformer()


@pytest.fixture
def model(base: Flux2Transformer2DModel) -> Flux2Transformer2DModel:
    return copy.deepcopy(base)


@pytest.mark.parametrize("target", ["diffusers", "comfyui", "kohya"])
def test_what_is_written_loads_whole_in_diffusers_and_in_comfyui(
    tmp_path: Path, base: nn.Module, model: nn.Module, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From alphas and ranks that are not 1 in all layers; every layer that one of them does not read right is
    said to be so.
    """
    inside, change = write(
        base, NATIVE, underscored("lora_unet_"), alpha=2.0, only=lambda name: "blocks" in name
    )
    outside, more = write(
        base, NATIVE, underscored("lora_unet_"), rank=7, alpha=21.0, only=lambda name: "blocks" not in name
    )
    change |= more
    assert set(change) == set(linears(base))
    file, out = save(tmp_path, inside | outside), tmp_path / target / FILE_NAME
    assert main(["lora", "convert", str(file), str(out), "--to", target, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    tensors = load_file(out)
    alphas = [name for name in tensors if name.endswith(".alpha")]
    assert len(alphas) == (len(tensors) // 3 if target == "kohya" else 0)

    load_lora(model, out)
    check_deltas(deltas(model), change)

    theirs = {
        "diffusers": diffusers_loads(base, out),
        "ComfyUI": as_diffusers_converts(comfyui_adds(tensors, base)),
    }
    for program, found in theirs.items():
        wrong = {
            name
            for name, delta in change.items()
            if name not in found or (found[name] - delta).abs().max() > 1e-6
        }
        told_of = [words for words in told["warnings"] if program in words.partition(";")[0]]
        assert bool(wrong) == bool(told_of), f"{program}: {wrong}"
        assert all("blocks" not in name for name in wrong)
        for words in told_of:
            assert any(f" {name} and {len(wrong) - 1} more layers;" in words for name in wrong) or any(
                f" {name};" in words and len(wrong) == 1 for name in wrong
            ), (words, wrong)
        assert not wrong or len(told_of) == 1


def test_a_lora_of_the_blocks_alone_loads_whole_everywhere(
    tmp_path: Path, base: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is trained here: every linear layer of the blocks."""
    tensors, change = write(base, DIFFUSERS, dotted("", *PEFT), only=lambda name: "blocks" in name)
    file = save(tmp_path, {f"transformer.{key}": tensor for key, tensor in tensors.items()})
    for target in ("diffusers", "comfyui", "kohya"):
        out = tmp_path / target / FILE_NAME
        assert main(["lora", "convert", str(file), str(out), "--to", target, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["warnings"] == []
        check_deltas(diffusers_loads(base, out), change)
        everywhere = as_diffusers_converts(comfyui_adds(load_file(out), base))
        check_deltas({name: everywhere[name] for name in change}, change)
        back = tmp_path / target / "back.safetensors"
        assert main(["lora", "convert", str(out), str(back)]) == 0
        capsys.readouterr()
        restored = {key: tensor.shape for key, tensor in load_file(back).items()}
        assert restored == {f"transformer.{key}": tensor.shape for key, tensor in tensors.items()}


def test_a_file_for_comfyui_has_lora_a_and_no_alpha(tmp_path: Path, base: nn.Module) -> None:
    tensors, _ = write(base, NATIVE, underscored("lora_unet_"), alpha=2.0)
    file = save(tmp_path, tensors)
    out = tmp_path / "comfyui" / FILE_NAME
    assert main(["lora", "convert", str(file), str(out), "--to", "comfyui"]) == 0
    keys = load_file(out).keys()
    assert {key.rpartition(".lora_")[2] for key in keys} == {"A.weight", "B.weight"}
    assert all(key.startswith("diffusion_model.") for key in keys)
    assert not not_read(["single_transformer_blocks.0.attn.to_out"], "comfyui", "flux2")


def test_a_producers_file_and_what_is_written_from_it_make_the_same_picture(
    tmp_path: Path, tiny_flux2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file of a trainer to a picture, by the commands alone."""
    transformer = Flux2Transformer2DModel.from_pretrained(tiny_flux2, subfolder="transformer")
    tensors, _ = write(transformer, NATIVE, underscored("lora_unet_"), alpha=4.0)
    files = [save(tmp_path, tensors, ss_base_model_version="flux_2_klein_4b")]
    for target in ("diffusers", "comfyui"):
        files.append(tmp_path / target / FILE_NAME)
        assert main(["lora", "convert", str(files[0]), str(files[-1]), "--to", target]) == 0
    capsys.readouterr()
    pictures = []
    for number, lora in enumerate(([], *(["--lora", str(file)] for file in files))):
        words = ["generate", "--model", str(tiny_flux2), "--prompt", "a dress", "--num-inference-steps", "2"]
        words += ["--device", "cpu", "--dtype", "fp32", "--out", str(tmp_path / str(number)), "--json", *lora]
        assert main(words) == 0
        with Image.open(json.loads(capsys.readouterr().out)["images"][0]) as picture:
            pictures.append(np.array(picture).astype(int))
    none, theirs, *ours = pictures
    assert abs(none - theirs).max() > 20
    assert all(abs(one - theirs).max() <= 1 for one in ours)


def test_inspect_says_what_is_in_a_file_of_flux_2(
    tmp_path: Path, base: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = {"width": 32, "height": 48, "roles": ["front", "back", "worn"], "columns": 3, "made": ["worn"]}
    about = {
        "family": "flux2",
        "base_model": "black-forest-labs/FLUX.2-klein-base-4B",
        "layout": layout,
        "context": "clean",
        "context_placement": "reference",
    }
    tensors, _ = write(base, NATIVE, dotted("diffusion_model.", *PEFT))
    file = save(tmp_path, tensors, triptych=json.dumps(about))
    assert main(["lora", "inspect", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["architecture"], told["hidden_size"], told["format"]) == ("FLUX.2", 32, "ComfyUI (native)")
    assert told["base_model"] == "black-forest-labs/FLUX.2-klein-base-4B"
    assert told["modules"] == {
        "outside the blocks": 11,
        "single_transformer_blocks attention and feed-forward": 4,
        "transformer_blocks attention": 16,
        "transformer_blocks feed-forward": 8,
    }
    assert main(["lora", "inspect", str(file)]) == 0
    assert "context: clean, reference placement" in capsys.readouterr().out.splitlines()

    out = tmp_path / "out.safetensors"
    assert main(["lora", "convert", str(file), str(out), "--json"]) == 0
    warned = json.loads(capsys.readouterr().out)["warnings"]
    assert any("For diffusers' Flux2KleinKVPipeline train with --context-lora" in words for words in warned)
    metadata = read_header(out).metadata
    assert read_header(out).about["context_placement"] == "reference"
    assert metadata["modelspec.architecture"] == "flux-2-klein-4b/lora"
    assert metadata["modelspec.usage_hint"].endswith("clean context, reference placement")
    assert "Apache-2.0" in metadata["modelspec.license"]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (
            {"context": "clean", "context_placement": "reference", "context_lora": True},
            "besides triptych",
        ),
        ({"context": "clean", "context_placement": "reference"}, "train with --context-lora"),
        ({"context": "clean", "context_placement": "canvas"}, "which only triptych samples"),
        ({"context": "clean"}, "which only triptych samples"),
        ({"context": "native", "context_placement": "reference"}, None),
        ({}, None),
    ],
)
def test_what_other_programs_make_of_the_context_is_said(
    tmp_path: Path, about: dict, words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = pair("transformer.single_transformer_blocks.0.attn.to_out", down=(2, 4 * HIDDEN))
    file = save(tmp_path, tensors, triptych=json.dumps(about))
    assert main(["lora", "convert", str(file), str(tmp_path / "out.safetensors"), "--json"]) == 0
    warned = json.loads(capsys.readouterr().out)["warnings"]
    assert [words in sentence for sentence in warned] == ([True] if words else [])


def test_a_file_that_may_be_for_either_says_so(
    tmp_path: Path, base: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, pair("transformer.transformer_blocks.0.attn.to_q"))
    assert main(["lora", "inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "FLUX.1 or FLUX.2"
    for target, said in (("comfyui", True), ("diffusers", False), ("kohya", False)):
        out = tmp_path / target / FILE_NAME
        assert main(["lora", "convert", str(file), str(out), "--to", target, "--json"]) == 0
        assert bool(json.loads(capsys.readouterr().out)["warnings"]) == said
        everywhere = as_diffusers_converts(comfyui_adds(load_file(out), base))
        changed = {name for name, delta in everywhere.items() if delta.any()}
        assert changed == {"transformer_blocks.0.attn.to_q"}
        assert bool(diffusers_loads(base, out)) == (not said)


def test_a_file_of_flux_1_is_not_said_to_be_for_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its feed-forward layers are Stable Diffusion 3's too, but not FLUX.2's."""
    file = save(tmp_path, pair("transformer.transformer_blocks.0.ff.net.0.proj", up=(4 * HIDDEN, 2)))
    assert (
        main(["lora", "convert", str(file), str(tmp_path / "o.safetensors"), "--to", "comfyui", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_layers_count_for_more_than_what_the_file_says_of_its_family(tmp_path: Path, base: nn.Module) -> None:
    tensors, change = write(
        base, DIFFUSERS, dotted("transformer.", *PEFT), only=lambda name: "blocks" in name
    )
    file = save(tmp_path, tensors, triptych=json.dumps({"family": "flux"}))
    out = tmp_path / "comfyui" / FILE_NAME
    assert main(["lora", "convert", str(file), str(out), "--to", "comfyui"]) == 0
    assert read_header(out).about["family"] == "flux2"
    check_deltas(diffusers_loads(base, out), change)


def test_a_placement_that_is_not_known_is_refused(tmp_path: Path) -> None:
    file = save(
        tmp_path,
        pair("diffusion_model.single_blocks.0.linear1", up=(9 * HIDDEN, 2)),
        triptych=json.dumps({"context_placement": "beside"}),
    )
    with pytest.raises(ModelError, match="placement of panels which is not known"):
        read_header(file)


@pytest.mark.parametrize(
    ("base_model", "architecture", "licence"),
    [
        ("black-forest-labs/FLUX.2-klein-base-4B", "flux-2-klein-4b", "Apache-2.0"),
        ("black-forest-labs/FLUX.2-klein-4B", "flux-2-klein-4b", "Apache-2.0"),
        ("black-forest-labs/FLUX.2-klein-base-9B", "flux-2-klein-9b", "Non-Commercial"),
        ("black-forest-labs/FLUX.2-klein-9B", "flux-2-klein-9b", "Non-Commercial"),
        ("black-forest-labs/FLUX.2-klein-9b-kv", "flux-2-klein-9b", "Non-Commercial"),
        ("black-forest-labs/FLUX.2-dev", "flux-2-dev", "Non-Commercial"),
        ("flux2_klein_9b", "flux-2-klein-9b", "Non-Commercial"),
        ("/data/4boards/dev/klein", "flux-2", "licence of the base model"),
    ],
)
def test_the_base_models_licence_is_written_into_the_file(
    base_model: str, architecture: str, licence: str
) -> None:
    fields = modelspec({"family": "flux2", "base_model": base_model})
    assert fields["modelspec.architecture"] == f"{architecture}/lora"
    assert licence in fields["modelspec.license"]
