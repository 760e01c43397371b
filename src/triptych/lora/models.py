"""Find the model that a LoRA is for, by its metadata and its layers.

Several models share FLUX.1's or FLUX.2's layer names, and some their width: Chroma, Qwen-Image, HunyuanVideo.
Metadata may come from anybody: only words in the table below count, and only if the layers do not contradict
them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.backbones.families import FAMILIES
from triptych.errors import ModelError
from triptych.lora.families import families_of, is_flux2, is_sd3_only, refuse_undecided
from triptych.lora.formats import Layer
from triptych.lora.names import SIDES, pattern_of, table_of
from triptych.lora.refused import READ_MODELS

TITLES = {family.name: family.title for family in FAMILIES.values()}
"""Display names of the families whose LoRA files are read, by their short names."""

# Pattern in a metadata entry → the family or other model that it means. The first match counts.
_WORDS = tuple(
    (re.compile(pattern), meant)
    for pattern, meant in (
        (r"chroma", "Chroma"),
        (r"qwen", "Qwen-Image"),
        (r"flux[-_. ]?3", "FLUX 3"),
        (r"flux[-_. ]?2|klein", "flux2"),
        (r"z[-_ ]?image", "Z-Image"),
        (r"lumina", "Lumina"),
        (r"hunyuan", "HunyuanVideo"),
        (r"hidream", "HiDream"),
        (r"flex[-_. ]?[12]", "Flex"),
        (r"\bwan[-_. ]?[12v]", "Wan"),
        (r"ltx", "LTX-Video"),
        (r"aura[-_ ]?flow", "AuraFlow"),
        (r"pixart", "PixArt"),
        (r"\bsana", "Sana"),
        (r"cog(view|video)", "CogView"),
        (r"longcat", "LongCat"),
        (r"\bovis", "Ovis-Image"),
        (r"\bbria|\bfibo", "Bria"),
        (r"omnigen", "OmniGen"),
        (r"cosmos", "Cosmos"),
        (r"krea[-_ ]?2", "Krea 2"),
        (r"\bf[-_ ]?lite", "F-Lite"),
        (r"mochi", "Mochi"),
        (r"kandinsky", "Kandinsky"),
        (r"step1x", "Step1X"),
        (r"\bernie", "ERNIE-Image"),
        (r"kolors", "Kolors"),
        (r"stable[-_ ]?diffusion[-_ ]?v?3|\bsd[-_ ]?v?3", "sd3"),
        (r"stable[-_ ]?diffusion[-_ ]?xl|sd[-_ ]?xl|\bpony|illustrious", "Stable Diffusion XL"),
        (r"stable[-_ ]?diffusion|\bsd[-_ ]?v?[12]", "Stable Diffusion"),
        (r"flux", "flux"),
    )
)
# Models whose layers are named unlike a transformer's. A file that could be read is not for them, even if its
# metadata says so.
_CONVOLUTIONAL = {"Stable Diffusion", "Stable Diffusion XL", "Kolors"}
# Metadata keys that hold names of files and folders. A family's name in one of these counts if nothing else
# names one; another model's name only causes a warning.
_PATHS = (
    "ss_sd_model_name",
    "ss_pretrained_model_name_or_path",
    "pretrained_model_name_or_path",
    "base_model_path",
    "model_path",
)
_TAGS = ("modelspec.architecture", "ss_base_model_version", "base_model", "base_model_name_or_path")

# Base models that are told apart: pattern in the name → display name.
_BASES = (
    (r"pocket[-_. ]?klein", "pocket-klein"),
    (r"pocket", "pocket"),
    (r"klein[-_. ]?base[-_. ]?4b", "FLUX.2-klein-base-4B"),
    (r"klein[-_. ]?4b", "FLUX.2-klein-4B"),
    (r"klein[-_. ]?base[-_. ]?9b", "FLUX.2-klein-base-9B"),
    (r"klein[-_. ]?9b[-_. ]?kv", "FLUX.2-klein-9B-KV"),
    (r"klein[-_. ]?9b", "FLUX.2-klein-9B"),
    (r"flux[-_. ]?2[-_. ]?dev", "FLUX.2-dev"),
    (r"schnell", "FLUX.1-schnell"),
    (r"kontext", "FLUX.1-Kontext"),
    (r"krea", "FLUX.1-Krea"),
    (r"fill", "FLUX.1-Fill"),
    (r"flux[-_. ]?1?[-_. ]?dev", "FLUX.1-dev"),
    (r"3\.5[-_ ]?large[-_ ]?turbo", "SD3.5 large turbo"),
    (r"3\.5[-_ ]?large", "SD3.5 large"),
    (r"3\.5[-_ ]?medium", "SD3.5 medium"),
    (r"diffusion[-_ ]?3[-_ ]?medium", "SD3 medium"),
)
# Distilled models, and the base that is trained for them: FLUX.2-klein's distilled models take its LoRAs.
_DISTILLED = {
    "FLUX.2-klein-4B": "FLUX.2-klein-base-4B",
    "FLUX.2-klein-9B": "FLUX.2-klein-base-9B",
    "FLUX.2-klein-9B-KV": "FLUX.2-klein-base-9B",
}


@dataclass(frozen=True)
class Model:
    """The model that a LoRA was trained for."""

    family: str
    """A key of `TITLES`: the family by names and sizes of the layers."""
    certain: bool
    """Whether the family is certain. Attention layers alone look the same in several families if the metadata
    names none.
    """
    title: str
    """Display name of the family or of another model."""
    other: bool
    """Whether it is an unsupported model whose layers are named like those of a supported one."""
    either: bool = False
    """Whether it may be FLUX.1 or FLUX.2: both have all its layers, and the metadata names neither."""
    warnings: tuple[str, ...] = ()

    def refuse_other(self) -> None:
        """
        Raises:
            ModelError: the LoRA is for a model that is not supported. The message lacks the file's name.
        """
        if self.other:
            raise ModelError(
                f"is for {self.title}, whose layers are named like those of {TITLES[self.family]}",
                READ_MODELS,
            )

    def refuse_use_on(self, model: Collection[str], adapted: Collection[str]) -> None:
        """
        model: the diffusers names of a model's layers. adapted: those that the LoRA adapts.

        Raises:
            ModelError: the LoRA is for FLUX.2 and the model is not, or the other way round; or it does not
                say which, and its layers fit both. The message lacks the file's name.
        """
        if is_flux2(model) and self.either:
            refuse_undecided(adapted, model)
        elif self.certain and (self.family == "flux2") != is_flux2(model):
            raise ModelError(
                f"was trained on {self.title}, and does not fit this model",
                "Use it with the model it was trained on.",
            )


def known_base(name: str) -> str:
    """The display name of a base model (a hub id, a folder) that is told apart from others; else empty."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((title for pattern, title in _BASES if re.search(pattern, last)), "")


