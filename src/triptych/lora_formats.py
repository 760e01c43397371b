"""The names LoRA files give to the layers of FLUX.1, as tables; and the one way from all of them to diffusers names.
Of Stable Diffusion 3 only diffusers' names are read, nearly all of which it shares with FLUX.1.

A trainer names a layer after the model it holds: diffusers keeps to_q, to_k, to_v and proj_mlp apart, Black Forest Labs'
own model (and with it ComfyUI and kohya) fuses them. Splitting a fused layer keeps `down` and cuts `up` by rows; fusing
puts the parts on a block diagonal. Both are exact. Whatever the tables do not hold is refused by name, never left out.

Legend: down is lora_A, (rank, in); up is lora_B, (out, rank); the layer's weight changes by scale · up @ down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.errors import ModelError

Names = Mapping[str, tuple[str, ...]]
"""Layer in some model → the diffusers layers that hold its rows, top to bottom; `#` stands for the block's number."""

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def _names(double: str, of_double: Names, single: str, of_single: Names, outside: Names) -> dict[str, tuple[str, ...]]:
    return {
        **{f"{double}.#.{name}": tuple(f"transformer_blocks.#.{p}" for p in parts) for name, parts in of_double.items()},
        **{f"{single}.#.{name}": tuple(f"single_transformer_blocks.#.{p}" for p in parts) for name, parts in of_single.items()},
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
# What Stable Diffusion 3 has and FLUX.1 has not: the second attention, of the image alone, in some blocks of SD3.5 medium.
SD3_ONLY = tuple(f"transformer_blocks.#.attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0"))
DIFFUSERS = {part: (part,) for part in (*(part for parts in NATIVE.values() for part in parts), *SD3_ONLY)}
# OneTrainer's present format: native names, the fused layers cut into numbered parts.
SPLIT_NATIVE = {
    **{f"{name}.{i}": (part,) for name, parts in NATIVE.items() if len(parts) > 1 for i, part in enumerate(parts)},
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
# Black Forest Labs keeps (shift, scale) in this layer's rows where diffusers keeps (scale, shift).
_HALVES_SWAPPED = {"final_layer.adaLN_modulation.1"}


class Format(NamedTuple):
    """A way to write keys: `prefix`, then a layer of `names`, with `separator` for its dots."""

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
)
TARGETS = ("diffusers", "comfyui", "kohya")

# Rows and columns of a layer's weight in multiples of the hidden size. Outside the blocks they depend on the encoders.
SIDES = {
    **{f"transformer_blocks.#.{part}": (1, 1) for part in (*_QKV, *_ADDED_QKV, "attn.to_out.0", "attn.to_add_out")},
    **dict.fromkeys(SD3_ONLY, (1, 1)),
    **{f"transformer_blocks.#.{ff}.net.{part}": s for ff in ("ff", "ff_context") for part, s in (("0.proj", (4, 1)), ("2", (1, 4)))},
    **{f"transformer_blocks.#.{norm}.linear": (6, 1) for norm in ("norm1", "norm1_context")},
    **{f"single_transformer_blocks.#.{part}": (1, 1) for part in _QKV},
    "single_transformer_blocks.#.proj_mlp": (4, 1),
    "single_transformer_blocks.#.proj_out": (1, 5),
    "single_transformer_blocks.#.norm.linear": (3, 1),
}

