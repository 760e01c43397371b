"""Tell FLUX.2's layers from FLUX.1's, by their names, sizes and numbers.

Black Forest Labs gave the layers of both models the same names. Most have other sizes: with the hidden size
d, `linear1` has 7·d rows in FLUX.1 and 9·d in FLUX.2, `linear2` has 5·d and 4·d columns, `img_mlp.0` has 4·d
and 6·d rows. The attention of the double blocks has the same names and sizes in both, in diffusers' names
too, and FLUX.2-klein-4B is as wide as FLUX.1: there the file's metadata and the numbers of blocks decide.

Stable Diffusion 3 shares FLUX.1's tables; `lora.models` tells these two apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from triptych.errors import ModelError
from triptych.lora.flux_names import SD3_ONLY, SD3_ROWS
from triptych.lora.names import NAMES, SIDES, Resolved, pattern_of, resolve, shown
from triptych.lora.refused import READ_MODELS

Shape = tuple[int, int]
"""Rows and columns of the weight that a layer of a LoRA changes."""

# Width and number of double blocks of the published models: FLUX.1, SD3 and SD3.5 medium, SD3.5 large;
# FLUX.2-klein-4B, -9B and FLUX.2-dev.
_PUBLISHED = {"flux": {3072: 19, 1536: 24, 2432: 38}, "flux2": {3072: 5, 4096: 8, 6144: 8}}
_DOUBLE = "transformer_blocks.#."


def families_of(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The families that a file's layers can be of, keys of `NAMES`, the likeliest first. shapes: by the
    layers' names in the file, all of which are in a table.

    Two families remain if every layer fits both. FLUX.2 is then the likelier one if the file adapts all the
    double blocks that the model of this width has, and no other.

    Raises:
        ModelError: a layer has a size that no model has, or the layers are of several models.
    """
    remaining, widths, doubles = list(NAMES), set[int](), set[int]()
    for name, shape in shapes.items():
        fitting = {}
        for family in NAMES:
            resolved = resolve(name, family)
            if resolved and (width := width_of(resolved, shape)) is not None:
                fitting[family] = width
                doubles |= {int(pattern_of(p)[1]) for p in resolved.parts if _is_double(p)}
        if not fitting:
            problem = (
                f"changes {shown(name)} by {shape[0]}×{shape[1]} weights, which fit neither FLUX.1, FLUX.2 "
                "nor Stable Diffusion 3"
            )
            raise ModelError(problem, READ_MODELS)
        remaining = [family for family in remaining if family in fitting]
        widths |= set(fitting.values()) - {0}
    if not remaining:
        raise ModelError("mixes layers of FLUX.2 and of FLUX.1 or Stable Diffusion 3", READ_MODELS)
    if len(widths) > 1:
        raise ModelError("mixes layers of several models of different width", READ_MODELS)
    if len(remaining) > 1 and widths:
        remaining = _by_count(next(iter(widths)), doubles) or remaining
    return tuple(remaining)


def _by_count(width: int, doubles: set[int]) -> list[str]:
    """The families with a published model of this width that has all these double blocks, the likeliest
    first; empty if there is none.
    """
    counts = {family: known[width] for family, known in _PUBLISHED.items() if width in known}
    fitting = [family for family, count in counts.items() if max(doubles, default=0) < count]
    return sorted(fitting, key=lambda family: doubles != set(range(counts[family])))


def _is_double(part: str) -> bool:
    return pattern_of(part)[0].startswith(_DOUBLE)


def width_of(resolved: Resolved, shape: Shape) -> int | None:
    """The model's hidden size by one layer's shape: 0 if the layer does not show it, None if no model of any
    hidden size has such a layer.
    """
    patterns = [pattern_of(part)[0] for part in resolved.parts]
    sides = [SIDES[pattern] for pattern in patterns if pattern in SIDES]
    rows, columns = shape
    if not sides:
        return None if resolved.parts == ("norm_out.linear",) and rows % 2 else 0
    hidden, rest = divmod(columns, sides[0][1])
    fits = not rest and rows == hidden * sum(out for out, _ in sides)
    return hidden if fits or is_sd3_only(resolved.path, resolved.parts, shape) else None


def is_sd3_only(path: str, parts: tuple[str, ...], shape: Shape) -> bool:
    """Whether only Stable Diffusion 3 has this layer, not FLUX.1, by its name or size. path: its name in the
    trained model.
    """
    pattern = pattern_of(parts[0])[0]
    return pattern in SD3_ONLY or (
        path == parts[0] and pattern in SD3_ROWS and shape[0] == SD3_ROWS[pattern] * shape[1]
    )


def is_flux2(layers: Iterable[str]) -> bool:
    """Whether a model is FLUX.2, by the diffusers names of its layers."""
    return any(pattern_of(name)[0] in _FLUX2_ONLY for name in layers)


_FLUX2_ONLY = NAMES["flux2"]["diffusers"].keys() - NAMES["flux"]["diffusers"].keys()


def refuse_undecided(adapted: Iterable[str], model: Iterable[str]) -> None:
    """Refuse to use a file whose layers FLUX.1 and FLUX.2 share, and that does not say which it is for, with
    a model of FLUX.2. It may be used if it adapts every double block of the model: a FLUX.1 file would adapt
    more of them.

    adapted: the diffusers layers that the file adapts. model: the model's layers.

    Raises:
        ModelError: the file adapts some of the double blocks. The message lacks the file's name.
    """
    some, every = ({pattern_of(name)[1] for name in names if _is_double(name)} for names in (adapted, model))
    if some != every:
        raise ModelError(
            "adapts only layers that FLUX.1 and FLUX.2 share, and does not say which of them it is for",
            "Use one whose metadata names its base model, or that adapts every block of this one.",
        )
