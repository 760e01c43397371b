"""Tables of the names that LoRA files give to the layers of FLUX.1 and Stable Diffusion 3.

A trainer uses the layer names of its model code. diffusers has separate layers to_q, to_k, to_v and proj_mlp;
Black Forest Labs' own code, and with it ComfyUI and kohya, fuses them. For Stable Diffusion 3 only diffusers'
names are read; it shares nearly all of them with FLUX.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

Names = Mapping[str, tuple[str, ...]]
"""Layer name in another model code → the diffusers layers that hold its rows, top to bottom. `#` is the block
number.
"""

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def _names(
    double: str, of_double: Names, single: str, of_single: Names, outside: Names
) -> dict[str, tuple[str, ...]]:
    return {
        **{
            f"{double}.#.{name}": tuple(f"transformer_blocks.#.{p}" for p in parts)
            for name, parts in of_double.items()
        },
        **{
            f"{single}.#.{name}": tuple(f"single_transformer_blocks.#.{p}" for p in parts)
            for name, parts in of_single.items()
        },
        **outside,
    }


# Black Forest Labs' own names; kohya writes them with underscores.
NATIVE = _names(
    "double_blocks",
    {
        "img_attn.qkv": _QKV,
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_attn.qkv": _ADDED_QKV,
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks",
    {"linear1": (*_QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)},
    {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
)
# Layers of Stable Diffusion 3 that FLUX.1 lacks: the second attention, over image tokens alone, in some
# blocks of SD3.5 medium.
SD3_ONLY = tuple(f"transformer_blocks.#.attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0"))
DIFFUSERS = {part: (part,) for part in (*(part for parts in NATIVE.values() for part in parts), *SD3_ONLY)}
# diffusers' names after `fuse_projections`, used by SimpleTuner with --fuse_qkv_projections.
FUSED = {
    "transformer_blocks.#.attn.to_qkv": tuple(f"transformer_blocks.#.{part}" for part in _QKV),
    "transformer_blocks.#.attn.to_added_qkv": tuple(f"transformer_blocks.#.{part}" for part in _ADDED_QKV),
    "single_transformer_blocks.#.attn.to_qkv": tuple(f"single_transformer_blocks.#.{part}" for part in _QKV),
}
# A former format of OneTrainer: native names, with the fused layers cut into numbered parts.
SPLIT_NATIVE = {
    **{
        f"{name}.{i}": (part,)
        for name, parts in NATIVE.items()
        if len(parts) > 1
        for i, part in enumerate(parts)
    },
    **{name: parts for name, parts in NATIVE.items() if len(parts) == 1 and name != "img_in"},
    "img_in.proj": ("x_embedder",),
}
XLABS = _names(
    "double_blocks",
    {
        "processor.qkv_lora1": _QKV,
        "processor.proj_lora1": ("attn.to_out.0",),
        "processor.qkv_lora2": _ADDED_QKV,
        "processor.proj_lora2": ("attn.to_add_out",),
    },
    "single_blocks",
    {"processor.qkv_lora": _QKV, "processor.proj_lora": ("proj_out",)},
    {},
)
DIFFSYNTH = _names(
    "blocks",
    {
        "attn.a_to_qkv": _QKV,
        "attn.a_to_out": ("attn.to_out.0",),
        "ff_a.0": ("ff.net.0.proj",),
        "ff_a.2": ("ff.net.2",),
        "norm1_a.linear": ("norm1.linear",),
        "attn.b_to_qkv": _ADDED_QKV,
        "attn.b_to_out": ("attn.to_add_out",),
        "ff_b.0": ("ff_context.net.0.proj",),
        "ff_b.2": ("ff_context.net.2",),
        "norm1_b.linear": ("norm1_context.linear",),
    },
    "single_blocks",
    {"to_qkv_mlp": (*_QKV, "proj_mlp"), "proj_out": ("proj_out",), "norm.linear": ("norm.linear",)},
    {},
)


class Format(NamedTuple):
    """A key format: `prefix`, then a layer of `names` with its dots replaced by `separator`."""

    title: str
    prefix: str
    names: Names
    separator: str = "."


FORMATS = (
    Format("diffusers", "transformer.", DIFFUSERS),
    Format("diffusers without prefix", "", DIFFUSERS),
    Format("diffusers names behind diffusion_model.", "diffusion_model.", DIFFUSERS),
    Format("peft", "base_model.model.", DIFFUSERS),
    Format("peft", "base_model.model.transformer.", DIFFUSERS),
    Format("kohya", "lora_unet_", NATIVE, "_"),
    Format("ComfyUI (native)", "diffusion_model.", NATIVE),
    Format("native without prefix", "", NATIVE),
    Format("native in peft (fal)", "base_model.model.", NATIVE),
    Format("OneTrainer", "transformer.", SPLIT_NATIVE),
    Format("OneTrainer (legacy)", "lora_transformer_", DIFFUSERS, "_"),
    Format("LyCORIS (LoRA)", "lycoris_", DIFFUSERS, "_"),
    Format("XLabs", "", XLABS),
    Format("XLabs", "diffusion_model.", XLABS),
    Format("DiffSynth", "", DIFFSYNTH),
    Format("DiffSynth", "pipe.dit.", DIFFSYNTH),
    *(
        Format("diffusers, projections fused", prefix, FUSED)
        for prefix in (
            "transformer.",
            "",
            "diffusion_model.",
            "base_model.model.",
            "base_model.model.transformer.",
        )
    ),
    Format("LyCORIS (LoRA), projections fused", "lycoris_", FUSED, "_"),
)
TARGETS = ("diffusers", "comfyui", "kohya")

# Rows and columns of a layer's weight, in multiples of the hidden size. Layers outside the blocks are not
# listed: their sizes depend on the encoders.
SIDES = {
    **{
        f"transformer_blocks.#.{part}": (1, 1)
        for part in (*_QKV, *_ADDED_QKV, "attn.to_out.0", "attn.to_add_out")
    },
    **dict.fromkeys(SD3_ONLY, (1, 1)),
    **{
        f"transformer_blocks.#.{ff}.net.{part}": s
        for ff in ("ff", "ff_context")
        for part, s in (("0.proj", (4, 1)), ("2", (1, 4)))
    },
    **{f"transformer_blocks.#.{norm}.linear": (6, 1) for norm in ("norm1", "norm1_context")},
    **{f"single_transformer_blocks.#.{part}": (1, 1) for part in _QKV},
    "single_transformer_blocks.#.proj_mlp": (4, 1),
    "single_transformer_blocks.#.proj_out": (1, 5),
    "single_transformer_blocks.#.norm.linear": (3, 1),
}
# Some modulations of Stable Diffusion 3 have other sizes: wider in blocks with a second attention, narrower
# in the last block.
SD3_ROWS = {"transformer_blocks.#.norm1.linear": 9, "transformer_blocks.#.norm1_context.linear": 2}

_BLOCK = re.compile(r"(?<=blocks[._])[0-9]{1,4}(?=[._])")


def shown(key: str) -> str:
    """A name from a file, made safe for a message: short, without control characters."""
    return repr(key if len(key) <= 120 else key[:117] + "…")


def pattern_of(name: str) -> tuple[str, str]:
    """A layer's name with its block number replaced by `#`, and that number."""
    found = _BLOCK.search(name)
    return (_BLOCK.sub("#", name, count=1), found.group()) if found else (name, "")


class Resolved(NamedTuple):
    """The meaning of a layer's name in a file."""

    format: Format
    pattern: str
    """The layer's row in the format's table."""
    path: str
    """The layer's name in the trained model."""
    parts: tuple[str, ...]
    """The diffusers layers that it stands for."""


def resolve(name: str) -> Resolved | None:
    """Look up a layer's name; None if it is in no table."""
    pattern, number = pattern_of(name)
    if pattern not in _LOOKUP:
        return None
    format, known = _LOOKUP[pattern]
    parts = tuple(part.replace("#", number) for part in format.names[known])
    return Resolved(format, known, known.replace("#", number), parts)


_LOOKUP = {
    format.prefix + name.replace(".", format.separator): (format, name)
    for format in FORMATS
    for name in format.names
}
