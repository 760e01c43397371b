"""`lora convert` and `lora inspect`: other programs' names and back, and what is said of a file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.lora_files import (
    GOOD,
    HIDDEN,
    PEFT,
    Change,
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
    read_lora,
    save_lora,
)
from triptych.lora.flux_names import DIFFUSERS, NATIVE, SD3_ONLY
from triptych.lora.names import SIDES
from triptych.lora.targets import from_diffusers


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    return tiny_transformer()


@pytest.fixture
def model(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    return copy.deepcopy(base)


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


@pytest.mark.parametrize("target", ["comfyui", "kohya"])
def test_of_flux_1_in_native_names_diffusers_reads_every_layer_of_the_blocks(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At FLUX.1's own width, which diffusers' conversion is written for; and it is said what is left out."""
    width, tensors = 3072, dict[str, Tensor]()
    outside = {"x_embedder": (width, 64), "proj_out": (64, width), "norm_out.linear": (2 * width, width)}
    sizes = {name: (rows * width, columns * width) for name, (rows, columns) in SIDES.items()}
    for name, (rows, columns) in (sizes | outside).items():
        if name in DIFFUSERS and name not in SD3_ONLY:
            name = name.replace("#", "0")
            tensors[f"transformer.{name}.lora_A.weight"] = randn(2, columns, of="a" + name)
            tensors[f"transformer.{name}.lora_B.weight"] = randn(rows, 2, of="b" + name)
    file, out = save(tmp_path, tensors), tmp_path / target / FILE_NAME
    assert main(["lora", "convert", str(file), str(out), "--to", target, "--json"]) == 0
    warned = json.loads(capsys.readouterr().out)["warnings"]
    assert warned == [
        "From this file diffusers leaves out norm_out.linear and 2 more layers; for it write --to diffusers."
    ]
    theirs = FluxPipeline.lora_state_dict(out.parent, weight_name=out.name)
    inside = {key for key in tensors if "blocks" in key}
    assert {key for key in theirs if key.startswith("transformer.")} == inside
    for name in {key.partition(".lora_")[0] for key in inside}:
        down, up = (theirs[f"{name}.lora_{side}.weight"] for side in "AB")
        x = randn(3, down.shape[1], of="x" + name)
        expected = x @ tensors[f"{name}.lora_A.weight"].T @ tensors[f"{name}.lora_B.weight"].T
        assert (x @ down.T @ up.T - expected).abs().max() < 1e-3 * expected.abs().max(), name


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
