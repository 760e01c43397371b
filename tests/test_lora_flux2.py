"""LoRA files of FLUX.2: what every producer's file means for each layer, and what diffusers' and ComfyUI's
own rules make of the files that are written here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.lora_files import (
    PEFT,
    Change,
    check_outputs,
    dotted,
    linears,
    numbered,
    pair,
    save,
    tiny_transformer,
    underscored,
    write,
)
from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import FILE_NAME, load_lora, modelspec, read_header, read_lora
from triptych.lora.flux2_names import DIFFUSERS, FUSED, NATIVE, SPLIT_NATIVE
from triptych.lora.tables import Names
from triptych.lora.targets import not_read

WIDTH = 32


@pytest.fixture(scope="module")
def base() -> Flux2Transformer2DModel:
    """Every layer of FLUX.2, the guidance embedding of FLUX.2-dev too, which klein lacks."""
    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=24,
        mlp_ratio=3.0,
        axes_dims_rope=(4, 4, 4, 4),
        rope_theta=2000,
        guidance_embeds=True,
    ).eval()


@pytest.fixture
def model(base: Flux2Transformer2DModel) -> Flux2Transformer2DModel:
    return copy.deepcopy(base)


Key = Callable[[str, str], str]
PRODUCERS: dict[str, tuple[Names, Key, float | None]] = {
    "diffusers' scripts, SimpleTuner": (DIFFUSERS, dotted("transformer.", *PEFT), None),
    "the same with alpha": (DIFFUSERS, dotted("transformer.", *PEFT), 2.0),
    "SimpleTuner, projections fused": (FUSED, dotted("transformer.", *PEFT), None),
    "ai-toolkit": (NATIVE, dotted("diffusion_model.", *PEFT), None),
    "musubi-tuner": (NATIVE, underscored("lora_unet_"), 2.0),
    "kohya's names without alpha": (NATIVE, underscored("lora_unet_"), None),
    "DiffSynth": (DIFFUSERS, dotted("", "lora_A.default", "lora_B.default"), None),
    "OneTrainer for ComfyUI": (NATIVE, dotted("diffusion_model.", *PEFT), 1.0),
    "OneTrainer, native": (NATIVE, dotted("", *PEFT), 1.0),
    "OneTrainer, formerly": (DIFFUSERS, dotted("transformer."), 1.0),
    "OneTrainer, native and split": (SPLIT_NATIVE, dotted("transformer."), 1.0),
    "OneTrainer, legacy": (DIFFUSERS, underscored("lora_transformer_"), 1.0),
    "fal": (NATIVE, dotted("base_model.model.", *PEFT), None),
    "peft": (DIFFUSERS, dotted("base_model.model.", "lora_A.default", "lora_B.default"), None),
    "LyCORIS": (DIFFUSERS, underscored("lycoris_"), 8.0),
    "native, lora_down": (NATIVE, dotted("diffusion_model."), None),
    "native, lora_down and alpha": (NATIVE, dotted("diffusion_model."), 16.0),
    "native without prefix": (NATIVE, dotted("", *PEFT), None),
    "diffusers names behind diffusion_model.": (DIFFUSERS, dotted("diffusion_model.", *PEFT), None),
}


def made_by(
    producer: str, base: nn.Module, folder: Path, only: Callable[[str], bool] = lambda name: True
) -> tuple[Path, Change]:
    names, key, alpha = PRODUCERS[producer]
    native = names in (NATIVE, SPLIT_NATIVE)
    tensors, change = write(base, names, key, alpha=alpha, only=only, swap_halves=native)
    return save(folder, tensors), change


def deltas(transformer: nn.Module) -> Change:
    """What the adapter that is loaded adds to each layer's weight."""
    return {
        name: layer.get_delta_weight(layer.active_adapters[0])
        for name, layer in transformer.named_modules()
        if isinstance(layer, LoraLayer)
    }


