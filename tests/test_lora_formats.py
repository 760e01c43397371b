"""LoRA formats: what a file says, by its own program's rules, is what our layers compute. Outputs are
compared, not names.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych import flow
from triptych.cli import main
from triptych.errors import ModelError
from triptych.lora.adapter import (
    FILE_NAME,
    load_lora,
    open_lora,
    read_about,
    read_header,
    read_lora,
    save_lora,
)
from triptych.lora.formats import change_norm, from_diffusers, layers_of, scaled, to_diffusers
from triptych.lora.names import (
    DIFFSYNTH,
    DIFFUSERS,
    FORMATS,
    FUSED,
    NATIVE,
    SPLIT_NATIVE,
    XLABS,
    Format,
    Names,
    pattern_of,
    shown,
)

HIDDEN = 32
Change = dict[str, Tensor]
"""Layer of the transformer → what the file adds to its weight, (out, in)."""


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=40,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()


@pytest.fixture
def model(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    return copy.deepcopy(base)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def randn(*shape: int, of: str) -> Tensor:
    return torch.randn(*shape, generator=flow.generator_for("lora", of)) * 0.3


def numbered(names: Names, blocks: int = 2) -> dict[str, tuple[str, ...]]:
    """The table's names with every block's number in place of `#`."""
    found = {}
    for name, parts in names.items():
        for number in range(blocks if "#" in name else 1):
            found[name.replace("#", str(number))] = tuple(part.replace("#", str(number)) for part in parts)
    return found


def write(
    model: nn.Module,
    names: Names,
    key: Callable[[str, str], str],
    rank: int = 4,
    alpha: float | None = None,
    only: Callable[[str], bool] = lambda name: True,
    swap_halves: bool = True,
) -> tuple[dict[str, Tensor], Change]:
    """A file in the given names, every matrix dense; and the change it means for the transformer's layers.

    The change is made the way the file's own program applies it: alpha/rank · up @ down is added to the layer
    that program has, fused or not; then its rows are handed out to diffusers' layers, in order.
    """
    layers, tensors, change = linears(model), {}, {}
    for name, parts in numbered(names).items():
        if not only(name) or parts[0] not in layers:
            continue
        heights = [layers[part].out_features for part in parts]
        down, up = (
            randn(rank, layers[parts[0]].in_features, of="down" + name),
            randn(sum(heights), rank, of="up" + name),
        )
        tensors[key(name, "down")], tensors[key(name, "up")] = down, up
        if alpha is not None:
            tensors[key(name, "alpha")] = torch.tensor(alpha)
        fused = (up @ down) * (1.0 if alpha is None else alpha / rank)
        if swap_halves and parts == ("norm_out.linear",):  # (shift, scale) there, (scale, shift) here
            half = len(fused) // 2
            fused = torch.cat([fused[half:], fused[:half]])
        change.update(zip(parts, fused.split(heights), strict=True))
    assert change
    return tensors, change


def dotted(prefix: str, down: str = "lora_down", up: str = "lora_up") -> Callable[[str, str], str]:
    suffix = {"down": f".{down}.weight", "up": f".{up}.weight", "alpha": ".alpha"}
    return lambda name, side: prefix + name + suffix[side]


def underscored(prefix: str) -> Callable[[str, str], str]:
    plain = dotted("")
    return lambda name, side: prefix + plain("", side).join([name.replace(".", "_"), ""])


PEFT = ("lora_A", "lora_B")


def check_outputs(lora: nn.Module, base: nn.Module, change: Change, tolerance: float = 1e-5) -> None:
    """Every linear layer of the adapted model computes base(x) + change @ x, those the file does not name
    too.
    """
    plain = linears(base)
    for name, linear in plain.items():
        x = randn(3, linear.in_features, of="x" + name)
        expected = linear(x) + (x @ change[name].T if name in change else 0)
        difference = (lora.get_submodule(name)(x) - expected).abs().max()
        assert difference < tolerance, f"{name}: {difference}"
        assert name not in change or (x @ change[name].T).abs().max() > 1e-2, (
            f"the test says nothing about {name}"
        )


def save(folder: Path, tensors: dict[str, Tensor], adapter: dict | None = None, **metadata: str) -> Path:
    about = (
        {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in adapter.items()})}
        if adapter
        else {}
    )
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        folder / FILE_NAME,
        metadata={"format": "pt", **about, **metadata},
    )
    return folder / FILE_NAME


def diffusers_loads(tiny_flux: Path, model: nn.Module, file: Path) -> nn.Module:
    """The transformer after diffusers' own `load_lora_weights`."""
    pipe = FluxPipeline.from_pretrained(tiny_flux, transformer=copy.deepcopy(model))
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return pipe.transformer


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


