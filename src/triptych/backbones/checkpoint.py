"""Check a model's weights against its configs by the files' headers, before gigabytes are read.

diffusers and transformers only warn about unknown tensors, and fill missing ones with random numbers. A
checkpoint that is already quantised would load that way and produce noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from triptych.backbones.model_folder import check_complete, check_quantised, read_config, read_shapes
from triptych.backbones.settings import resolve_model
from triptych.errors import ModelError
from triptych.wording.hub import hub_unreachable

WEIGHTS = "diffusion_pytorch_model.safetensors"


def transformer_folder(model: str) -> Path:
    """The transformer's folder in a diffusers folder or a hub model. Missing files of a hub model are
    downloaded.
    """
    path = Path(model)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(
            snapshot_download(
                model,
                allow_patterns=["transformer/config.json", f"transformer/{Path(WEIGHTS).stem}*.safetensors*"],
            )
        )
    return path / "transformer"


def shapes_of(model_class: Any, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensor shapes of a diffusers model class by name, from its config alone."""
    with torch.device("meta"):
        transformer = model_class.from_config(dict(config))
    return {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}


def check_transformer(transformer_class: Any, model: str) -> None:
    """
    Raises:
        ModelError: the weights are already quantised, or do not match the model that the config describes.
    """
    folder = transformer_folder(model)
    config = read_config(folder)
    check_quantised(model, "transformer", config, {})
    header = read_shapes(folder, Path(WEIGHTS).stem)
    check_quantised(model, "transformer", config, header)
    check_complete(
        model, "transformer", header, shapes_of(transformer_class, transformer_class.load_config(folder))
    )


def check_encoder(model: str, part: str, device: torch.device) -> None:
    """Check a text encoder's weights. Weights that bitsandbytes has quantised are accepted on a CUDA card.

    Raises:
        ModelError: the weights are quantised in a way that is not supported, or not on this device.
    """
    folder = Path(model) / part
    if not folder.is_dir():  # a hub id
        return
    config = read_config(folder)
    if config.get("quantization_config"):
        if device.type == "cpu":
            problem = (
                f"The {part} of {model} is quantised already, and such weights are loaded on a CUDA card only"
            )
            raise ModelError(
                f"{problem}; this is the CPU.",
                "Give a model folder in full precision (bf16), or a card with --device cuda.",
            )
        return
    stem = "diffusion_pytorch_model" if part == "vae" else "model"
    if (folder / f"{stem}.safetensors").is_file() or (folder / f"{stem}.safetensors.index.json").is_file():
        check_quantised(model, part, config, read_shapes(folder, stem))


def check_autoencoder(autoencoder_class: Any, model: str) -> None:
    """
    Raises:
        ModelError: the checkpoint lacks tensors of the model that its config describes.
    """
    folder = Path(model) / "vae"
    if folder.is_dir() and (folder / WEIGHTS).is_file():
        header = read_shapes(folder, Path(WEIGHTS).stem)
        expected = shapes_of(autoencoder_class, autoencoder_class.load_config(folder))
        if not any(
            name.endswith(".query.weight") for name in header
        ):  # old names, which diffusers still converts
            check_complete(
                model, "vae", {name: about for name, about in header.items() if name in expected}, expected
            )


def whole(model: str, part: str, loaded: tuple[Any, dict[str, Any]]) -> Any:
    """The model out of `loaded`, the result of transformers' `from_pretrained(…, output_loading_info=True)`.

    Raises:
        ModelError: the checkpoint lacks tensors, so transformers has filled them with random numbers.
    """
    encoder, info = loaded
    missing = sorted(map(str, info.get("missing_keys") or ()))
    if missing:
        count = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"The {part} of {model} lacks {missing[0]}{count}: it is incomplete.",
            "Download the folder again.",
        )
    return encoder


@contextmanager
def opening(model: str) -> Iterator[None]:
    """Turn any error while parts of a model are loaded into a `ModelError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
        if absent := hub_unreachable(model, error, "--model FOLDER", part=True):
            raise absent from error
        words = (str(error) or repr(error)).strip().splitlines()[0][:200].rstrip(".")
        hint = "The folder may be incomplete, or its download was interrupted."
        if isinstance(error, MemoryError) or "memory" in words.lower() or getattr(error, "errno", None) == 12:
            hint = (
                "There is too little memory: `triptych plan` tells how much is needed and how to reduce it."
            )
        raise ModelError(f"The model {model} cannot be loaded: {words}.", hint) from error


def same_weights(model: str, other: str, parts: Sequence[str]) -> bool:
    """Whether two models have the same weights in these subfolders: two folders by `fingerprint`, two hub
    models by the hashes that the hub gives of their files. A folder and a hub model count as different.

    Raises:
        ModelError: the hub cannot be reached.
    """
    folders = [Path(resolve_model(one)).is_dir() for one in (model, other)]
    if all(folders):
        return fingerprint(model, parts, "*.safetensors") == fingerprint(other, parts, "*.safetensors")
    return not any(folders) and _hub_hashes(model, parts) == _hub_hashes(other, parts)


def _hub_hashes(model: str, parts: Sequence[str]) -> dict[str, str]:
    """The sha256 of every safetensors file of a hub model in these subfolders, without a download."""
    from huggingface_hub import HfApi

    with opening(model):
        files = HfApi().model_info(model, files_metadata=True).siblings or []
    return {
        file.rfilename: file.lfs.sha256
        for file in files
        if file.lfs and file.rfilename.split("/")[0] in parts and file.rfilename.endswith(".safetensors")
    }


def fingerprint(model: str, parts: Sequence[str], pattern: str = "*") -> str:
    """A hash that changes when the given subfolders of a model change, or their files of a pattern; for a hub
    id, a hash of its name.

    Files up to 64 MiB are hashed whole, larger ones by size and safetensors header, so that a 12B model takes
    no time.
    """
    root = Path(resolve_model(model))
    if not root.is_dir():
        return hashlib.sha256(model.encode()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(f for part in parts for f in (root / part).rglob(pattern) if f.is_file()):
        size = file.stat().st_size
        total.update(f"{file.relative_to(root)}:{size}:".encode())
        with open(file, "rb") as stream:
            total.update(stream.read() if size <= 64 << 20 else stream.read(1 << 20))
    return total.hexdigest()