def check_deltas(found: Change, expected: Change, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert (found[name] - delta).abs().max() < tolerance, name


def diffusers_loads(base: nn.Module, file: Path) -> Change:
    pipe = Flux2KleinPipeline(None, None, None, None, copy.deepcopy(base))
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return deltas(pipe.transformer)


@pytest.mark.parametrize("producer", PRODUCERS)
def test_every_producers_file_changes_each_layer_as_the_producer_means_it(
    tmp_path: Path, base: nn.Module, model: nn.Module, producer: str
) -> None:
    file, change = made_by(producer, base, tmp_path)
    assert set(change) == (
        {name for name in linears(base) if ".attn.to_" in name or ".add_" in name} - _not_in_qkv(base)
        if PRODUCERS[producer][0] is FUSED
        else set(linears(base))
    ), "the test file covers the whole table"
    header = read_header(file)
    told = ("flux", "FLUX.1 or FLUX.2") if PRODUCERS[producer][0] is FUSED else ("flux2", "FLUX.2")
    assert (header.family, header.model.title, header.model.other) == (*told, False)
    load_lora(model, file)
    check_outputs(model, base, change)
    check_deltas(deltas(model), change)


def _not_in_qkv(base: nn.Module) -> set[str]:
    return {name for name in linears(base) if "to_out" in name or "to_add_out" in name or "mlp" in name}


def native_weights(base: nn.Module) -> dict[str, Tensor]:
    """Zeros in the shapes of the model's weights in Black Forest Labs' own code, where qkv is one layer."""
    plain = linears(base)
    return {
        name: torch.zeros(sum(plain[part].out_features for part in parts), plain[parts[0]].in_features)
        for name, parts in numbered(NATIVE).items()
    }


def as_diffusers_converts(weights: dict[str, Tensor]) -> Change:
    """Black Forest Labs' weights by diffusers layer, by diffusers' own conversion of checkpoints."""
    checkpoint = {f"{name}.weight": weight.clone() for name, weight in weights.items()}
    converted = convert_flux2_transformer_checkpoint_to_diffusers(checkpoint)
    return {name.removesuffix(".weight"): weight for name, weight in converted.items()}


@pytest.mark.parametrize("producer", ["ai-toolkit", "musubi-tuner", "OneTrainer, native", "fal"])
def test_native_names_mean_the_layers_that_diffusers_checkpoint_conversion_makes_of_them(
    tmp_path: Path, base: nn.Module, producer: str
) -> None:
    """No table of ours is on this way: the file's change is added to the weights by their native names."""
    file, change = made_by(producer, base, tmp_path)
    tensors, weights = load_file(file), native_weights(base)
    for name in weights:
        key = PRODUCERS[producer][1]
        down, up = tensors[key(name, "down")], tensors[key(name, "up")]
        alpha = tensors.get(key(name, "alpha"), torch.tensor(float(len(down))))
        weights[name] = up @ down * (alpha / len(down))
    check_deltas(as_diffusers_converts(weights), change)


# What diffusers 0.42.1 makes of the producers' own files, all layers inside the blocks. With "" it is right;
# other words are of its error; None: it loads nothing, and only logs a line.
DIFFUSERS_READS = {
    "diffusers' scripts, SimpleTuner": "",
    "the same with alpha": "Invalid adapter",
    "ai-toolkit": "",
    "musubi-tuner": "",
    "kohya's names without alpha": "",
    "DiffSynth": None,
    "OneTrainer for ComfyUI": "should be empty",
    "OneTrainer, native": "Invalid adapter",
    "OneTrainer, formerly": None,
    "OneTrainer, native and split": None,
    "OneTrainer, legacy": None,
    "fal": "",
    "LyCORIS": None,
    "native, lora_down": None,
    "native, lora_down and alpha": None,
    "native without prefix": None,
    "diffusers names behind diffusion_model.": "",
}


@pytest.mark.parametrize("producer", DIFFUSERS_READS)
def test_what_diffusers_reads_it_reads_as_we_do_and_the_rest_once_it_is_converted(
    tmp_path: Path, base: nn.Module, producer: str
) -> None:
    file, change = made_by(producer, base, tmp_path, only=lambda name: "blocks" in name)
    expected = DIFFUSERS_READS[producer]
    if expected == "":
        check_deltas(diffusers_loads(base, file), change)
    elif expected is None:
        assert not diffusers_loads(base, file)
    else:
        with pytest.raises(ValueError, match=expected):
            diffusers_loads(base, file)
    out = tmp_path / "converted" / FILE_NAME
    assert main(["lora", "convert", str(file), str(out)]) == 0
    check_deltas(diffusers_loads(base, out), change)


def comfyui_adds(tensors: dict[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
    """What ComfyUI adds to its weights, which have Black Forest Labs' names. Its rules: a layer is named
    `diffusion_model.` + name, `lora_unet_` + name with underscores, or `transformer.` + diffusers' name for a
    part of its rows; but it does not know diffusers' names of the time embedding and the shared modulations.
    An alpha is divided by the rank; without one the factor is 1.
    """
    weights = native_weights(base)
    for name, parts in numbered(NATIVE).items():
        row = 0
        places = {f"diffusion_model.{name}": slice(None), f"lora_unet_{name.replace('.', '_')}": slice(None)}
        for part in parts:
            height = linears(base)[part].out_features
            if "_embed." not in part and "_modulation" not in part:
                places[f"transformer.{part}"] = slice(row, row + height)
            row += height
        for stem, rows in places.items():
            for up, down in (("lora_up", "lora_down"), ("lora_B", "lora_A")):
                if f"{stem}.{up}.weight" not in tensors:
                    continue
                low, high = tensors.pop(f"{stem}.{down}.weight"), tensors.pop(f"{stem}.{up}.weight")
                scale = float(tensors.pop(f"{stem}.alpha", torch.tensor(float(len(low))))) / len(low)
                change = high @ low * scale
                if stem == "transformer.norm_out.linear":
                    change = torch.cat(change.chunk(2)[::-1])
                weights[name][rows] += change
    return weights


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
    file, _ = made_by("musubi-tuner", base, tmp_path)
    out = tmp_path / "comfyui" / FILE_NAME
    assert main(["lora", "convert", str(file), str(out), "--to", "comfyui"]) == 0
    keys = load_file(out).keys()
    assert {key.rpartition(".lora_")[2] for key in keys} == {"A.weight", "B.weight"}
    assert all(key.startswith("diffusion_model.") for key in keys)
    assert not not_read(["single_transformer_blocks.0.attn.to_out"], "comfyui", "flux2")


LINEAR1 = pair("diffusion_model.single_blocks.0.linear1", up=(9 * WIDTH, 2))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (LINEAR1 | pair("diffusion_model.double_blocks.0.img_mlp.0", up=(4 * WIDTH, 2)), "mixes layers"),
        (LINEAR1 | pair("diffusion_model.double_blocks.0.img_mod.lin", up=(6 * WIDTH, 2)), "mixes layers"),
        (LINEAR1 | pair("transformer.transformer_blocks.0.attn2.to_q"), "mixes layers of FLUX.2 and of"),
        (LINEAR1 | pair("diffusion_model.vector_in.in_layer"), "mixes layers"),
        (pair("diffusion_model.single_blocks.0.linear1", up=(8 * WIDTH, 2)), "256×32 .* fit neither"),
        (pair("diffusion_model.single_blocks.0.linear2", down=(2, 6 * WIDTH)), "which fit neither"),
        (pair("diffusion_model.double_stream_modulation_img.lin", up=(3 * WIDTH, 2)), "which fit neither"),
        (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), "which fit neither"),
        (
            LINEAR1 | pair("diffusion_model.single_blocks.1.linear1", down=(2, 64), up=(9 * 64, 2)),
            "different width",
        ),
        (LINEAR1 | pair("lora_unet_single_blocks_0_linear1", up=(9 * WIDTH, 2), peft=False), "twice"),
        (LINEAR1 | pair("diffusion_model.distilled_guidance_layer.in_proj"), "Chroma"),
        (pair("transformer.single_transformer_blocks.0.ff.linear_in", up=(6 * WIDTH, 2)), "FLUX 3"),
        (pair("transformer.early_stream_modulations.txt.linear", up=(6 * WIDTH, 2)), "FLUX 3"),
        (pair("diffusion_model.double_blocks.0.img_attn_qkv", up=(3 * WIDTH, 2)), "musubi"),
        ({"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": torch.ones(2, 2)}, "LoKr"),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16)}, "biases or norms"),
    ],
)  # fmt: skip
def test_what_is_no_lora_for_flux_2_is_refused_in_a_sentence(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(save(tmp_path, tensors))
    assert str(caught.value).startswith(str(tmp_path)) and str(caught.value).endswith(".")
    assert caught.value.hint.endswith(".")


ATTENTION = pair("transformer.transformer_blocks.0.attn.to_q")
EVERY = ATTENTION | pair("transformer.transformer_blocks.1.attn.to_v")


@pytest.mark.parametrize(
    ("tensors", "metadata", "on_flux2", "on_flux1"),
    [
        (EVERY, {"ss_base_model_version": "flux_2_klein_4b"}, "", "was trained on FLUX.2"),
        (EVERY, {"ss_base_model_version": "flux1"}, "was trained on FLUX.1", ""),
        (EVERY, {}, "", ""),
        (ATTENTION, {}, "FLUX.1 and FLUX.2 share", ""),
        (ATTENTION, {"modelspec.architecture": "Flux.2-klein-4b/lora"}, "", "was trained on FLUX.2"),
        (ATTENTION, {"ss_sd_model_name": "flux-2-klein-base-4b.safetensors"}, "", "was trained on FLUX.2"),
        (LINEAR1, {}, "", "was trained on FLUX.2"),
        (LINEAR1, {"ss_base_model_version": "flux1"}, "", "was trained on FLUX.2"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q"), {}, "was trained on FLUX.1", ""),
    ],
)
def test_a_lora_is_used_with_the_family_that_it_is_for(
    tmp_path: Path,
    base: nn.Module,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    on_flux2: str,
    on_flux1: str,
) -> None:
    """Attention layers of both models have the same names, and here the same sizes."""
    file = save(tmp_path, tensors, **metadata)
    for plain, refused in ((base, on_flux2), (tiny_transformer(), on_flux1)):
        transformer = copy.deepcopy(plain)
        if not refused:
            load_lora(transformer, file)
            assert deltas(transformer)
            continue
        with pytest.raises(ModelError, match=refused):
            load_lora(transformer, file)
        assert not deltas(transformer)


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
    assert any("Flux2KleinKVPipeline" in words for words in warned)
    assert not any("which only triptych samples" in words for words in warned)
    metadata = read_header(out).metadata
    assert read_header(out).about["context_placement"] == "reference"
    assert metadata["modelspec.architecture"] == "flux-2-klein-4b/lora"
    assert metadata["modelspec.usage_hint"].endswith("clean context, reference placement")
    assert "Apache-2.0" in metadata["modelspec.license"]


def test_a_file_that_may_be_for_either_says_so(
    tmp_path: Path, base: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, ATTENTION)
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


def test_a_placement_that_is_not_known_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path, LINEAR1, triptych=json.dumps({"context_placement": "beside"}))
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
