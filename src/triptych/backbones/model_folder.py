"""Tell what kind of model a path holds, by file names and headers. Imports no torch.

Models come in many forms other than a diffusers folder: a single file, GGUF, another program's names,
quantised, pickled. For each the error names the form and says how to turn it into a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from triptych.errors import ModelError

KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
"""The model to name first: it may be used commercially, and fits a small card."""
_FLUX, _SD3 = "'black-forest-labs/FLUX.1-dev'", "'stabilityai/stable-diffusion-3.5-large'"
_LINES = "t = FluxTransformer2DModel.from_single_file(FILE, torch_dtype=torch.bfloat16), then"
SINGLE_FILE = (
    f"Make a folder of it once, in Python: {_LINES} FluxPipeline.from_pretrained(NAME, "
    "transformer=t).save_pretrained(FOLDER)."
)
_KLEIN_FILE = (
    SINGLE_FILE.replace("FluxTransformer2DModel", "Flux2Transformer2DModel")
    .replace("FluxPipeline", "Flux2KleinPipeline")
    .replace("NAME", f"'{KLEIN}'")
)
_SD3_FILE = SINGLE_FILE.replace("FluxTransformer2DModel", "SD3Transformer2DModel").replace(
    "FluxPipeline", "StableDiffusion3Pipeline"
)
GIVE = f"Give a folder saved by diffusers, or a hub id such as {KLEIN}."
_FULL = (
    "Give a model folder in full precision (bf16); --quantize nf4 or int8 makes it small while it is loaded."
)
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def no_folder(path: Path) -> ModelError:
    """The error for a path that is no diffusers folder."""
    if not path.exists():
        return ModelError(f"{path} is no diffusers model folder: there is nothing at that path.", GIVE)
    what, hint = _file(path) if path.is_file() else _folder(path)
    return ModelError(f"{path} is no diffusers model folder{what}.", hint)


def _file(path: Path) -> tuple[str, str]:
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return " but a GGUF file, whose weights are quantised already", _FULL
    if suffix in PICKLES:
        return " but a pickle file, which is never read", GIVE
    if suffix not in (".safetensors", ".sft"):
        return " but a file", GIVE
    try:
        with safe_open(path, framework="numpy") as stream:
            names = list(stream.keys())
            small = any("F8" in stream.get_slice(name).get_dtype() for name in names[:50])
    except (OSError, SafetensorError) as error:
        return f": it cannot be read as safetensors ({error})", GIVE
    return _single_file(names, " in fp8" if small else "")


def _single_file(names: list[str], small: str) -> tuple[str, str]:
    text = "\n".join(names)
    if "lora_" in text or ".lora" in text:
        return " but a LoRA", "Give it with --lora, and its base model with --model."
    if re.search(r"distilled_guidance_layer", text):
        return f" but a single file{small} with the weights of Chroma, which has no backbone here", GIVE
    if re.search(r"double_stream_modulation|single_stream_modulation", text):
        return f" but a single file{small} with the weights of FLUX.2", _KLEIN_FILE
    whole = re.search(r"(?m)^(vae|first_stage_model|text_encoders?|conditioner|cond_stage_model)\.", text)
    kind = (
        f" but a single file{small}, with text encoders and autoencoder in it,"
        if whole
        else f" but a single file{small}"
    )
    if re.search(r"(?m)^(model\.diffusion_model\.|diffusion_model\.|model\.)?double_blocks\.", text):
        return f"{kind} in the names of Black Forest Labs and ComfyUI (FLUX.1)", SINGLE_FILE.replace(
            "NAME", "'black-forest-labs/FLUX.1-dev'"
        )
    if "joint_blocks." in text:
        return f"{kind} in that model's own names (Stable Diffusion 3)", _SD3_FILE.replace(
            "NAME", "'stabilityai/stable-diffusion-3.5-large'"
        )
    if "transformer_blocks." in text:
        return f" but a single file{small}, a transformer alone in diffusers' names", _TRANSFORMER_ALONE
    if re.search(r"(?m)^(model\.diffusion_model\.)?(input|output)_blocks\.", text):
        return f"{kind} of an older Stable Diffusion, which has no backbone here", GIVE
    return f"{kind} of an unknown kind", GIVE


_TRANSFORMER_ALONE = (
    "Put it beside the other parts once, in Python: t = FluxTransformer2DModel.from_pretrained(FOLDER), then "
    "FluxPipeline.from_pretrained('black-forest-labs/FLUX.1-dev', transformer=t).save_pretrained(NEW)."
)


def _folder(path: Path) -> tuple[str, str]:
    inside = sorted((path / "snapshots").glob("*/model_index.json"))
    if inside:
        return " but a folder of the hub's cache", f"Give {inside[0].parent}, or the model's name on the hub."
    if (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file():
        return " but a LoRA", "Give it with --lora, and its base model with --model."
    about = read_config(path)
    kind = about.get("_class_name") or next(iter(about.get("architectures") or []), None)
    if isinstance(kind, str) and kind.isidentifier() and len(kind) < 80:
        if kind.endswith("Transformer2DModel"):
            return f" but one part of one, a transformer alone ({kind})", _TRANSFORMER_ALONE
        return f" but one part of one ({kind})", "Give the folder above it, which holds model_index.json."
    files = sorted(
        one.name
        for one in path.iterdir()
        if one.suffix.lower() in (".safetensors", ".sft", ".gguf", *PICKLES)
    )
    if files:
        named = ", ".join(files[:3])
        return f": it has no model_index.json, but single files ({named})", f"{SINGLE_FILE} {GIVE}"
    return ": it has no model_index.json", GIVE


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a part; empty if it is missing or unreadable."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


_SAVE = "Save them once with diffusers: PIPELINE.from_pretrained(FOLDER).save_pretrained(NEW)."
# Other pipelines by class name: what they are, where the name does not say it, and what to use instead.
_PIPELINES = (
    (
        r"FluxFill",
        "fills holes with a transformer that has other inputs",
        "Give the FLUX.1-dev it was made from: tryon repaints with that.",
    ),
    (r"FluxKontext", "edits pictures given as extra tokens", "Give FLUX.1-dev."),
    (
        r"FluxControl|FluxPriorRedux",
        "takes a control picture as extra input",
        "Give the FLUX.1-dev it was made from.",
    ),
    (r"Flux(Img2Img|Inpaint)", "holds FLUX.1's own parts", _SAVE.replace("PIPELINE", "FluxPipeline")),
    (
        r"StableDiffusion3(Img2Img|Inpaint)",
        "holds Stable Diffusion 3's own parts",
        _SAVE.replace("PIPELINE", "StableDiffusion3Pipeline"),
    ),
    (r"Chroma", "is another model with FLUX.1's names", "Give FLUX.1-dev or Stable Diffusion 3.5."),
    (
        r"Flux2Klein",
        "holds FLUX.2-klein's own parts",
        _SAVE.replace("PIPELINE", "Flux2KleinPipeline"),
    ),
    (r"Flux2", "is the large FLUX.2", f"Give a FLUX.2-klein, such as {KLEIN}."),
)


def no_backbone(model: str, name: str, known: list[str]) -> ModelError:
    """The error for a pipeline class that has no backbone."""
    shown = name if name.isidentifier() and len(name) < 80 else "pipeline of an unknown kind"
    for pattern, what, hint in _PIPELINES:
        if re.match(pattern, name):
            return ModelError(f"{model} is a {shown}, which {what}: it has no backbone here.", hint)
    return ModelError(f"{model} is a {shown}, which has no backbone here.", f"Known: {', '.join(known)}.")


def check_files(model: str, folder: Path) -> None:
    """Check that the weights of a part, if it has any, are in a file format that is read.

    Raises:
        ModelError: there is only a variant of the weights (fp16), or only a pickle file.
    """
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    safe = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    if any(
        re.fullmatch(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?", name)
        for name in safe
    ):
        return
    part = folder.name
    if safe:
        found = re.match(r"(?:model|diffusion_pytorch_model)\.(?:safetensors\.index\.)?(\w+)", safe[0])
        variant = found[1] if found else ""
        if variant and variant not in ("safetensors", "json"):
            how = f"DiffusionPipeline.from_pretrained(FOLDER, variant='{variant}').save_pretrained(NEW)"
            problem = f"The {part} of {model} is there only as the variant {variant} ({safe[0]})."
            raise ModelError(problem, f"Save it once with diffusers: {how}.")
        return
    pickled = [name for name in names if Path(name).suffix in PICKLES]
    if pickled:
        how = "DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW)"
        raise ModelError(
            f"The {part} of {model} is there only as a pickle file ({pickled[0]}), which is never read.",
            f"If you trust the file, save it once with diffusers: {how}.",
        )


Header = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor in a checkpoint, by name."""


