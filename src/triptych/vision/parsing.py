"""Human parsing: which part of a person, or which garment, every pixel of a photo shows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from triptych.errors import ModelError
from triptych.pocket import parser_path
from triptych.pocket.known_worlds import known_by
from triptych.vision.parsing_labels import LICENCE_NOTES, parts_of
from triptych.wording.hub import hub_unreachable

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SIDE = 1024
"""Longer side in pixels at which a photo is parsed; label maps of larger photos are no finer."""
FORM = (
    "It must be a semantic segmentation model of transformers in safetensors that needs no code of its own: "
    "a folder, or a name of the hub."
)


class Parser(Protocol):
    """Says which part every pixel shows."""

    knows: str
    """The world it knows, of `known_worlds.WORLDS`; empty for photographs."""

    def parts(self, photo: Image.Image) -> np.ndarray:
        """The label map of a photo: (H, W) uint8 of places in `parsing_labels.PARTS`; no larger than `SIDE`,
        of the photo's aspect.
        """
        ...


def open_parser(name: str = "pocket") -> Parser:
    """Open a parser: `pocket` (the embedded one), a folder, or a name of the hub, whose licence is logged
    before its weights are fetched.

    Raises:
        ModelError: it is no such model, lacks files, or the hub cannot be reached.
    """
    return SegmentationParser(str(parser_path()) if name == "pocket" else name)


class SegmentationParser:
    """A semantic segmentation model of transformers whose labels are parts of a person. Code in its folder is
    never run.
    """

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoConfig, AutoImageProcessor

        self.knows = known_by(Path(name).expanduser())
        with opening(name, FORM) as (source, options):
            config = AutoConfig.from_pretrained(source, **options)
            self._parts = np.array(parts_of(config.id2label, name), dtype=np.uint8)
            tell_licence(name, config.model_type)
            # PIL's processors need no torchvision
            self._processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
            model = _network(source, config, options)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(self._device, torch.float32).eval()

    def parts(self, photo: Image.Image) -> np.ndarray:
        import torch

        shown = photo.convert("RGB")
        shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        inputs = self._processor(images=shown, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
            (found_HW,) = self._processor.post_process_semantic_segmentation(
                outputs, target_sizes=[shown.size[::-1]]
            )
        return np.asarray(self._parts[found_HW.cpu().numpy()])


@contextmanager
def opening(name: str, form: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the source, options) for the `from_pretrained` calls inside, whose errors become sentences.

    Args:
        name: a folder, or a name of the hub. form: what it must be, for the hint.

    Raises:
        ModelError: there is no such folder, or it cannot be loaded.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        raise ModelError(f"The parser {name} cannot be loaded: there is no such folder.", form)
    source = str(folder) if folder.is_dir() else name
    try:
        yield source, {"trust_remote_code": False, "local_files_only": folder.is_dir()}
    except ModelError:
        raise
    except Exception as error:  # transformers raises many types for an unsuitable folder or name
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(". ")
        raise hub_unreachable(name, error, "--parser FOLDER") or ModelError(
            f"The parser {name} cannot be loaded: {reason}.", form
        ) from error


def tell_licence(name: str, model_type: str) -> None:
    """Log the licence of a model of the hub; call it before the weights are fetched."""
    if not Path(name).expanduser().is_dir():
        log.warning("%s", licence_of(name, model_type))


def _network(source: str, config: Any, options: dict[str, Any]) -> torch.nn.Module:
    """The weights of a model, in the class that transformers has for its kind."""
    from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

    plain = type(config) in AutoModelForSemanticSegmentation._model_mapping
    kind = AutoModelForSemanticSegmentation if plain else AutoModelForUniversalSegmentation
    model: torch.nn.Module = kind.from_pretrained(source, config=config, use_safetensors=True, **options)
    return model


def licence_of(name: str, model_type: str) -> str:
    """A sentence about the licence of a model of the hub, as its card states it."""
    from huggingface_hub import hf_hub_download

    try:
        card = Path(hf_hub_download(name, "README.md")).read_text(encoding="utf-8", errors="replace")
    except Exception:  # no card, or no hub: the weights may still lie on this machine
        card = ""
    head = card.split("---")[1] if card.startswith("---") else ""
    stated = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S+)[ \t]*$", head, re.MULTILINE))
    named = json.dumps(stated.get("license_name") or stated.get("license") or "none stated")
    note = LICENCE_NOTES.get(model_type, "")
    return f"The parser {name}: licence by its card: {named}{f' ({note})' if note else ''}."
