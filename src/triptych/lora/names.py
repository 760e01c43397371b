"""The key formats of LoRA files, and what a layer's name in one of them means.

A trainer uses the layer names of its model code, behind a prefix of its own. The names are in a table for
each family (`flux_names`, `flux2_names`); FLUX.1 and FLUX.2 share many of Black Forest Labs' names for layers
that diffusers names differently, so that a name has a meaning only within a family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from triptych.lora import flux2_names, flux_names
from triptych.lora.tables import Names

NAMES: Mapping[str, Mapping[str, Names]] = {
    "flux": {
        "diffusers": flux_names.DIFFUSERS,
        "fused": flux_names.FUSED,
        "native": flux_names.NATIVE,
        "split": flux_names.SPLIT_NATIVE,
        "xlabs": flux_names.XLABS,
        "diffsynth": flux_names.DIFFSYNTH,
    },
    "flux2": {
        "diffusers": flux2_names.DIFFUSERS,
        "fused": flux2_names.FUSED,
        "native": flux2_names.NATIVE,
        "split": flux2_names.SPLIT_NATIVE,
    },
}
"""Tables by family and kind. Stable Diffusion 3 is in FLUX.1's."""


class Format(NamedTuple):
    """A key format: `prefix`, then a layer of a table of this kind with its dots replaced by `separator`."""

    title: str
    prefix: str
    kind: str
    separator: str = "."


FORMATS = (
    Format("diffusers", "transformer.", "diffusers"),
    Format("diffusers without prefix", "", "diffusers"),
    Format("diffusers names behind diffusion_model.", "diffusion_model.", "diffusers"),
    Format("peft", "base_model.model.", "diffusers"),
    Format("peft", "base_model.model.transformer.", "diffusers"),
    Format("kohya", "lora_unet_", "native", "_"),
    Format("ComfyUI (native)", "diffusion_model.", "native"),
    Format("native without prefix", "", "native"),
    Format("native in peft (fal)", "base_model.model.", "native"),
    Format("OneTrainer", "transformer.", "split"),
    Format("OneTrainer (legacy)", "lora_transformer_", "diffusers", "_"),
    Format("LyCORIS (LoRA)", "lycoris_", "diffusers", "_"),
    Format("XLabs", "", "xlabs"),
    Format("XLabs", "diffusion_model.", "xlabs"),
    Format("DiffSynth", "", "diffsynth"),
    Format("DiffSynth", "pipe.dit.", "diffsynth"),
    *(
        Format("diffusers, projections fused", prefix, "fused")
        for prefix in (
            "transformer.",
            "",
            "diffusion_model.",
            "base_model.model.",
            "base_model.model.transformer.",
        )
    ),
    Format("LyCORIS (LoRA), projections fused", "lycoris_", "fused", "_"),
)

SIDES = flux_names.SIDES | flux2_names.SIDES
"""Rows and columns of a diffusers layer's weight, in multiples of the hidden size. Layers that are not listed
have sizes that depend on the encoders.
"""

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


def resolve(name: str, family: str) -> Resolved | None:
    """Look up a layer's name in the tables of a family, a key of `NAMES`; None if it is in none of them."""
    pattern, number = pattern_of(name)
    if pattern not in _LOOKUP[family]:
        return None
    format, known = _LOOKUP[family][pattern]
    parts = tuple(part.replace("#", number) for part in NAMES[family][format.kind][known])
    return Resolved(format, known, known.replace("#", number), parts)


def table_of(family: str) -> str:
    """The key of `NAMES` for a family of LoRA files."""
    return "flux2" if family == "flux2" else "flux"


def is_known(name: str) -> bool:
    """Whether a layer's name is in a table of any family."""
    pattern = pattern_of(name)[0]
    return any(pattern in table for table in _LOOKUP.values())


_LOOKUP = {
    family: {
        format.prefix + name.replace(".", format.separator): (format, name)
        for format in FORMATS
        for name in tables.get(format.kind, ())
    }
    for family, tables in NAMES.items()
}