def read_shapes(folder: Path, stem: str) -> Header:
    """Types and shapes of a part's tensors, from `<stem>.safetensors` or the shards named by its index.

    Raises:
        OSError, SafetensorError, ValueError, KeyError: a file is missing or cannot be read.
    """
    index = folder / f"{stem}.safetensors.index.json"
    shards = [f"{stem}.safetensors"]
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found: Header = {}
    for shard in shards:
        with safe_open(folder / Path(shard).name, framework="numpy") as stream:
            for name in stream.keys():
                about = stream.get_slice(name)
                found[name] = (about.get_dtype(), tuple(about.get_shape()))
    return found


# Tensors that programs store beside quantised weights; without them the weights are wrong by a factor.
_SCALES = re.compile(
    r"(.*\.)?(weight_scale(_\d)?|scale_weight|scale_input|input_scale|scaled_fp8|SCB|weight_format|absmax"
    r"|quant_map|nested_\w+"
    r"|quant_state\.\w+|qweight|qzeros|g_idx|scales|wscales|zero_point|weight\.(absmax|quant_map"
    r"|quant_state\.\w+|_data|_scale))"
)


def check_quantised(model: str, part: str, config: Mapping[str, Any], header: Header) -> None:
    """Check that a part's weights are plain floating-point numbers.

    Raises:
        ModelError: the weights are already quantised: the config says so, scales lie beside them, or they are
            integers.
    """
    about = config.get("quantization_config")
    if about:
        raise ModelError(
            f"The {part} of {model} is quantised already ({_method(about)}), which is not read.", _FULL
        )
    for name, (dtype, shape) in header.items():
        if _SCALES.fullmatch(name):
            problem = (
                f"The {part} of {model} is quantised already: beside its weights lie scales ({name[:100]})"
            )
            raise ModelError(f"{problem}, which are not read.", _FULL)
        if len(shape) >= 2 and not dtype.startswith(("F", "BF")):
            raise ModelError(
                f"The {part} of {model} is quantised already: {name[:100]} holds {dtype} numbers, which are "
                "not read.",
                _FULL,
            )


