"""EmbeddingRecord: all that training needs to know about one triptych, by id. It lies in `<id>.safetensors`;
the text embeddings lie once per caption in `texts/<sha256 of the caption>.safetensors`, because a T5-XXL
embedding is larger than a triptych's latents. Both may be packed into `shards` instead.

Legend: C latent channels, H and W latent rows and columns of the whole canvas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.data.captions import markers_of
from triptych.data.shards import Shards, name_of
from triptych.errors import WorkError
from triptych.pictures.panels import PanelLayout
from triptych.store.files import parse_json, publish, read_json

EMPTY = "_empty_prompt"
"""Name of the file with the text embeddings of the empty prompt, for caption dropout and guidance. It has the
form of a record.
"""
TEXTS = "texts"
"""Subfolder with the text embeddings, one file per caption."""

INDEX = "embed.index.json"
"""Name of the list of ids that the last complete run of `embed` found; records of triptychs deleted since are
not in it.
"""

REJECTS = "embed.rejects.jsonl"
"""Name of the list of omitted triptychs, each with its reason."""


@dataclass(frozen=True)
class EmbeddingRecord:
    """Latents and text of one triptych, and hashes of the picture and the caption that they come from.

    latent_mean_CHW, latent_std_CHW: the autoencoder's posterior, in the space the transformer works in.
    text: the backbone's text tensors, without a batch dimension. dtype: the precision in which its encoders
    computed them. layout_by: the source of the layout. item: the garment's name. Both are empty in records of
    older versions. markers: the caption's markers, one for each panel; empty for the house format.
    """

    id: str
    latent_mean_CHW: Tensor
    latent_std_CHW: Tensor
    text: dict[str, Tensor]
    layout: PanelLayout
    image_sha256: str
    caption_sha256: str
    model: str
    dtype: str = ""
    layout_by: str = ""
    item: str = ""
    markers: tuple[str, ...] = ()

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sample of the posterior, (C, H, W)."""
        noise = torch.randn(self.latent_mean_CHW.shape, generator=generator)
        return self.latent_mean_CHW + self.latent_std_CHW * noise


def text_path(record_path: Path, caption_sha256: str) -> Path:
    """Where the text embeddings of a record's caption lie."""
    return record_path.parent / TEXTS / f"{caption_sha256}.safetensors"


def save_record(record: EmbeddingRecord, path: Path) -> None:
    """Write a record, and the text embeddings of its caption unless another record has written them."""
    text = text_path(path, record.caption_sha256)
    made_by = read_about(text) or {}
    if (made_by.get("model"), made_by.get("dtype")) != (record.model, record.dtype):
        save_text(record.text, record.model, text, record.dtype)
    save_latents(record, path)


def save_latents(record: EmbeddingRecord, path: Path) -> None:
    """Write a record without its text embeddings, which have a file of their own."""
    tensors = {"latent_mean": record.latent_mean_CHW, "latent_std": record.latent_std_CHW}
    about: dict[str, object] = {
        "id": record.id,
        "layout": record.layout.to_dict(),
        "image_sha256": record.image_sha256,
        "caption_sha256": record.caption_sha256,
        "model": record.model,
        "dtype": record.dtype,
        "layout_by": record.layout_by,
        "item": record.item,
    }
    if record.markers:
        about["markers"] = list(record.markers)
    _save(tensors, about, path)


def save_text(text: Mapping[str, Tensor], model: str, path: Path, dtype: str = "") -> None:
    """Write text tensors, without a batch dimension."""
    _save({f"text.{name}": value for name, value in text.items()}, {"model": model, "dtype": dtype}, path)


def _save(tensors: dict[str, Tensor], about: dict[str, object], path: Path) -> None:
    with publish(path) as temporary:
        save_file(
            {k: v.contiguous().cpu() for k, v in tensors.items()},
            temporary,
            metadata={"triptych": json.dumps(about)},
        )


