"""LoRA formats: what a file says, by its own program's rules, is what our layers compute. Outputs are
compared, not names. FLUX.2's are in `test_lora_flux2.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from torch import Tensor

from tests.lora_files import (
    GOOD,
    HIDDEN,
    PEFT,
    Q,
    check_outputs,
    diffusers_loads,
    dotted,
    linears,
    numbered,
    pair,
    randn,
    save,
    tiny_transformer,
    underscored,
    write,
)
from triptych.cli import main
from triptych.lora.adapter import (
    FILE_NAME,
    load_lora,
    open_lora,
    read_header,
)
from triptych.lora.flux_names import DIFFSYNTH, DIFFUSERS, FUSED, NATIVE, SPLIT_NATIVE, XLABS
from triptych.lora.formats import change_norm, layers_of, scaled, to_diffusers
from triptych.lora.names import FORMATS, NAMES
from triptych.lora.tables import Names


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    return tiny_transformer()


@pytest.fixture
def model(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    return copy.deepcopy(base)


CASES: dict[str, tuple[Names, Callable[[str, str], str], float | None]] = {
    "diffusers": (DIFFUSERS, dotted("transformer.", *PEFT), None),
    "diffusers, lora_down and alpha": (DIFFUSERS, dotted("transformer."), 2.0),  # gap 4
    "diffusers, lora_A and alpha": (DIFFUSERS, dotted("transformer.", *PEFT), 2.0),
    "diffusers, old lora.down": (DIFFUSERS, dotted("transformer.", "lora.down", "lora.up"), None),
    "diffusers without prefix": (DIFFUSERS, dotted("", *PEFT), None),
    "diffusers names behind diffusion_model.": (DIFFUSERS, dotted("diffusion_model.", *PEFT), 8.0),  # gap 3
    "peft": (DIFFUSERS, dotted("base_model.model.", "lora_A.default", "lora_B.default"), None),
    "peft with transformer": (DIFFUSERS, dotted("base_model.model.transformer.", *PEFT), None),
    "kohya": (NATIVE, underscored("lora_unet_"), 2.0),  # gaps 1 and 12
    "kohya without alpha": (NATIVE, underscored("lora_unet_"), None),
    "ComfyUI lora_A": (NATIVE, dotted("diffusion_model.", *PEFT), None),  # gap 2
    "ComfyUI lora_A and alpha": (NATIVE, dotted("diffusion_model.", *PEFT), 3.0),
    "ComfyUI lora_down and alpha": (NATIVE, dotted("diffusion_model."), 16.0),
    "native without prefix": (NATIVE, dotted("", *PEFT), None),
    "fal": (NATIVE, dotted("base_model.model.", *PEFT), None),
    "OneTrainer": (SPLIT_NATIVE, dotted("transformer."), 1.0),
    "OneTrainer legacy": (DIFFUSERS, underscored("lora_transformer_"), 1.0),  # gap 6
    "LyCORIS LoRA": (DIFFUSERS, underscored("lycoris_"), 2.0),
    "XLabs": (XLABS, dotted("", "down", "up"), None),
    "DiffSynth": (DIFFSYNTH, dotted("", "lora_A.default", "lora_B.default"), None),
    "DiffSynth, its pipeline's prefix left on": (
        DIFFSYNTH,
        dotted("pipe.dit.", "lora_A.default", "lora_B.default"),
        None,
    ),
    "diffusers, projections fused": (FUSED, dotted("transformer.", *PEFT), 2.0),
    "LyCORIS LoRA, projections fused": (FUSED, underscored("lycoris_"), 8.0),
}


@pytest.mark.parametrize("case", CASES)
def test_every_format_changes_each_layer_as_its_own_program_does(
    tmp_path: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel, case: str
) -> None:
    names, key, alpha = CASES[case]
    tensors, change = write(base, names, key, alpha=alpha, swap_halves=names is not DIFFUSERS)
    load_lora(model, save(tmp_path, tensors))
    check_outputs(model, base, change)
    expected = (
        set(linears(base))
        if names in (DIFFUSERS, NATIVE, SPLIT_NATIVE)
        else {n for n in change if "blocks." in n}
    )
    assert set(change) == expected, "the test file covers the whole table"


def test_the_cases_cover_every_row_of_the_table_of_formats(
    base: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """Also `diffusion_model.` before XLabs names, which diffusers reads as well."""
    titles = set()
    for names, key, alpha in CASES.values():
        file = open_lora(save(tmp_path, write(base, names, key, alpha=alpha)[0]))
        titles |= {layer.format for layer in file.layers}
        header = read_header(tmp_path / FILE_NAME)
        assert all(layer.up.is_meta and layer.down.is_meta for layer in header.layers), (
            "no matrix is read for a header"
        )
        assert (header.scales, header.family, header.metadata) == (file.scales, file.family, file.metadata)
        assert [(one.name, one.up.shape, one.alpha) for one in header.layers] == [
            (one.name, one.up.shape, one.alpha) for one in file.layers
        ]
    assert titles == {format.title for format in FORMATS}


@pytest.mark.parametrize("family", NAMES)
def test_no_name_stands_for_two_things_in_one_family(family: str) -> None:
    meant: dict[str, tuple[str, ...]] = {}
    for format in FORMATS:
        for name, parts in NAMES[family].get(format.kind, {}).items():
            assert meant.setdefault(format.prefix + name.replace(".", format.separator), parts) == parts


def test_the_native_names_are_those_of_the_real_checkpoint() -> None:
    """diffusers converts FLUX.1's own checkpoint with code of its own; at the real width it must hand out the
    rows as we do.

    `up` with its two columns stands for the weights: rows are all that the conversion moves.
    """
    width, tensors, checkpoint = 3072, dict[str, Tensor](), dict[str, Tensor]()
    outside = {
        "img_in": (64, 1),
        "txt_in": (4096, 1),
        "vector_in.in_layer": (768, 1),
        "final_layer.linear": (width, 64 / width),
    }
    outside |= {
        "time_in.in_layer": (256, 1),
        "guidance_in.in_layer": (256, 1),
        "final_layer.adaLN_modulation.1": (width, 2),
    }
    inside = {
        "img_attn.qkv": 3,
        "txt_attn.qkv": 3,
        "img_mlp.0": 4,
        "txt_mlp.0": 4,
        "img_mod.lin": 6,
        "txt_mod.lin": 6,
    }
    inside |= {"linear1": 7, "modulation.lin": 3}
    columns = {"img_mlp.2": 4 * width, "txt_mlp.2": 4 * width, "linear2": 5 * width}
    for name in numbered(NATIVE, blocks=1):
        part = name.split(".0.", 1)[-1]
        into, times = outside.get(name, (columns.get(part, width), inside.get(part, 1)))
        up = randn(int(times * width), 2, of=name)
        checkpoint |= {f"{name}.weight": up, f"{name}.bias": torch.zeros(len(up))}
        tensors |= {f"{name}.lora_A.weight": torch.ones(2, into), f"{name}.lora_B.weight": up}
    for norm in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        checkpoint |= {f"{norm}.norm.{side}_norm.scale": torch.ones(128) for side in ("query", "key")}
    state = to_diffusers(layers_of(tensors), dict.fromkeys(numbered(NATIVE, blocks=1), 1.0))
    theirs = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    weights = {
        name: tensor for name, tensor in theirs.items() if name.endswith(".weight") and ".norm_" not in name
    }
    assert {name.replace(".weight", ".lora_B.weight") for name in weights} == {
        name for name in state if ".lora_B." in name
    }
    assert all(
        torch.equal(state[name.replace(".weight", ".lora_B.weight")], tensor)
        for name, tensor in weights.items()
    )


@pytest.mark.parametrize(
    "case",
    [
        "diffusers",
        "diffusers, lora_A and alpha",
        "ComfyUI lora_down and alpha",
        "kohya",
        "XLabs",
        "OneTrainer legacy",
    ],
)
def test_where_diffusers_reads_a_format_right_we_compute_the_same(
    tmp_path: Path, tiny_flux: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel, case: str
) -> None:
    """Double blocks only, and attention only for OneTrainer's: the rest is what diffusers 0.42.1 gets wrong
    or cannot do.
    """
    names, key, alpha = CASES[case]
    wanted = "attn" if case == "OneTrainer legacy" else ""

    def only(name: str) -> bool:
        return name.startswith(("double_blocks", "transformer_blocks")) and wanted in name

    tensors, change = write(base, names, key, alpha=alpha, only=only)
    file = save(tmp_path, tensors)
    theirs = diffusers_loads(tiny_flux, base, file)
    load_lora(model, file)
    check_outputs(theirs, base, change)
    check_outputs(model, base, change)


def test_the_final_layer_alone_leaves_the_single_blocks_alone(
    tmp_path: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel
) -> None:
    tensors, change = write(
        base, NATIVE, underscored("lora_unet_"), alpha=2.0, only=lambda name: name == "final_layer.linear"
    )
    load_lora(model, save(tmp_path, tensors))
    check_outputs(model, base, change)
    assert [name for name, _ in model.named_modules() if name.endswith("lora_A")] == ["proj_out.lora_A"]


PARTS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.attn.to_q",
    "single_transformer_blocks.0.proj_out",
)


@pytest.mark.parametrize(
    ("adapter", "alpha", "scales"),
    [
        ({"r": 4, "lora_alpha": 2}, None, (0.5, 0.5, 0.5)),
        ({"r": 4, "lora_alpha": 2}, 2.0, (0.5, 0.5, 0.5)),  # gap 5: both, and they agree
        (
            {"r": 4, "lora_alpha": 4, "alpha_pattern": {"transformer_blocks.0.attn.to_q": 1}},
            None,
            (0.25, 1, 1),
        ),
        (
            {"r": 4, "lora_alpha": 4, "alpha_pattern": {"^transformer_blocks.1.attn.to_q": 2}},
            None,
            (1, 0.5, 1),
        ),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 2}}, None, (0.5, 0.5, 1)),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, None, (1, 1, 1)),
    ],
)
def test_strength_from_peft_config_and_alpha(
    tmp_path: Path,
    tiny_flux: Path,
    base: FluxTransformer2DModel,
    model: FluxTransformer2DModel,
    adapter: dict,
    alpha: float | None,
    scales: tuple[float, ...],
) -> None:
    tensors, change = write(base, {p: (p,) for p in PARTS}, dotted("transformer.", *PEFT), alpha=None)
    change = {part: change[part] * scale for part, scale in zip(PARTS, scales, strict=True)}
    if alpha is None:  # with both, diffusers raises
        told = save(tmp_path, tensors, {**adapter, "target_modules": list(PARTS)})
        check_outputs(diffusers_loads(tiny_flux, base, told), base, change)
    else:
        tensors |= {f"transformer.{part}.alpha": torch.tensor(alpha) for part in PARTS}
    load_lora(model, save(tmp_path, tensors, adapter))
    check_outputs(model, base, change)


def test_strength_multiplies_what_the_file_says(
    tmp_path: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel
) -> None:
    tensors, change = write(base, NATIVE, underscored("lora_unet_"), alpha=2.0)
    load_lora(model, save(tmp_path, tensors), 0.5)
    check_outputs(model, base, {name: delta * 0.5 for name, delta in change.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_small_number_formats_are_read_and_folded_without_rounding(
    tmp_path: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel, dtype: torch.dtype
) -> None:
    tensors, _ = write(base, NATIVE, underscored("lora_unet_"), alpha=3.0)
    small = {key: tensor if key.endswith(".alpha") else tensor.to(dtype) for key, tensor in tensors.items()}
    file = save(tmp_path, small)
    rounded, change = {key: tensor.float() for key, tensor in small.items()}, {}
    for name, parts in numbered(NATIVE).items():
        stem = "lora_unet_" + name.replace(".", "_")
        delta = 0.75 * rounded[f"{stem}.lora_up.weight"] @ rounded[f"{stem}.lora_down.weight"]
        if name == "final_layer.adaLN_modulation.1":
            delta = torch.cat([delta[HIDDEN:], delta[:HIDDEN]])
        change.update(
            zip(parts, delta.split([linears(base)[part].out_features for part in parts]), strict=True)
        )
    out = tmp_path / "ours.safetensors"
    assert main(["lora", "convert", str(file), str(out)]) == 0
    load_lora(model, out)
    check_outputs(model, base, change)


def test_an_alpha_may_be_a_whole_number() -> None:
    layer, *more = layers_of(GOOD | {f"{Q}.alpha": torch.tensor(4)})
    assert layer.alpha == 4 and not more


def test_large_matrices_whose_product_is_small_are_no_damage() -> None:
    down, up = torch.zeros(2, HIDDEN), torch.zeros(HIDDEN, 2)
    down[0], up[:, 1] = 1e5, 1e5
    tensors = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    state = to_diffusers(layers_of(tensors), {Q.removeprefix("transformer."): 1.0, Q: 1.0})
    assert {f"transformer.{key}" for key in state} == tensors.keys()
    assert change_norm(torch.full((2, 3), 1e-3), torch.full((4, 2), 1e-3)) == pytest.approx(2e-6 * 12**0.5)


def test_a_number_format_is_kept_where_it_holds_the_result() -> None:
    up = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    assert scaled(up, 0.5).dtype == torch.bfloat16 and scaled(up, 0.5).tolist() == [0.5, 1.5]
    assert scaled(up, 0.1).dtype == torch.float32 and torch.equal(scaled(up, 0.1), up.float() * 0.1)


def test_a_fused_layer_without_change_keeps_all_its_parts() -> None:
    name = "double_blocks.0.img_attn.qkv"
    tensors = pair(f"diffusion_model.{name}", up=(3 * HIDDEN, 2))
    layers = layers_of({key: one * ("lora_A" in key) for key, one in tensors.items()})
    state = to_diffusers(layers, {layers[0].name: 1.0})
    assert {key: (one.shape, bool(one.any())) for key, one in state.items()} == {
        f"transformer_blocks.0.attn.to_{part}.lora_{side}.weight": (shape, side == "A")
        for part in "qkv"
        for side, shape in (("A", (2, HIDDEN)), ("B", (HIDDEN, 2)))
    }


HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
