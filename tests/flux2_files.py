"""What diffusers and ComfyUI make of LoRA files of FLUX.2, for the tests of these files."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tests.lora_files import (
    Change,
    linears,
    numbered,
)
from triptych.lora.flux2_names import NATIVE


def tiny_flux2_transformer() -> Flux2Transformer2DModel:
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
