"""Write LoRA files as other programs do, and compare what they change; for the tests of LoRA files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych import flow
from triptych.lora.adapter import FILE_NAME
from triptych.lora.tables import Names

HIDDEN = 32
Change = dict[str, Tensor]
"""Layer of the transformer → what the file adds to its weight, (out, in)."""


def tiny_transformer() -> FluxTransformer2DModel:
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


def pair(
    stem: str, down: Iterable[int] = (2, HIDDEN), up: Iterable[int] = (HIDDEN, 2), peft: bool = True
) -> dict[str, Tensor]:
    names = PEFT if peft else ("lora_down", "lora_up")
    return {f"{stem}.{names[0]}.weight": torch.ones(*down), f"{stem}.{names[1]}.weight": torch.ones(*up)}


Q = "transformer.transformer_blocks.0.attn.to_q"
GOOD = pair(Q)
