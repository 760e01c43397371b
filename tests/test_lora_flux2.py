"""LoRA files of FLUX.2: what every producer's file means for each layer, and which files are not for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.flux2_files import (
    as_diffusers_converts,
    check_deltas,
    deltas,
    diffusers_loads,
    native_weights,
    tiny_flux2_transformer,
)
from tests.lora_files import (
    HIDDEN,
    PEFT,
    Change,
    check_outputs,
    dotted,
    linears,
    pair,
    save,
    tiny_transformer,
    underscored,
    write,
)
from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import FILE_NAME, load_lora, read_header, read_lora
from triptych.lora.flux2_names import DIFFUSERS, FUSED, NATIVE, SPLIT_NATIVE
from triptych.lora.tables import Names


@pytest.fixture(scope="module")
def base() -> Flux2Transformer2DModel:
    return tiny_flux2_transformer()


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


LINEAR1 = pair("diffusion_model.single_blocks.0.linear1", up=(9 * HIDDEN, 2))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (LINEAR1 | pair("diffusion_model.double_blocks.0.img_mlp.0", up=(4 * HIDDEN, 2)), "mixes layers"),
        (LINEAR1 | pair("diffusion_model.double_blocks.0.img_mod.lin", up=(6 * HIDDEN, 2)), "mixes layers"),
        (LINEAR1 | pair("transformer.transformer_blocks.0.attn2.to_q"), "mixes layers of FLUX.2 and of"),
        (LINEAR1 | pair("diffusion_model.vector_in.in_layer"), "mixes layers"),
        (pair("diffusion_model.single_blocks.0.linear1", up=(8 * HIDDEN, 2)), "256×32 .* fit neither"),
        (pair("diffusion_model.single_blocks.0.linear2", down=(2, 6 * HIDDEN)), "which fit neither"),
        (pair("diffusion_model.double_stream_modulation_img.lin", up=(3 * HIDDEN, 2)), "which fit neither"),
        (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), "which fit neither"),
        (
            LINEAR1 | pair("diffusion_model.single_blocks.1.linear1", down=(2, 64), up=(9 * 64, 2)),
            "different width",
        ),
        (LINEAR1 | pair("lora_unet_single_blocks_0_linear1", up=(9 * HIDDEN, 2), peft=False), "twice"),
        (LINEAR1 | pair("diffusion_model.distilled_guidance_layer.in_proj"), "Chroma"),
        (pair("transformer.single_transformer_blocks.0.ff.linear_in", up=(6 * HIDDEN, 2)), "FLUX 3"),
        (pair("transformer.early_stream_modulations.txt.linear", up=(6 * HIDDEN, 2)), "FLUX 3"),
        (pair("diffusion_model.double_blocks.0.img_attn_qkv", up=(3 * HIDDEN, 2)), "musubi"),
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


@pytest.mark.parametrize(
    ("version", "embedding"),
    [("flux_2_klein_4b", "time_guidance_embed"), ("flux1", "time_text_embed"), ("", "time_text_embed")],
)
def test_a_name_that_both_have_means_what_the_metadata_says(
    tmp_path: Path, base: nn.Module, version: str, embedding: str
) -> None:
    """In Black Forest Labs' code the time embedding has one name and size in both, in diffusers two names."""
    plain = base if embedding == "time_guidance_embed" else tiny_transformer()
    shared = {"double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0",)}
    shared["time_in.in_layer"] = (f"{embedding}.timestep_embedder.linear_1",)
    tensors, change = write(plain, shared, dotted("diffusion_model.", *PEFT))
    file = save(tmp_path, tensors, ss_base_model_version=version)
    transformer = copy.deepcopy(plain)
    load_lora(transformer, file)
    check_deltas(deltas(transformer), change)