def test_no_name_stands_for_two_things() -> None:
    meant: dict[str, Format] = {}
    for format in FORMATS:
        for name in format.names:
            full = format.prefix + name.replace(".", format.separator)
            other = meant.setdefault(full, format)
            assert (
                other.names[
                    next(n for n in other.names if other.prefix + n.replace(".", other.separator) == full)
                ]
                == format.names[name]
            )


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


PUBLISHED_DOUBLE = (
    *(
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    ),
    *(
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "norm1.linear",
        "norm1_context.linear",
    ),
)
PUBLISHED_SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear")


def published_names(double: int, single: int) -> list[str]:
    """The layers of the ten In-Context LoRAs of arXiv 2410.23775: all linear layers inside the blocks, none
    outside.
    """
    return [f"transformer_blocks.{n}.{part}" for n in range(double) for part in PUBLISHED_DOUBLE] + [
        f"single_transformer_blocks.{n}.{part}" for n in range(single) for part in PUBLISHED_SINGLE
    ]


def test_the_published_key_set_has_the_published_size() -> None:
    """couple-profile.safetensors is 171,969,352 bytes: rank 16 in float16,
    with some 400 bytes of metadata.
    """
    sides = {
        "ff.net.0.proj": (4, 1),
        "ff.net.2": (1, 4),
        "norm1.linear": (6, 1),
        "norm1_context.linear": (6, 1),
    }
    sides |= {
        "ff_context.net.0.proj": (4, 1),
        "ff_context.net.2": (1, 4),
        "proj_mlp": (4, 1),
        "proj_out": (1, 5),
        "norm.linear": (3, 1),
    }
    header, offset = {}, 0
    for key in sorted(
        f"transformer.{name}.lora_{s}.weight" for name in published_names(19, 38) for s in "AB"
    ):
        out, into = next((side for part, side in sides.items() if f".{part}." in key), (1, 1))
        shape = [16, into * 3072] if "lora_A" in key else [out * 3072, 16]
        header[key] = {
            "dtype": "F16",
            "shape": shape,
            "data_offsets": [offset, offset := offset + 2 * math.prod(shape)],
        }
    size = 8 + len(json.dumps(header, separators=(",", ":"))) + offset
    assert 300 < 171_969_352 - size < 600


