"""embed: the autoencoder's latents and the text embeddings of every triptych, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from triptych.backbones.base import Autoencoder, Backbone, TextEncoder, fingerprint
from triptych.backbones.registry import load_backbone
from triptych.config import StageConfig
from triptych.embeddings import EMPTY, EmbeddingRecord, read_about, save_record, save_text
from triptych.errors import InputError, TriptychError, WorkError
from triptych.images import load_image
from triptych.inference import to_pixels
from triptych.panels import PanelLayout
from triptych.store import Event, Run, StageFolder, held, read_jsonl, sha256_file, write_jsonl


class EmbedConfig(StageConfig):
    model: str = "pocket"
    """`pocket`, a diffusers folder, or a hub id such as black-forest-labs/FLUX.1-dev."""
    max_sequence_length: int | None = Field(default=None, ge=1, le=512)
    """T5 tokens kept of a caption; by default what the model recommends. Longer captions are cut, and counted in the summary."""
    batch_size: int = Field(default=4, ge=1)
    """Triptychs that go through the autoencoder at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the text encoders; the autoencoder always works in float32, where its latents are exact."""


@dataclass(frozen=True)
class Source:
    """One triptych on disk and the hashes that say whether its record is still true."""

    id: str
    image: Path
    caption: str
    layout: PanelLayout
    image_sha256: str

    @property
    def caption_sha256(self) -> str:
        return hashlib.sha256(self.caption.encode()).hexdigest()


def find_sources(folder: Path) -> tuple[list[Source], list[dict[str, str]]]:
    """The captioned triptychs in a folder, and the others with the reason why they are left out.

    Any `<id>.png` with `<id>.txt` beside it counts, whoever wrote them. Its layout comes from metadata.jsonl; a picture
    that is not in there is taken as three panels in a row.

    Raises:
        WorkError: the folder holds no picture.
    """
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise WorkError(f"There are no triptychs in {folder}.", "Run `triptych concat` first, or put <id>.png and <id>.txt there.")
    metadata = folder / "metadata.jsonl"
    layouts = {Path(row["file_name"]).stem: row.get("layout") for row in (read_jsonl(metadata) if metadata.exists() else [])}
    sources, rejects = [], []
    for picture in pictures:
        text = picture.with_suffix(".txt")
        try:
            if not text.is_file():
                raise InputError(f"no caption: {text.name} is missing")
            caption = text.read_text(encoding="utf-8").strip()
            if not caption:
                raise InputError(f"{text.name} is empty")
            with Image.open(picture) as image:
                width, height = image.size
            stored = layouts.get(picture.stem)
            layout = PanelLayout.from_dict(stored) if stored else PanelLayout(width // 3, height)
            if layout.size != (width, height):
                raise InputError(f"{width}×{height} px is no row of three equal panels")
            sources.append(Source(picture.stem, picture, caption, layout, sha256_file(picture)))
        except (TriptychError, OSError, UnicodeDecodeError) as error:
            rejects.append({"id": picture.stem, "reason": str(error)})
    return sources, rejects


def embed(config: EmbedConfig) -> Run:
    """Write `<embeddings>/<backbone>/<id>.safetensors` for every captioned triptych; what is up to date is kept.

    Raises:
        ModelError: the model cannot be opened. WorkError: no triptychs, or embeddings of another model in the folder.
    """
    backbone = load_backbone(config.model, config.device, config.dtype)
    sources, rejects = find_sources(config.triptych_folder)
    length = config.max_sequence_length or backbone.settings.max_sequence_length
    model = fingerprint(config.model, ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    folder = StageFolder(config.embedding_folder / backbone.name, "embed", {"model": model, "max_sequence_length": length})
    summary: dict[str, Any] = {
        "triptychs": len(sources),
        "embedded": 0,
        "kept": 0,
        "rejected": len(rejects),
        "captions_cut": 0,
        "folder": str(folder.path),
    }

    def work() -> Iterator[Event]:
        write_jsonl(folder.path / "embed.rejects.jsonl", rejects)
        for reject in rejects:
            yield Event(reject["id"], "rejected", reject["reason"])
        todo = []
        for source in sources:
            about = read_about(folder.path / f"{source.id}.safetensors") or {}
            fresh = (source.image_sha256, source.caption_sha256) == (about.get("image_sha256"), about.get("caption_sha256"))
            if fresh and about.get("model") == model:
                summary["kept"] += 1
                yield Event(source.id, "kept")
            else:
                todo.append(source)
        has_empty = read_about(folder.path / f"{EMPTY}.safetensors") is not None
        if todo or not has_empty:
            yield from _embed(backbone, folder.path, todo, length, model, config.batch_size, summary)

    return Run("embed", len(sources) + len(rejects), held(folder, work), summary)


def _embed(
    backbone: Backbone, folder: Path, todo: list[Source], length: int, model: str, batch_size: int, summary: dict[str, Any]
) -> Iterator[Event]:
    """Text first, then latents, so that only one of the encoders is in memory at a time."""
    texts = _texts(backbone.load_text_encoder(), todo, length, summary)
    save_text(texts[""], model, folder / f"{EMPTY}.safetensors")
    autoencoder = _float32(backbone).load_autoencoder()
    by_layout: dict[PanelLayout, list[Source]] = {}
    for source in todo:
        by_layout.setdefault(source.layout.check(backbone.settings.stride), []).append(source)
    for sources in by_layout.values():
        for start in range(0, len(sources), batch_size):
            batch = sources[start : start + batch_size]
            for record in _records(autoencoder, batch, texts, model):
                save_record(record, folder / f"{record.id}.safetensors")
                summary["embedded"] += 1
                yield Event(record.id)


def _float32(backbone: Backbone) -> Backbone:
    import dataclasses

    import torch

    return dataclasses.replace(backbone, dtype=torch.float32)


def _texts(encoder: TextEncoder, todo: list[Source], length: int, summary: dict[str, Any]) -> dict[str, dict]:
    """Text tensors by caption, each caption once; the empty prompt is always among them."""
    texts = {}
    for caption in dict.fromkeys(["", *(source.caption for source in todo)]):
        summary["captions_cut"] += encoder.count_tokens(caption) > length
        texts[caption] = {name: value[0].cpu() for name, value in encoder.encode([caption], length).items()}
    return texts


def _records(autoencoder: Autoencoder, batch: list[Source], texts: dict[str, dict], model: str) -> Iterator[EmbeddingRecord]:
    mean, std = autoencoder.encode(to_pixels([load_image(source.image) for source in batch]))
    for row, source in enumerate(batch):
        yield EmbeddingRecord(
            id=source.id,
            latent_mean_CHW=mean[row],
            latent_std_CHW=std[row],
            text=texts[source.caption],
            layout=source.layout,
            image_sha256=source.image_sha256,
            caption_sha256=source.caption_sha256,
            model=model,
        )
