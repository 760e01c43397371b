"""Convert any LoRA format to diffusers names; `lora.targets` writes other programs' names.

Splitting a fused layer keeps `down` and cuts `up` by rows; fusing puts the parts on a block diagonal. Both
are exact. A key that is in no table of a family is an error that names it; no key is ever skipped.

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
from triptych.lora.families import Shape, families_of
from triptych.lora.names import SIDES, is_known, pattern_of, resolve, shown, table_of
from triptych.lora.refused import refusal, whole_changes

HALVES_SWAPPED = {"final_layer.adaLN_modulation.1"}
"""Black Forest Labs stores this layer's rows as (shift, scale), diffusers as (scale, shift)."""

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

    @property
    def shape(self) -> Shape:
        return self.up.shape[0], self.down.shape[1]


def layers_of(tensors: Mapping[str, Tensor], said: str = "") -> list[Layer]:
    """The adapted layers in a LoRA file of any known format. Tensors may be on the device `meta` (shapes
    alone), except alphas; then only the check for non-finite numbers is skipped.

    said: the family that the file's metadata names, if any. It counts where the layers fit several.

    Raises:
        ModelError: a key is in no table; a layer lacks its down or up matrix, or occurs twice; or shapes,
            numbers or ranks do not fit a LoRA for such a model. The message lacks the file's name; the caller
            puts it in front.
    """
    found: dict[str, dict[str, Tensor]] = {}
    sides = {key: _sides(key) for key in tensors}
    unknown = [key for key, (layer, _) in sides.items() if layer is None or not is_known(layer)]
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
    for name, parts in found.items():
        _check_whole(name, parts)
    families = families_of(
        {name: (parts["up"].shape[0], parts["down"].shape[1]) for name, parts in found.items()}
    )
    family = table_of(said) if said and table_of(said) in families else families[0]
    taken: dict[str, str] = {}
    return [_layer(name, parts, family, taken) for name, parts in found.items()]


def _check_whole(name: str, sides: Mapping[str, Tensor]) -> None:
    """Check that a layer has both matrices, and that they fit each other."""
    if not {"down", "up"} <= sides.keys():
        missing = "down (lora_A)" if "up" in sides else "up (lora_B)"
        raise ModelError(
            f"lacks the {missing} weight of {shown(name)}",
            "The file is incomplete; save or download it again.",
        )
    down, up = sides["down"], sides["up"]
    if down.shape[0] != up.shape[1]:
        ranks = f"rank {down.shape[0]} going down and {up.shape[1]} going up"
        raise ModelError(f"gives {shown(name)} {ranks}", "The file is damaged; save or download it again.")


def _layer(name: str, sides: Mapping[str, Tensor], family: str, taken: dict[str, str]) -> Layer:
    """Build one layer from its tensors. `taken`: the diffusers layers adapted so far, with their name in the
    file; the new ones are added.
    """
    resolved = resolve(name, family)
    assert resolved is not None
    for part in resolved.parts:
        if part in taken:
            problem = f"adapts {part} twice, as {shown(taken[part])} and as {shown(name)}"
            raise ModelError(problem, "Export it again in one of the two formats.")
        taken[part] = name
    down, up = sides["down"], sides["up"]
    up = torch.cat(up.chunk(2)[::-1]) if resolved.pattern in HALVES_SWAPPED else up
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