def test_a_published_in_context_lora_loads_and_runs(
    tmp_path: Path, tiny_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their exact key set on a model with fewer blocks, in float16 as they are;
    from the file to a picture.
    """
    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux, subfolder="transformer")
    names = {name: (name,) for name in published_names(1, 2)}
    tensors, change = write(transformer, names, dotted("transformer.", *PEFT), rank=16)
    file = save(tmp_path, {key: tensor.half() for key, tensor in tensors.items()})
    assert len(tensors) == 2 * (14 + 2 * 6)
    plain = copy.deepcopy(transformer)
    load_lora(transformer, file)
    check_outputs(transformer, plain, change, tolerance=2e-2)  # float16 keeps three digits
    words = [
        "generate",
        "--model",
        str(tiny_flux),
        "--prompt",
        "a dress <IMAGE 1> <IMAGE 2> <IMAGE 3>",
        "--num-inference-steps",
        "2",
    ]
    words += ["--device", "cpu", "--dtype", "fp32"]
    assert main([*words, "--out", str(tmp_path / "with"), "--lora", str(file), "--json"]) == 0
    assert main([*words, "--out", str(tmp_path / "without"), "--json"]) == 0
    ours, none = (
        Path(json.loads(line)["images"][0]).read_bytes() for line in capsys.readouterr().out.splitlines()
    )
    assert ours != none


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


@pytest.mark.parametrize("target", ["comfyui", "kohya"])
@pytest.mark.parametrize("only", ["everything", "to_q alone", "q and v of different rank"])
def test_round_trip_through_another_programs_names(
    tmp_path: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel, target: str, only: str
) -> None:
    """Ours → theirs → ours: the same outputs; and theirs, applied to the fused layers by their rules, mean
    the same.
    """
    keep = {"everything": "", "to_q alone": ".to_q", "q and v of different rank": ".to_v"}[only]
    tensors, change = write(
        base, DIFFUSERS, dotted("", *PEFT), only=lambda name: keep in name, swap_halves=False
    )
    if only == "q and v of different rank":
        more, moved = write(base, DIFFUSERS, dotted("", *PEFT), rank=2, only=lambda name: ".to_q" in name)
        tensors, change = tensors | more, change | moved
    ours, theirs, back = (
        tmp_path / "ours.safetensors",
        tmp_path / "theirs.safetensors",
        tmp_path / "back.safetensors",
    )
    save_file({f"transformer.{key}": tensor for key, tensor in tensors.items()}, ours)
    assert main(["lora", "convert", str(ours), str(theirs), "--to", target]) == 0
    assert main(["lora", "convert", str(theirs), str(back), "--to", "diffusers"]) == 0
    load_lora(model, back)
    check_outputs(model, base, change)
    restored = {key: tensor.shape for key, tensor in load_file(back).items()}
    assert restored == {f"transformer.{key}": tensor.shape for key, tensor in tensors.items()}, (
        "the ranks fall apart again"
    )
    check_native_meaning(load_file(theirs), target, base, change)


def check_native_meaning(tensors: dict[str, Tensor], target: str, base: nn.Module, change: Change) -> None:
    """Each layer of a native file means alpha/rank · up @ down for the fused weight, whose rows are the
    parts' in order.
    """
    layers, seen = linears(base), set()
    for name, parts in numbered(NATIVE).items():
        stem = "lora_unet_" + name.replace(".", "_") if target == "kohya" else "diffusion_model." + name
        if f"{stem}.lora_down.weight" not in tensors:
            assert not set(parts) & set(change)
            continue
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        # kohya divides alpha by the rank; ComfyUI multiplies by 1 where a file has no alpha.
        delta = up @ down * (float(tensors[f"{stem}.alpha"]) / len(down) if target == "kohya" else 1.0)
        zero = [torch.zeros_like(layers[part].weight) for part in parts]
        expected = torch.cat([change.get(part, nothing) for part, nothing in zip(parts, zero, strict=True)])
        if name == "final_layer.adaLN_modulation.1":
            expected = torch.cat([expected[HIDDEN:], expected[:HIDDEN]])
        assert (delta - expected).abs().max() < 1e-5, name
        seen |= {
            f"{stem}.{s}"
            for s in ("lora_down.weight", "lora_up.weight", *(["alpha"] if target == "kohya" else []))
        }
    assert seen == tensors.keys()


def test_a_fused_file_keeps_its_rank_through_our_names(tmp_path: Path, base: FluxTransformer2DModel) -> None:
    tensors, _ = write(base, NATIVE, underscored("lora_unet_"), alpha=4.0)
    file = save(tmp_path, tensors)
    ours, again = tmp_path / "ours.safetensors", tmp_path / "again.safetensors"
    assert main(["lora", "convert", str(file), str(ours)]) == 0
    assert main(["lora", "convert", str(ours), str(again), "--to", "kohya"]) == 0
    back = load_file(again)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors), (
        "alpha was the rank: not a bit changes"
    )


def test_what_convert_writes_diffusers_applies_at_full_strength(
    tmp_path: Path, tiny_flux: Path, base: FluxTransformer2DModel, model: FluxTransformer2DModel
) -> None:
    """Gaps 1 and 12 mended by converting first: layers outside the blocks, single blocks of any width, alpha,
    mixed ranks.

    The final layer is `proj_out`, the end of the single blocks' names too, and here of another rank than
    theirs.
    """
    tensors, change = write(
        base, NATIVE, underscored("lora_unet_"), alpha=1.0, only=lambda name: "blocks" in name
    )
    more, outside = write(
        base, NATIVE, underscored("lora_unet_"), rank=7, alpha=14.0, only=lambda name: "blocks" not in name
    )
    file, change = save(tmp_path, tensors | more), change | outside
    out = tmp_path / "ours" / FILE_NAME
    assert main(["lora", "convert", str(file), str(out)]) == 0
    check_outputs(diffusers_loads(tiny_flux, base, out), base, change)
    load_lora(model, out)
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


def pair(
    stem: str, down: Iterable[int] = (2, HIDDEN), up: Iterable[int] = (HIDDEN, 2), peft: bool = True
) -> dict[str, Tensor]:
    names = PEFT if peft else ("lora_down", "lora_up")
    return {f"{stem}.{names[0]}.weight": torch.ones(*down), f"{stem}.{names[1]}.weight": torch.ones(*up)}


Q = "transformer.transformer_blocks.0.attn.to_q"
GOOD = pair(Q)
NAN = {f"{Q}.lora_A.weight": torch.full((2, HIDDEN), math.nan), f"{Q}.lora_B.weight": torch.ones(HIDDEN, 2)}
W = torch.ones(HIDDEN, 2)
SINGLE = pair("transformer.single_transformer_blocks.0.attn.to_q")
LOKR = {
    "lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(2, 2),
    "lycoris_transformer_blocks_0_attn_to_q.alpha": torch.ones(()),
}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (GOOD | {"nonsense.weight": torch.ones(1)}, "nonsense.weight"),
        (GOOD | pair("transformer.transformer_blocks.0.attn.to_z"), "to_z"),
        (GOOD | pair("lora_unet_img_out", peft=False), "lora_unet_img_out"),
        (GOOD | pair("lora_unet_double_blocks_x_img_attn_proj", peft=False), "blocks_x"),
        (GOOD | pair("transformer.\x1b[31mred"), r"\\x1b\[31mred"),
        (LOKR, "LoKr"),  # gap 7
        ({"transformer.x_embedder.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
        (GOOD | {f"{Q}.dora_scale": torch.ones(HIDDEN)}, "DoRA"),  # gap 8
        (GOOD | {f"{Q}.lora_magnitude_vector": torch.ones(HIDDEN)}, "DoRA"),
        (GOOD | {f"{Q}.magnitude": torch.ones(HIDDEN)}, "DoRA"),  # ai-toolkit's
        # ai-toolkit's full rank: one matrix a layer
        (
            {
                f"transformer.transformer_blocks.{n}.attn.to_q.lora_A.weight": torch.ones(HIDDEN, HIDDEN)
                for n in (0, 1)
            },
            "full-rank",
        ),
        (
            {
                "oft_unet_double_blocks_0_img_attn_proj.alpha": torch.zeros(()),
                "oft_unet_double_blocks_0_img_attn_proj.oft_blocks": W,
            },
            "OFT",
        ),
        ({"lycoris_x_embedder.alpha": torch.zeros(()), "lycoris_x_embedder.oft_blocks": W}, "OFT"),
        ({"transformer.x_embedder.oft_R.weight": W, "transformer.x_embedder.alpha": torch.ones(())}, "OFT"),
        ({f"lycoris_x_embedder.{part}.weight": W.clone() for part in ("a1", "a2", "b1", "b2")}, "GLoRA"),
        (GOOD | {"lycoris_transformer_blocks_0_norm1_norm.w_norm": W}, "biases or norms"),
        (GOOD | {f"{Q}.diff": W}, "whole weights"),
        ({f"base_model.model.{Q}.vera_lambda_b": W}, "VeRA"),
        ({f"{Q}.weight": W}, "whole weights of a model"),
        ({f"{Q}.qweight": W}, "nunchaku"),
        (pair("diffusion_model.double_blocks.0.img_attn_proj"), "HunyuanVideo"),  # musubi's convert_lora
        (pair("lora_unet_double_blocks_0_img_mod_linear", peft=False), "HunyuanVideo"),
        (pair("lora_unet_layers_0_attention_qkv", peft=False), "Lumina"),
        (pair("transformer.noise_refiner.0.attn.to_q"), "Lumina"),
        (pair("diffusion_model.blocks.0.cross_attn.k"), "Wan"),
        (pair("transformer.transformer_blocks.0.attn1.to_q"), "cross attention"),
        (GOOD | pair("diffusion_model.distilled_guidance_layer.in_proj"), "Chroma"),
        (GOOD | {"bundle_emb.token.clip_l": W}, "text encoder"),
        # what more than a text encoder stands in the way is said first: to leave the encoder out would not
        # help
        (LOKR | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", peft=False), "LoKr"),
        # gap 9: FLUX.2 in native names, told by its wider feed-forward, or by layers of its own
        (pair("diffusion_model.single_blocks.0.linear1", up=(9 * HIDDEN, 2)), "FLUX.1"),
        (pair("diffusion_model.double_blocks.0.img_mlp.0", up=(6 * HIDDEN, 2)), "FLUX.1"),
        (pair("diffusion_model.double_stream_modulation_img.lin"), "FLUX.2"),
        (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), "FLUX.2"),
        (pair("diffusion_model.content_mode_blocks.0.q_proj"), "FLUX 3"),  # gap 11
        (pair("lora_unet_single_blocks_0_q_proj", peft=False), "FLUX 3"),
        (pair("diffusion_model.layers.0.attention.to_q"), "Z-Image"),
        (pair("diffusion_model.joint_blocks.0.x_block.attn.qkv"), "own names"),
        (pair("transformer.transformer_blocks.0.img_mlp.net.0.proj"), "Qwen-Image"),
        (
            pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", peft=False),
            "Stable Diffusion",
        ),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16)}, "biases or norms"),
        ({"double_blocks.0.img_attn.proj.lora_B.bias": torch.ones(HIDDEN)}, "biases or norms"),
        (GOOD | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", peft=False), "text encoder"),
        (GOOD | pair("text_encoder.text_model.encoder.layers.0.mlp.fc1"), "text encoder"),
        (GOOD | pair("diffusion_model.double_blocks.0.img_attn.qkv", up=(3 * HIDDEN, 2)), "twice"),
        (GOOD | {f"{Q}.lora_down.weight": torch.ones(2, HIDDEN)}, "twice"),
        (NAN, "finite"),
        (GOOD | {f"{Q}.alpha": torch.tensor(math.inf)}, "finite"),
        (GOOD | {f"{Q}.alpha": torch.tensor(0.0)}, "one number above 0"),
        (GOOD | {f"{Q}.alpha": torch.ones(3)}, "one number above 0"),
        ({k: v * 3e38 for k, v in GOOD.items()} | {f"{Q}.alpha": torch.tensor(3e38)}, "beyond all bounds"),
        ({k: v * 1e30 for k, v in GOOD.items()}, "beyond all bounds"),
        ({k: v * 3e6 for k, v in GOOD.items()}, "beyond all bounds"),
        (GOOD | {f"{Q}.lora_A.weight": torch.full((2, HIDDEN), 1e10)}, "beyond all bounds"),
        (GOOD | {f"{Q}.alpha": torch.tensor(1e38)}, "beyond all bounds"),
        ({k: (v * 60000).half() for k, v in GOOD.items()}, "beyond all bounds"),
        (
            pair("transformer.transformer_blocks.0.norm1.linear", up=(9 * HIDDEN, 2)) | SINGLE,
            "FLUX.1 and of Stable Diffusion 3",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(2, HIDDEN)}, "lacks the up"),
        ({f"{Q}.alpha": torch.ones(())}, "lacks the up"),
        (pair(Q, down=(3, HIDDEN)), "rank 3 going down and 2 going up"),
        (pair(Q, down=(2, HIDDEN, 1, 1)), "2×32×1×1"),
        (pair(Q, down=(0, HIDDEN), up=(HIDDEN, 0)), "0×32"),
        (GOOD | {f"{Q}.lora_A.weight": torch.tensor(1.0)}, "of the shape a single number, not a matrix"),
        (pair(Q, up=(HIDDEN + 1, 2)), "33×32"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", up=(HIDDEN, 2), peft=False), "32×32"),
        (pair("transformer.norm_out.linear", up=(7, 2)), "7×32"),
        (
            GOOD | pair("transformer.transformer_blocks.0.attn.to_k", down=(2, 64), up=(64, 2)),
            "different width",
        ),
        ({key: tensor.to(torch.int8) for key, tensor in GOOD.items()}, "int8"),
        ({}, "empty"),
    ],
)
def test_what_is_no_lora_for_flux_1_is_refused_in_a_sentence(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(save(tmp_path, tensors))
    sentence = str(caught.value)
    assert sentence.startswith(str(tmp_path))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "\x1b" not in sentence
    assert caught.value.hint.endswith(".")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"lora_adapter_metadata": "[1]"}, "lora_adapter_metadata"),
        ({"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata"),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": "much"}'}, "alpha"),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": NaN}'}, "alpha"),
        (
            {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 1' + "0" * 400 + "}"},
            "alpha",
        ),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.alpha_pattern": [1]}'}, "alpha"),
        ({"lora_adapter_metadata": '{"transformer.r": 2, "transformer.use_dora": true}'}, "DoRA"),
        ({"triptych": "{"}, "triptych"),
        ({"triptych": '{"layout": {"width": 1e999, "height": 1, "roles": ["a"], "columns": 1}}'}, "panels"),
        ({"triptych": '{"layout": {"width": 8, "height": 8, "roles": [["a"]], "columns": 1}}'}, "panels"),
        ({"triptych": '{"context": "murky"}'}, "panels"),
        *(
            (
                {
                    "triptych": json.dumps(
                        {
                            "layout": {"width": 32, "height": 48, "roles": ["front", "worn"], "columns": 2}
                            | change
                        }
                    )
                },
                "panels",
            )
            for change in (
                {"width": 10**9, "height": 10**9},
                {"width": 0},
                {"width": True},
                {"width": "32"},
                {"columns": 3},
                {"columns": 0},
                {"columns": 1.0},
                {"roles": ["../../x", "worn"]},
                {"roles": ["front\n", "worn"]},
                {"roles": ["worn", "worn"]},
                {"roles": []},
                {"roles": "ab"},
                {"roles": ["front", 1]},
                {"roles": [f"r{n}" for n in range(1000)], "columns": 1000},
            )
        ),
        ({"triptych": '{"layout": [1]}'}, "panels"),
        ({"triptych": '{"family": "../x"}'}, "family"),
        ({"triptych": '{"family": ["flux"]}'}, "family"),
        ({"triptych": '{"family": {}}'}, "family"),
        ({"triptych": '{"context_lora": "yes"}'}, "triptych"),
    ],
)
def test_damaged_metadata_is_refused_in_a_sentence(
    tmp_path: Path, metadata: dict[str, str], words: str
) -> None:
    file = save(tmp_path, GOOD, **metadata)
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(file)
    with pytest.raises(ModelError, match=words):
        read_about(file)
    assert len(str(caught.value)) < 400
    assert caught.value.hint


def test_names_in_messages_are_short_and_block_numbers_are_counted_once() -> None:
    assert shown("a" * 120) == repr("a" * 120)
    assert shown("a" * 121) == repr("a" * 117 + "…")
    assert pattern_of("blocks.3.blocks.4.proj") == ("blocks.#.blocks.4.proj", "3")
    assert pattern_of("proj_out") == ("proj_out", "")


@pytest.mark.parametrize(("side", "missing"), [("A", "up (lora_B)"), ("B", "down (lora_A)")])
def test_the_side_that_is_missing_is_named(tmp_path: Path, side: str, missing: str) -> None:
    half = {key: tensor for key, tensor in GOOD.items() if f"lora_{side}" in key}
    with pytest.raises(ModelError) as caught:
        open_lora(save(tmp_path, half))
    assert f"lacks the {missing} weight of " in str(caught.value)


def test_two_strengths_that_disagree_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, GOOD | {f"{Q}.alpha": torch.tensor(1.0)}, {"r": 2, "lora_alpha": 2})
    with pytest.raises(ModelError, match="two strengths"):
        read_lora(file)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"", "download it again"),
        ((4000).to_bytes(8, "little") + b'{"a":', "download it again"),
        (b"PK\x03\x04" + bytes(60), "pickle"),
    ],
)
def test_a_download_that_went_wrong_is_told_by_its_first_bytes(
    tmp_path: Path, content: bytes, hint: str
) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_about(tmp_path / "a.safetensors")
    assert hint in caught.value.hint


def test_a_lora_one_folder_further_down_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    save_file(GOOD, tmp_path / "transformer" / "adapter_model.safetensors")
    with pytest.raises(ModelError) as caught:
        read_about(tmp_path)
    assert str(tmp_path / "transformer") in caught.value.hint


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    import pickle

    class Canary:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "canary",))

    for name in ("a.safetensors", "a.pt", "a.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Canary()))
        torch.save({"x": torch.ones(1)}, tmp_path / ("torch-" + name))
        for file in (name, "torch-" + name):
            with pytest.raises(ModelError, match="no safetensors file"):
                read_lora(tmp_path / file)
    assert not (tmp_path / "canary").exists()


def test_text_encoders_can_be_left_out_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path, GOOD | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", peft=False))
    out = tmp_path / "ours.safetensors"
    assert main(["lora", "convert", str(file), str(out)]) == 1
    assert "--transformer-only" in capsys.readouterr().err
    assert main(["lora", "convert", str(file), str(out), "--transformer-only", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text_encoder_tensors_left_out"] == 2
    assert load_file(out).keys() == GOOD.keys()


def test_what_the_file_says_of_itself_survives_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = {"width": 32, "height": 48, "roles": ["front", "back", "worn"], "columns": 3}
    about = {
        "base_model": "black-forest-labs/FLUX.1-dev",
        "layout": layout,
        "context": "clean",
        "recipe": {"rank": 2},
        "data_sha256": "d",
    }
    ours, theirs, back = (
        tmp_path / "ours.safetensors",
        tmp_path / "theirs.safetensors",
        tmp_path / "back.safetensors",
    )
    save_lora(ours, {key.removeprefix("transformer."): tensor for key, tensor in GOOD.items()}, 2, 1, about)
    assert main(["lora", "convert", str(ours), str(theirs), "--to", "kohya"]) == 0
    assert "clean context, which only triptych samples" in "".join(capsys.readouterr())
    assert main(["lora", "convert", str(theirs), str(back)]) == 0
    capsys.readouterr()
    assert main(["lora", "inspect", str(back)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "panels: front, back, worn, each 32×48 px, 3 in a row" in shown and "context: clean" in shown
    plain = save(tmp_path, GOOD)
    assert main(["lora", "convert", str(plain), str(tmp_path / "noisy.safetensors")]) == 0
    assert "clean context" not in "".join(capsys.readouterr())
    with safe_open(back, "pt") as stream:
        metadata = stream.metadata()
    assert {key: read_lora(back)[1][key] for key in about} == about
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata["modelspec.implementation"] == "diffusers"
    assert metadata["modelspec.resolution"] == "96x48"
    assert "Non-Commercial" in metadata["modelspec.license"]
    with safe_open(theirs, "pt") as stream:
        assert "lora_adapter_metadata" not in stream.metadata(), (
            "it would name layers that are not in the file"
        )
    assert torch.equal(load_file(back)[f"{Q}.lora_B.weight"], torch.full((HIDDEN, 2), 0.5))


def test_inspect_says_what_is_in_a_file(
    tmp_path: Path, base: FluxTransformer2DModel, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, change = write(base, NATIVE, underscored("lora_unet_"), alpha=2.0)
    file = save(
        tmp_path,
        {key: tensor.bfloat16() for key, tensor in tensors.items()},
        ss_base_model_version="flux1\x1b[2J",
    )
    assert main(["lora", "inspect", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "kohya"
    assert told["hidden_size"] == HIDDEN
    assert told["rank"] == {"4": 36}
    assert told["alpha"] == {"2": 36}
    assert told["strength"] == {"0.5": 36}
    assert told["dtype"] == {"bfloat16": 36}
    assert told["base_model"] == "flux1 [2J"
    assert told["bytes"] == file.stat().st_size
    assert told["modules"] == {
        "outside the blocks": 10,
        "single_transformer_blocks attention": 6,
        "single_transformer_blocks feed-forward": 4,
        "single_transformer_blocks modulation": 2,
        "transformer_blocks attention": 16,
        "transformer_blocks feed-forward": 8,
        "transformer_blocks modulation": 4,
    }
    norms = {name: float(delta.norm()) for name, delta in change.items()}
    assert told["change"]["at"] == max(norms, key=lambda name: norms[name])
    assert told["change"]["largest"] == pytest.approx(max(norms.values()), rel=0.02)
    assert main(["lora", "inspect", str(file)]) == 0
    out = capsys.readouterr().out
    assert "format: kohya" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["convert"], 1),
        (["convert", "no-such.safetensors", "out.safetensors"], 1),
        (["convert", "good", "out.bin"], 1),
        (["convert", "good", "good/" + FILE_NAME], 1),
        (["convert", "good", "out.safetensors", "--to", "a1111"], 2),
        (["convert", "good", "out.safetensors", "more"], 2),
        (["inspect"], 1),
        (["inspect", "no-such"], 1),
        (["explain", "good"], 2),
    ],
)
def test_exit_codes(
    words: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    before = save(tmp_path / "good", GOOD).read_bytes()
    assert main(["lora", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert code == 2 or [line.split(":")[0] for line in captured.err.splitlines() if line.strip()] == [
        "error",
        "hint",
    ]
    assert (tmp_path / "good" / FILE_NAME).read_bytes() == before
    assert not list(tmp_path.glob("out*"))


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


@pytest.mark.parametrize(
    ("q", "k", "fused"),
    [
        ((HALF, HALF), None, (HALF, HALF)),
        ((HALF, HALF), (HALF, HALF), (HALF, HALF)),
        ((HALF, FULL), None, (HALF, FULL)),
        ((HALF, BRAIN), (FULL, HALF), (FULL, FULL)),
    ],
)
def test_fusing_rounds_nothing_and_widens_only_what_is_mixed(
    q: tuple[torch.dtype, torch.dtype],
    k: tuple[torch.dtype, torch.dtype] | None,
    fused: tuple[torch.dtype, torch.dtype],
) -> None:
    state, expected = dict[str, Tensor](), torch.zeros(3 * HIDDEN, HIDDEN)
    for row, (part, dtypes) in enumerate((("q", q), ("k", k))):
        if dtypes:
            down, up = (
                randn(*shape, of=f"{part}{shape}").to(dtype)
                for shape, dtype in zip(((2, HIDDEN), (HIDDEN, 2)), dtypes, strict=True)
            )
            stem = f"transformer_blocks.0.attn.to_{part}"
            state |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            expected[row * HIDDEN : (row + 1) * HIDDEN] = up.float() @ down.float()
    tensors = from_diffusers(state, "comfyui")
    down, up = (
        tensors[f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{s}.weight"] for s in ("down", "up")
    )
    assert (down.dtype, up.dtype) == fused
    assert (up.float() @ down.float() - expected).abs().max() < 1e-6