def read_about(path: Path, shards: Shards | None = None) -> dict[str, Any] | None:
    """The metadata of a record or text file: what it was computed from. Reads no tensors; None if the file is
    missing or damaged, and packed in none of the `shards`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(parse_json((file.metadata() or {})["triptych"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return shards.about(name_of(shards.folder, path)) if shards else None


def load_record(path: Path, shards: Shards | None = None) -> EmbeddingRecord:
    """One record, from its file or from `shards`.

    Raises:
        WorkError: the file is missing, damaged or no embedding record.
    """
    tensors, about = _load(path, shards)
    try:
        text, _ = _load(text_path(path, about["caption_sha256"]), shards)
        layout = PanelLayout.from_dict(about["layout"])
        return EmbeddingRecord(
            id=str(about["id"]),
            latent_mean_CHW=tensors.pop("latent_mean"),
            latent_std_CHW=tensors.pop("latent_std"),
            text=_text(text),
            layout=layout,
            image_sha256=str(about["image_sha256"]),
            caption_sha256=str(about["caption_sha256"]),
            model=str(about["model"]),
            dtype=str(about.get("dtype", "")),
            layout_by=str(about.get("layout_by", "")),
            item=str(about.get("item", "")),
            markers=markers_of(about.get("markers"), len(layout.roles)),
        )
    except (KeyError, ValueError) as error:
        raise WorkError(f"{path} is no embedding record ({error}).", "Run `triptych embed` again.") from error


def _load(path: Path, shards: Shards | None) -> tuple[dict[str, Tensor], dict]:
    name = name_of(shards.folder, path) if shards else ""
    try:
        if shards and name in shards and not path.exists():
            return shards.tensors(name), shards.about(name) or {}
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {}).get("triptych", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, about
    except (OSError, SafetensorError, ValueError) as error:
        if not path.exists():
            raise WorkError(
                f"{path} is missing.", "Run `triptych embed` again; it makes what is missing."
            ) from error
        raise WorkError(
            f"{path} cannot be read: {error}.", "Delete it and run `triptych embed` again."
        ) from error


def _text(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("text."): value for key, value in tensors.items() if key.startswith("text.")}


@dataclass
class EmbeddingFolder:
    """The records of one backbone, `<folder>/<id>.safetensors` or packed, looked up by id, never by position.

    Raises:
        WorkError: the folder holds no record.
    """

    path: Path
    _cache: dict[str, EmbeddingRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ids:
            raise WorkError(
                f"There are no embeddings in {self.path}.",
                "Run `triptych embed` first, with the same --work.",
            )

    @cached_property
    def shards(self) -> Shards:
        return Shards(self.path)

    @cached_property
    def ids(self) -> list[str]:
        index = self.path / INDEX
        here = {file.stem for file in self.path.glob("*.safetensors") if not file.name.startswith(".")} | {
            name for name in self.shards.packed if not name.startswith(f"{TEXTS}/")
        }
        here.discard(EMPTY)
        listed = read_json(index) if index.exists() else sorted(here)
        if not isinstance(listed, list) or not all(isinstance(id, str) for id in listed):
            raise WorkError(
                f"{index} is no list of ids.", "Run `triptych embed` again; it writes that list anew."
            )
        return sorted(here & set(listed))

    @cached_property
    def about(self) -> dict[str, dict[str, Any]]:
        """By id, the metadata of each record, read without its tensors.

        Raises:
            WorkError: a record that is damaged.
        """
        return {
            id: read_about(self.path / f"{id}.safetensors", self.shards) or _damaged(self.path / id)
            for id in self.ids
        }

    @cached_property
    def empty(self) -> dict[str, Tensor]:
        """Text tensors of the empty prompt."""
        return _text(_load(self.path / f"{EMPTY}.safetensors", self.shards)[0])

    def __getitem__(self, id: str) -> EmbeddingRecord:
        """A record. Up to 512 records stay in memory; the oldest one makes room."""
        if id not in self._cache:
            if len(self._cache) >= 512:
                self._cache.pop(next(iter(self._cache)))
            self._cache[id] = load_record(self.path / f"{id}.safetensors", self.shards)
        return self._cache[id]


def _damaged(path: Path) -> dict[str, Any]:
    raise WorkError(
        f"The record {path} is damaged.", "Run `triptych embed` again; it makes damaged records anew."
    )


def stack_text(texts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Text tensors of several prompts as one batch."""
    return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