_PART = re.compile(r"(?P<layer>.+?)\.(?:lora_A|lora_B|lora_down|lora_up|(?:lora\.)?(?:down|up))(?:\.(?!weight)[\w-]+)?\.weight")
_BLOCK = re.compile(r"(?<=blocks[._])[0-9]{1,4}(?=[._])")
TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(lora_te|text_encoder|text_encoders\.|clip_l\.|t5\.|te[0-9]?\.)")
_TRANSFORMER_ONLY = "`triptych lora convert IN OUT --transformer-only` writes a file without that part, which may then look different."
_FLUX_1 = "Only LoRAs for FLUX.1 and Stable Diffusion 3 are read; look for one that was trained on the model in use."
_EXTRACT = "Merge it into the base model with the program that made it, and extract a plain LoRA there."
# What keys that are in no table betray of their file: pattern, what the file is, what to do about it.
REFUSED: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, hint)
    for pattern, what, hint in (
        (TEXT_ENCODER.pattern, "also adapts a text encoder, which is not supported", _TRANSFORMER_ONLY),
        (r".*(\.lokr_|\.hada_|\.oft_|\.glora|\.lora_mid|\.on_input)", "is a LoKr, LoHa or other LyCORIS file, not a LoRA", _EXTRACT),
        (r".*(dora_scale|lora_magnitude_vector)", "is a DoRA, which is more than a LoRA", _EXTRACT),
        (r".*(_norm\.scale|norm_(added_)?[qk]\.weight|\.bias|\.diff_b|\.diff|reshape_weight)$", "changes biases or norms too", _EXTRACT),
        (r".*((double|single)_stream_modulation|to_qkv_mlp_proj|ff(_context)?[._]linear_(in|out))", "is for FLUX.2", _FLUX_1),
        (r".*(mode_blocks[._]|single_blocks[._]\d+[._]([qkv]_proj|attn_out|mlp_(in|out)))", "is for FLUX 3", _FLUX_1),
        (r".*(?<!_)layers[._]\d+[._](attention|feed_forward)", "is for Z-Image", _FLUX_1),
        (r".*transformer_blocks[._]\d+[._](img|txt)_m(lp|od)", "is for Qwen-Image", _FLUX_1),
        (r".*joint_blocks[._]", "is for Stable Diffusion 3 in that model's own names", "Export it again in diffusers' names."),
        (r".*((down|up|input|output)_blocks?|mid_block|middle_block)[._]", "is for Stable Diffusion", _FLUX_1),
    )
)


@dataclass(frozen=True)
class Layer:
    """One linear layer as a file names and adapts it; `parts` are the diffusers layers it becomes. alpha None: not in the file."""

    name: str
    format: str
    parts: tuple[str, ...]
    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def family_of(layers: Iterable[Layer]) -> str:
    """Whose layers these are, by name. Without a second attention Stable Diffusion 3 has FLUX.1's names, and passes for it."""
    return "sd3" if any(pattern_of(part)[0] in SD3_ONLY for layer in layers for part in layer.parts) else "flux"


def shown(key: str) -> str:
    """A name out of a file, fit for a message: short and without control characters."""
    return repr(key if len(key) <= 120 else key[:117] + "…")


def pattern_of(name: str) -> tuple[str, str]:
    """A layer's name with `#` for its block number, and that number."""
    found = _BLOCK.search(name)
    return (_BLOCK.sub("#", name, count=1), found.group()) if found else (name, "")


def resolve(name: str) -> tuple[Format, str, tuple[str, ...]] | None:
    """The format a layer's name is written in, its pattern there, and the diffusers layers it stands for."""
    pattern, number = pattern_of(name)
    if pattern not in _LOOKUP:
        return None
    format, known = _LOOKUP[pattern]
    return format, known, tuple(part.replace("#", number) for part in format.names[known])