def meaning(word: str) -> str:
    """The family or other model that a word in metadata means; empty if unknown."""
    text = word[:200].lower()
    return next((meant for pattern, meant in _WORDS if pattern.search(text)), "")


def takes_loras_of(model: str, trained: str) -> bool:
    """Whether a base model is meant to take the LoRAs of another. Both by the names of `known_base`."""
    return trained in (model, _DISTILLED.get(model))


def said_words(about: Mapping[str, Any], metadata: Mapping[str, str], base: str = "") -> list[str]:
    """The families and other models that a file's metadata names, the most trusted first. about: triptych's
    metadata. base: the base model's name in a peft config beside the file.
    """
    own = [str(about["family"])] if about.get("family") in TITLES else []
    words = [metadata.get(key, "") for key in _TAGS]
    return own + [meant for word in (*words, _last(base)) if (meant := meaning(word))]


def said_family(about: Mapping[str, Any], metadata: Mapping[str, str], base: str = "") -> str:
    """The family that a file's metadata names; empty if it names none. Names of files count last."""
    paths = [meaning(_last(metadata.get(key, ""))) for key in _PATHS]
    return next((word for word in (*said_words(about, metadata, base), *paths) if word in TITLES), "")


def model_of(
    layers: Sequence[Layer], about: Mapping[str, Any], metadata: Mapping[str, str], base: str = ""
) -> Model:
    """The model that a LoRA is for. For the arguments see `said_words`; layers: by `layers_of`, which was
    told what `said_family` says.

    Raises:
        ModelError: no single model has all these layers. The message lacks the file's name.
    """
    single = any(part.startswith("single_transformer_blocks.") for layer in layers for part in layer.parts)
    third = any(is_sd3_only(layer.path, layer.parts, layer.shape) for layer in layers)
    if single and third:
        raise ModelError("mixes layers of FLUX.1 and of Stable Diffusion 3", READ_MODELS)
    tables = families_of({layer.name: layer.shape for layer in layers})
    possible = [family for family in TITLES if table_of(family) in tables]
    told = said_words(about, metadata, base)
    said = said_family(about, metadata, base)
    shows = _shown_family(layers, tables, single, third)
    family = shows or (said if said in possible else tables[0])
    odd = [word for word in told if word in _CONVOLUTIONAL or (word in TITLES and word != family)]
    warnings = tuple(
        f"Its metadata says {TITLES.get(word, word)}, but its layers are those of {TITLES[family]}."
        for word in dict.fromkeys(odd)
    )
    from_path = [meant for key in _PATHS if (meant := meaning(_last(metadata.get(key, ""))))]
    warnings += tuple(
        f"It was trained on a file named after {word}, by its metadata: it may do less or something else on "
        f"{TITLES[family]}."
        for word in dict.fromkeys(from_path)
        if word not in TITLES and word not in told
    )
    named = [word for word in told if word not in _CONVOLUTIONAL]
    other = named[0] if named and named[0] not in TITLES else ""
    other = other or (_lookalike(layers, single) if family == "flux" else "")
    if other:
        return Model(family, True, other, True, warnings=warnings)
    certain = bool(shows or said in possible or tables[0] == "flux2")
    either = not certain and "flux2" in tables
    title = f"{TITLES['flux']} or {TITLES['flux2']}" if either else TITLES[family]
    return Model(family, certain, title, False, either, warnings)