def _method(about: Any) -> str:
    """The method in a quantization_config, in a few words."""
    if not isinstance(about, dict):
        return "its config says so"
    method = re.sub(r"[^\w. -]", "", str(about.get("quant_method", "")))[:40] or "its config says so"
    return method + (
        ", 8 bit" if about.get("load_in_8bit") else ", 4 bit" if about.get("load_in_4bit") else ""
    )


def check_complete(model: str, part: str, header: Header, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a part's weights are exactly those of its model, no more and no less.

    Raises:
        ModelError: a tensor is unknown, missing, or has another shape; the error names it.
    """
    hint = "Download the folder again, or give the model that its config describes."
    extra, missing = sorted(header.keys() - expected.keys()), sorted(expected.keys() - header.keys())
    if extra:
        count = f", and {len(extra) - 1} more like it" if len(extra) > 1 else ""
        raise ModelError(
            f"The {part} of {model} holds {extra[0][:100]}, which is no part of the model{count}.", hint
        )
    if missing:
        count = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"The {part} of {model} lacks {missing[0]}{count}: it is incomplete.", hint)
    for name, shape in expected.items():
        if header[name][1] != shape:
            sizes = ["×".join(map(str, one)) for one in (header[name][1], shape)]
            raise ModelError(
                f"The {part} of {model} holds {name} as {sizes[0]}, and its config asks for {sizes[1]}.", hint
            )