_LOOKUP = {format.prefix + name.replace(".", format.separator): (format, name) for format in FORMATS for name in format.names}


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """The adapted layers in a LoRA file of any known format.

    Raises:
        ModelError: a key that no table holds; a layer without its down or up, or twice; shapes, numbers or ranks that are
            not those of a LoRA for such a model. One sentence without the file's name, to be put behind it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, side = _sides(key)
        if layer is None or resolve(layer) is None:
            raise _unknown(key)
        if side in found.setdefault(layer, {}):
            raise ModelError(f"holds {shown(key)} twice", "Two trainings were mixed into one file; export one of them again.")
        found[layer][side] = _checked(key, side, tensor)
    if not found:
        raise ModelError("is empty", "Save or download the file again.")
    layers, taken, hidden_sizes = [], dict[str, str](), set[int]()
    for name, sides in found.items():
        if not {"down", "up"} <= sides.keys():
            missing = "down (lora_A)" if "up" in sides else "up (lora_B)"
            raise ModelError(f"lacks the {missing} weight of {shown(name)}", "The file is incomplete; save or download it again.")
        resolved = resolve(name)
        assert resolved is not None
        format, pattern, parts = resolved
        for part in parts:
            if part in taken:
                raise ModelError(
                    f"adapts {part} twice, as {shown(taken[part])} and as {shown(name)}", "Export it again in one of the two formats."
                )
            taken[part] = name
        up, down = sides["up"], sides["down"]
        hidden_sizes |= _hidden_size(name, parts, down, up)
        up = torch.cat(up.chunk(2)[::-1]) if pattern in _HALVES_SWAPPED else up
        alpha = float(sides["alpha"]) if "alpha" in sides else None
        layers.append(Layer(name, format.title, parts, down, up, alpha))
    if len(hidden_sizes) > 1:
        raise ModelError("mixes layers of several models of different width", _FLUX_1)
    return layers


def _sides(key: str) -> tuple[str | None, str]:
    """Which layer a key belongs to, and what it is of it: down, up or alpha."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    found = _PART.fullmatch(key)
    if not found:
        return None, ""
    what = key[found.end("layer") + 1 :]
    return found["layer"], "down" if what.startswith(("lora_A", "lora_down", "lora.down", "down")) else "up"


def _unknown(key: str) -> ModelError:
    for pattern, what, hint in REFUSED:
        if pattern.match(key):
            return ModelError(f"{what} (it has the key {shown(key)})", hint)
    return ModelError(
        f"has the key {shown(key)}, which no known LoRA format for FLUX.1 has", "docs/lora.md lists the formats that are read."
    )