def _shown_family(layers: Sequence[Layer], tables: Sequence[str], single: bool, third: bool) -> str:
    """The family that the layers alone show, by their names, sizes and numbers; empty if they do not. tables:
    see `families_of`.
    """
    if tables == ("flux2",):
        return "flux2"
    if "flux2" in tables:
        return ""
    return "flux" if single else "sd3" if third else _family_by_width(layers)


def _last(name: str) -> str:
    """The last part of a hub id, or of a path on any system."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def hidden_size(layers: Sequence[Layer]) -> int | None:
    """The model's width, if a layer inside a block shows it."""
    for layer in layers:
        sides = SIDES.get(pattern_of(layer.parts[0])[0])
        if sides:
            return int(layer.down.shape[1]) // sides[1]
    return None


def _family_by_width(layers: Sequence[Layer]) -> str:
    """The family of layers without single blocks: Stable Diffusion 3 if the width is that of a published
    model (medium, 3.5 medium, 3.5 large).
    """
    return "sd3" if hidden_size(layers) in (1536, 2432) else ""


def _lookalike(layers: Sequence[Layer], single: bool) -> str:
    """The name of another model with FLUX.1's layer names, told by its sizes: FLUX.1 has width 3072, 19
    double and 38 single blocks.
    """
    width, last = hidden_size(layers), {"transformer_blocks": -1, "single_transformer_blocks": -1}
    for layer in layers:
        for part in layer.parts:
            where, number = part.partition(".")[0], pattern_of(part)[1]
            if where in last and number:
                last[where] = max(last[where], int(number))
    if width != 3072:
        return ""
    if last["transformer_blocks"] >= 20 and not single:
        return "Qwen-Image"
    if last["transformer_blocks"] == 19 or last["single_transformer_blocks"] in (38, 39):
        return "HunyuanVideo"
    if last["transformer_blocks"] >= 20 or last["single_transformer_blocks"] >= 40:
        return "a larger model than FLUX.1"
    return ""
