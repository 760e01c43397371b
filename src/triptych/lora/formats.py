"""Convert any LoRA format to diffusers names, and diffusers names to other programs' names.

Splitting a fused layer keeps `down` and cuts `up` by rows; fusing puts the parts on a block diagonal. Both
are exact. A key that is in no table of `lora.names` is an error that names it; no key is ever skipped.

Legend: down is lora_A, (rank, in); up is lora_B, (out, rank); the layer's weight changes by scale · up @
down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.lora.names import NATIVE, SD3_ONLY, SD3_ROWS, SIDES, pattern_of, resolve, shown
from triptych.lora.refused import READ_MODELS, refusal, whole_changes

# Black Forest Labs stores this layer's rows as (shift, scale), diffusers as (scale, shift).
_HALVES_SWAPPED = {"final_layer.adaLN_modulation.1"}

_PART = re.compile(
    r"(?P<layer>.+?)\.(?:lora_A|lora_B|lora_down|lora_up|(?:lora\.)?(?:down"
    r"|up))(?:\.(?!weight)[\w-]+)?\.weight"
)


@dataclass(frozen=True)
class Layer:
    """One adapted linear layer, as the file names it. `parts`: the diffusers layers that it becomes. alpha:
    None if the file has none.
    """

    name: str
    path: str
    """Its name in the trained model: `name` without the program's prefix."""
    format: str
    parts: tuple[str, ...]
    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """The adapted layers in a LoRA file of any known format. Tensors may be on the device `meta` (shapes
    alone), except alphas; then only the check for non-finite numbers is skipped.

    Raises:
        ModelError: a key is in no table; a layer lacks its down or up matrix, or occurs twice; or shapes,
            numbers or ranks do not fit a LoRA for such a model. The message lacks the file's name; the caller
            puts it in front.
    """
    found: dict[str, dict[str, Tensor]] = {}
    sides = {key: _sides(key) for key in tensors}
    unknown = [key for key, (layer, _) in sides.items() if layer is None or resolve(layer) is None]
    if unknown:
        raise refusal(unknown)
    for key, tensor in tensors.items():
        layer, side = sides[key]
        assert layer is not None
        if side in found.setdefault(layer, {}):
            raise ModelError(
                f"holds {shown(key)} twice",
                "Two trainings were mixed into one file; export one of them again.",
            )
        found[layer][side] = _checked(key, side, tensor)
    if not found:
        raise ModelError("is empty", "Save or download the file again.")
    if len(found) > 1 and all("down" in parts and "up" not in parts for parts in found.values()):
        raise whole_changes()
    layers, taken, hidden_sizes = [], dict[str, str](), set[int]()
    for name, parts in found.items():
        layers.append(_layer(name, parts, taken))
        hidden_sizes |= _hidden_size(layers[-1])
    if len(hidden_sizes) > 1:
        raise ModelError("mixes layers of several models of different width", READ_MODELS)
    return layers


def _layer(name: str, sides: Mapping[str, Tensor], taken: dict[str, str]) -> Layer:
    """Build one layer from its tensors. `taken`: the diffusers layers adapted so far, with their name in the
    file; the new ones are added.
    """
    if not {"down", "up"} <= sides.keys():
        missing = "down (lora_A)" if "up" in sides else "up (lora_B)"
        raise ModelError(
            f"lacks the {missing} weight of {shown(name)}",
            "The file is incomplete; save or download it again.",
        )
    resolved = resolve(name)
    assert resolved is not None
    for part in resolved.parts:
        if part in taken:
            problem = f"adapts {part} twice, as {shown(taken[part])} and as {shown(name)}"
            raise ModelError(problem, "Export it again in one of the two formats.")
        taken[part] = name
    down, up = sides["down"], sides["up"]
    if down.shape[0] != up.shape[1]:
        ranks = f"rank {down.shape[0]} going down and {up.shape[1]} going up"
        raise ModelError(f"gives {shown(name)} {ranks}", "The file is damaged; save or download it again.")
    up = torch.cat(up.chunk(2)[::-1]) if resolved.pattern in _HALVES_SWAPPED and up.shape[0] % 2 == 0 else up
    alpha = float(sides["alpha"]) if "alpha" in sides else None
    return Layer(name, resolved.path, resolved.format.title, resolved.parts, down, up, alpha)