def _checked(key: str, side: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.bfloat16()  # holds every 8-bit float exactly, and can be computed with
    if tensor.is_complex() or (side != "alpha" and not tensor.is_floating_point()):
        raise ModelError(f"holds {shown(key)} as {tensor.dtype}, not as floating-point numbers", "Export the LoRA without quantisation.")
    if not torch.isfinite(tensor.float()).all():
        raise ModelError(f"holds numbers that are not finite in {shown(key)}", "It was damaged or its training diverged; train again.")
    if side == "alpha":
        if tensor.numel() != 1 or float(tensor) <= 0:
            raise ModelError(f"holds {shown(key)}, which is not one number above 0", "Save or download the file again.")
    elif tensor.ndim != 2 or 0 in tensor.shape:
        size = "×".join(map(str, tensor.shape)) or "a single number"
        raise ModelError(f"holds {shown(key)} of the shape {size}, not a matrix", "Save or download the file again.")
    return tensor


def _hidden_size(name: str, parts: tuple[str, ...], down: Tensor, up: Tensor) -> set[int]:
    """The model's width as this layer tells it, if it does; refuses what no FLUX.1 of any width has."""
    if down.shape[0] != up.shape[1]:
        ranks = f"rank {down.shape[0]} going down and {up.shape[1]} going up"
        raise ModelError(f"gives {shown(name)} {ranks}", "The file is damaged; save or download it again.")
    sides = [SIDES[pattern] for pattern in (pattern_of(part)[0] for part in parts) if pattern in SIDES]
    rows, columns = (sum(out for out, _ in sides), sides[0][1]) if sides else (0, 1)
    hidden, rest = divmod(down.shape[1], columns)
    odd = parts == ("norm_out.linear",) and up.shape[0] % 2
    if odd or (sides and (rest or up.shape[0] != hidden * rows)):
        raise ModelError(f"changes {shown(name)} by {up.shape[0]}×{down.shape[1]} weights, which do not fit FLUX.1", _FLUX_1)
    return {hidden} if sides else set()


Pair = tuple[Tensor, Tensor]


def to_diffusers(layers: Iterable[Layer], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """Tensors by diffusers name without prefix, `<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank).

    `scales` says by what each layer's change is multiplied; it is folded into lora_B, so that afterwards alpha = rank.

    Raises:
        ModelError: a scale that makes weights infinite.
    """
    state: dict[str, Tensor] = {}
    for layer in layers:
        for part, (down, up) in _split(layer).items():
            state[f"{part}.lora_A.weight"] = down
            state[f"{part}.lora_B.weight"] = scaled(up, scales[layer.name])
            if not torch.isfinite(state[f"{part}.lora_B.weight"]).all():
                raise ModelError(f"has an alpha for {shown(layer.name)} beyond all bounds", "Save or download the file again.")
    return state


def scaled(up: Tensor, scale: float) -> Tensor:
    """`scale · up`; in float32 where the tensor's own precision would round it."""
    exact = up.float() * scale
    kept = exact.to(up.dtype)
    return kept if torch.equal(kept.float(), exact) else exact


def _split(layer: Layer) -> dict[str, Pair]:
    """A layer's parts. A part keeps only the ranks that reach its rows, so that a block diagonal falls apart again."""
    if len(layer.parts) == 1:
        return {layer.parts[0]: (layer.down, layer.up)}
    hidden = layer.down.shape[1]
    pieces = layer.up.split([SIDES[pattern_of(part)[0]][0] * hidden for part in layer.parts])
    used = [(piece != 0).any(0) for piece in pieces]
    if not any(u.any() for u in used):
        return {part: (layer.down, piece) for part, piece in zip(layer.parts, pieces, strict=True)}
    return {
        part: (layer.down[u], piece[:, u]) if not u.all() else (layer.down, piece)
        for part, piece, u in zip(layer.parts, pieces, used, strict=True)
        if u.any()
    }


def from_diffusers(state: Mapping[str, Tensor], target: str) -> dict[str, Tensor]:
    """Diffusers names (without prefix, alpha = rank) in another program's, prefix and all.

    `diffusers` adds the prefix. The others are for FLUX.1: `comfyui` writes native names; `kohya` writes them with underscores
    and an alpha for each layer.
    """
    if target == "diffusers":
        return {f"transformer.{key}": tensor for key, tensor in state.items()}
    groups: dict[str, dict[int, Pair]] = {}
    for key in (k for k in state if k.endswith(".lora_A.weight")):
        name = key.removesuffix(".lora_A.weight")
        pattern, number = pattern_of(name)
        native, position = _HOME[pattern]
        groups.setdefault(native.replace("#", number), {})[position] = (state[key], state[f"{name}.lora_B.weight"])
    tensors: dict[str, Tensor] = {}
    for name, pairs in groups.items():
        pattern = pattern_of(name)[0]
        down, up = _fused(NATIVE[pattern], pairs)
        up = torch.cat(up.chunk(2)[::-1]) if pattern in _HALVES_SWAPPED else up
        stem = f"lora_unet_{name.replace('.', '_')}" if target == "kohya" else f"diffusion_model.{name}"
        # diffusers reads native names only with lora_down and lora_up; ComfyUI reads them in any case.
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
        if target == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


_HOME = {part: (name, position) for name, parts in NATIVE.items() for position, part in enumerate(parts)}


def _fused(parts: tuple[str, ...], pairs: Mapping[int, Pair]) -> Pair:
    """One layer out of its parts; parts that the LoRA leaves alone become zero rows."""
    if len(parts) == 1:
        return pairs[0]
    downs = _one_dtype([pairs[position][0] for position in sorted(pairs)])
    ups = dict(zip(sorted(pairs), _one_dtype([pairs[position][1] for position in sorted(pairs)]), strict=True))
    # Parts that came out of a fused layer share their down; fused again they need no block diagonal.
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
