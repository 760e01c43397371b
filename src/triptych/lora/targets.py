"""Write a LoRA in other programs' names: the reverse of `lora.formats`.

Which program reads what, and at which strength:
  - diffusers' pipelines read `transformer.` names with lora_A and lora_B, for every layer.
  - ComfyUI reads Black Forest Labs' names behind `diffusion_model.`, for every layer, with either pair of
    suffixes, and takes a missing alpha for alpha = rank (`comfy/lora.py`, `comfy/weight_adapter/lora.py`). It
    reads diffusers' names too, but for FLUX.2's time embedding and shared modulations (`comfy/utils.py`).
  - diffusers reads those native names too, for layers inside the blocks: FLUX.1's only with lora_down and
    lora_up, FLUX.2's only with lora_A and lora_B and without alpha; in the other form it loads no layer at
    all (diffusers 0.42.1, `lora_pipeline.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from triptych.lora.formats import HALVES_SWAPPED, Pair
from triptych.lora.names import NAMES, SIDES, pattern_of

TARGETS = ("diffusers", "comfyui", "kohya")
_SUFFIXES = {"flux": ("lora_down", "lora_up"), "flux2": ("lora_A", "lora_B")}
"""Of native names in a file for ComfyUI, so that diffusers reads it too."""


def from_diffusers(state: Mapping[str, Tensor], target: str, family: str = "flux") -> dict[str, Tensor]:
    """Convert tensors by diffusers name (without prefix, alpha = rank) to another program's names with
    prefix.

    `diffusers` adds the prefix. The others are for the families in `lora.names.NAMES`: `comfyui` writes
    native names; `kohya` writes them with underscores and an alpha for each layer.
    """
    if target == "diffusers":
        return {f"transformer.{key}": tensor for key, tensor in state.items()}
    native = NAMES[family]["native"]
    home = {part: (name, place) for name, parts in native.items() for place, part in enumerate(parts)}
    groups: dict[str, dict[int, Pair]] = {}
    for key in (k for k in state if k.endswith(".lora_A.weight")):
        name = key.removesuffix(".lora_A.weight")
        pattern, number = pattern_of(name)
        fused, position = home[pattern]
        groups.setdefault(fused.replace("#", number), {})[position] = (
            state[key],
            state[f"{name}.lora_B.weight"],
        )
    tensors: dict[str, Tensor] = {}
    suffixes = _SUFFIXES["flux" if target == "kohya" else family]
    for name, pairs in groups.items():
        pattern = pattern_of(name)[0]
        down, up = _fused(native[pattern], pairs)
        up = torch.cat(up.chunk(2)[::-1]) if pattern in HALVES_SWAPPED else up
        stem = f"lora_unet_{name.replace('.', '_')}" if target == "kohya" else f"diffusion_model.{name}"
        tensors |= {
            f"{stem}.{suffix}.weight": side for suffix, side in zip(suffixes, (down, up), strict=True)
        }
        if target == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


# Layers that a program does not read from a target, by target and family: the layers' names, the program and
# what it does with them, the target that it reads right.
_NOT_READ = (
    ("diffusers", "flux2", r"time_guidance_embed\.|.*_stream_modulation", "ComfyUI leaves out", "comfyui"),
    ("comfyui", "flux2", r"norm_out\.", "diffusers swaps the halves of", "diffusers"),
    ("comfyui", "flux", r"(?!.*blocks\.)", "diffusers leaves out", "diffusers"),
    (
        "kohya",
        "flux2",
        r"norm_out\.|time_guidance_embed\.guidance|.*_stream_modulation",
        "diffusers leaves out",
        "diffusers",
    ),
    ("kohya", "flux", r"(?!.*blocks\.)", "diffusers leaves out", "diffusers"),
)


def not_read(layers: Sequence[str], target: str, family: str) -> list[str]:
    """Sentences about layers, by diffusers name, that a program which reads this target does not read
    right.
    """
    found = []
    for to, whose, pattern, what, better in _NOT_READ:
        names = [name for name in layers if re.match(pattern, name)]
        if names and (to, whose) == (target, family):
            more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
            found.append(f"From this file {what} {names[0]}{more}; for it write --to {better}.")
    return found


def _fused(parts: tuple[str, ...], pairs: Mapping[int, Pair]) -> Pair:
    """Fuse parts into one layer. Parts that the LoRA does not adapt become zero rows."""
    if len(parts) == 1:
        return pairs[0]
    downs = _one_dtype([pairs[position][0] for position in sorted(pairs)])
    ups = dict(
        zip(sorted(pairs), _one_dtype([pairs[position][1] for position in sorted(pairs)]), strict=True)
    )
    # Parts that were split from a fused layer share their down matrix, so fusing them needs no block
    # diagonal.
    shared = all(torch.equal(downs[0], down) for down in downs[1:])
    down = downs[0] if shared else torch.cat(downs)
    rows, column = [], 0
    for position, part in enumerate(parts):
        piece = torch.zeros(SIDES[part][0] * down.shape[1], down.shape[0], dtype=downs[0].dtype)
        if position in ups:
            up = ups[position]
            piece = piece.to(up.dtype)
            piece[:, column : column + up.shape[1]] = up
            column += 0 if shared else up.shape[1]
        rows.append(piece)
    return down, torch.cat(_one_dtype(rows))


def _one_dtype(tensors: list[Tensor]) -> list[Tensor]:
    return tensors if len({t.dtype for t in tensors}) == 1 else [t.float() for t in tensors]