def _sides(key: str) -> tuple[str | None, str]:
    """Split a key into its layer and its side (down, up or alpha); (None, "") for other keys."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    found = _PART.fullmatch(key)
    if not found:
        return None, ""
    what = key[found.end("layer") + 1 :]
    return found["layer"], "down" if what.startswith(("lora_A", "lora_down", "lora.down", "down")) else "up"


def _checked(key: str, side: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.bfloat16()  # holds every 8-bit float exactly, and supports arithmetic
    if tensor.is_complex() or (side != "alpha" and not tensor.is_floating_point()):
        raise ModelError(
            f"holds {shown(key)} as {tensor.dtype}, not as floating-point numbers",
            "Export the LoRA without quantisation.",
        )
    if not tensor.is_meta and not torch.isfinite(tensor.float()).all():
        raise ModelError(
            f"holds numbers that are not finite in {shown(key)}",
            "It was damaged or its training diverged; train again.",
        )
    if side == "alpha":
        if tensor.numel() != 1 or tensor.is_meta or float(tensor) <= 0:
            raise ModelError(
                f"holds {shown(key)}, which is not one number above 0", "Save or download the file again."
            )
    elif tensor.ndim != 2 or 0 in tensor.shape:
        size = "×".join(map(str, tensor.shape)) or "a single number"
        raise ModelError(
            f"holds {shown(key)} of the shape {size}, not a matrix", "Save or download the file again."
        )
    return tensor


def _hidden_size(layer: Layer) -> set[int]:
    """The model's width by this layer's shape; empty if the shape does not show it. Raises ModelError for a
    shape that no model of any width has.
    """
    patterns = [pattern_of(part)[0] for part in layer.parts]
    sides = [SIDES[pattern] for pattern in patterns if pattern in SIDES]
    rows, columns = (sum(out for out, _ in sides), sides[0][1]) if sides else (0, 1)
    hidden, rest = divmod(layer.down.shape[1], columns)
    height = layer.up.shape[0]
    fits = not sides or (not rest and height == hidden * rows) or is_sd3_only(layer)
    if not fits or (layer.parts == ("norm_out.linear",) and height % 2):
        problem = (
            f"changes {shown(layer.name)} by {height}×{layer.down.shape[1]} weights, which fit neither "
            "FLUX.1 nor Stable Diffusion 3"
        )
        raise ModelError(problem, READ_MODELS)
    return {hidden} if sides else set()


def is_sd3_only(layer: Layer) -> bool:
    """Whether only Stable Diffusion 3 has this layer, not FLUX.1, by its name or size."""
    pattern = pattern_of(layer.parts[0])[0]
    return pattern in SD3_ONLY or (
        layer.path == layer.parts[0]
        and pattern in SD3_ROWS
        and layer.up.shape[0] == SD3_ROWS[pattern] * layer.down.shape[1]
    )


Pair = tuple[Tensor, Tensor]


def to_diffusers(layers: Iterable[Layer], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """Tensors by diffusers name without prefix, `<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out,
    rank).

    scales: factor of each layer's change, by name. It is folded into lora_B, so that alpha = rank afterwards.

    Raises:
        ModelError: a scale makes weights infinite.
    """
    state: dict[str, Tensor] = {}
    for layer in layers:
        for part, (down, up) in _split(layer).items():
            up = scaled(up, scales[layer.name])
            if not torch.isfinite(up).all():
                raise ModelError(
                    f"has an alpha for {shown(layer.name)} beyond all bounds",
                    "Save or download the file again.",
                )
            if not _bounded(down, up):
                problem = f"changes {shown(layer.name)} by numbers beyond all bounds"
                raise ModelError(
                    problem,
                    "It was damaged or its training diverged; take an earlier checkpoint, or train again.",
                )
            state[f"{part}.lora_A.weight"], state[f"{part}.lora_B.weight"] = down, up
    return state


LARGEST_CHANGE = 1e8
"""Largest Frobenius norm of a layer's change. A layer of FLUX.1-dev itself has a norm of about 100; beyond
1e19, squares in the model's norms overflow.
"""


def _bounded(down: Tensor, up: Tensor) -> bool:
    sizes = float(down.double().norm()), float(up.double().norm())
    return max(sizes) < 1e15 and (
        sizes[0] * sizes[1] <= LARGEST_CHANGE or change_norm(down, up) <= LARGEST_CHANGE
    )


def change_norm(down: Tensor, up: Tensor) -> float:
    """The Frobenius norm ‖up @ down‖, from two rank × rank products; the full matrix would be hundreds of
    times larger.
    """
    down, up = down.double(), up.double()
    return max(0.0, float(((down @ down.T) * (up.T @ up)).sum())) ** 0.5


def scaled(up: Tensor, scale: float) -> Tensor:
    """`scale · up`, in float32 where the tensor's own dtype would round the result."""
    exact = up.float() * scale
    kept = exact.to(up.dtype)
    return kept if torch.equal(kept.float(), exact) else exact


def _split(layer: Layer) -> dict[str, Pair]:
    """Split a layer into its parts. Each part keeps only the ranks that reach its rows, which undoes a block
    diagonal.
    """
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
    """Convert tensors by diffusers name (without prefix, alpha = rank) to another program's names with
    prefix.

    `diffusers` adds the prefix. The others are for FLUX.1: `comfyui` writes native names; `kohya` writes them
    with underscores and an alpha for each layer.
    """
    if target == "diffusers":
        return {f"transformer.{key}": tensor for key, tensor in state.items()}
    groups: dict[str, dict[int, Pair]] = {}
    for key in (k for k in state if k.endswith(".lora_A.weight")):
        name = key.removesuffix(".lora_A.weight")
        pattern, number = pattern_of(name)
        native, position = _HOME[pattern]
        groups.setdefault(native.replace("#", number), {})[position] = (
            state[key],
            state[f"{name}.lora_B.weight"],
        )
    tensors: dict[str, Tensor] = {}
    for name, pairs in groups.items():
        pattern = pattern_of(name)[0]
        down, up = _fused(NATIVE[pattern], pairs)
        up = torch.cat(up.chunk(2)[::-1]) if pattern in _HALVES_SWAPPED else up
        stem = f"lora_unet_{name.replace('.', '_')}" if target == "kohya" else f"diffusion_model.{name}"
        # diffusers reads native names only with lora_down and lora_up; ComfyUI reads both forms.
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
        if target == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


_HOME = {part: (name, position) for name, parts in NATIVE.items() for position, part in enumerate(parts)}


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
