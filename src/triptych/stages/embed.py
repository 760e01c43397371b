"""embed: the autoencoder's latents and the text embeddings of every triptych, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import Field

from triptych.config import StageConfig
from triptych.errors import InputError, TriptychError, WorkError, sentence_of
from triptych.images import load_image
from triptych.panels import PanelLayout
from triptych.store import Event, Run, StageFolder, held, read_jsonl, read_text, sha256_file, write_json, write_jsonl
from triptych.text_files import CAPTION_BYTES

if TYPE_CHECKING:  # it imports torch, which `--help` can do without
    from triptych.backbones.base import Autoencoder, Backbone, Text

CHUNK = 256  # captions in memory at once; a T5 embedding of FLUX.1-dev has 4 MB


class EmbedConfig(StageConfig):
    model: str = ""
    """A hub id such as black-forest-labs/FLUX.1-dev, a diffusers folder, or `pocket`, which only knows rendered clothes."""
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


def find_sources(folder: Path, stride: int) -> tuple[list[Source], list[dict[str, str]]]:
    """The captioned triptychs in a folder, and the others with the reason why they are left out.

    Any `<id>.png` with `<id>.txt` beside it counts, whoever wrote them. Its layout comes from metadata.jsonl; a picture
    that is not in there is taken as three panels in a row.

    Raises:
        WorkError: the folder holds no picture.
    """
    pictures = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    if not pictures:
        raise WorkError(f"There are no triptychs in {folder}.", "Run `triptych concat` first, or put <id>.png and <id>.txt there.")
    metadata = folder / "metadata.jsonl"
    layouts = {Path(str(row.get("file_name"))).stem: row.get("layout") for row in (read_jsonl(metadata) if metadata.exists() else [])}
    sources, rejects = [], []
    for picture in pictures:
        text = picture.with_suffix(".txt")
        try:
            if not text.is_file():
                raise InputError(f"no caption: {text.name} is missing")
            caption = read_text(text, CAPTION_BYTES, "The caption").strip()
            if not caption:
                raise InputError(f"{text.name} is empty")
            with Image.open(picture) as image:
                width, height = image.size
            stored = layouts.get(picture.stem)
            layout = PanelLayout.from_dict(stored) if stored else PanelLayout(max(1, width // 3), height)
            if layout.size != (width, height):
                raise InputError(f"{width}×{height} px is no row of three equal panels")
            sources.append(Source(picture.stem, picture, caption, layout.check(stride), sha256_file(picture)))
        except (TriptychError, OSError, ValueError, KeyError, TypeError) as error:
            rejects.append({"id": picture.stem, "reason": sentence_of(error)})
    return sources, rejects


def embed(config: EmbedConfig) -> Run:
    """Write `<embeddings>/<backbone>/<id>.safetensors` for every captioned triptych; what is up to date is kept.

    Raises:
        ModelError: the model cannot be opened. WorkError: no triptychs, or embeddings of another model in the folder.
    """
    from triptych.backbones.registry import load_backbone
    from triptych.embeddings import EMPTY, INDEX, read_about, save_text, text_path
    from triptych.inference import encode_texts

    backbone = load_backbone(config.model, config.device, config.dtype)
    sources, rejects = find_sources(config.triptych_folder, backbone.settings.stride)
    length = config.max_sequence_length or backbone.settings.max_sequence_length
    model = backbone.encoder_fingerprint
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
        for reject in rejects:
            yield Event(reject["id"], "rejected", reject["reason"])
        todo = []
        for source in sources:
            record = folder.path / f"{source.id}.safetensors"
            about, text = read_about(record) or {}, read_about(text_path(record, source.caption_sha256)) or {}
            fresh = (source.image_sha256, source.caption_sha256) == (about.get("image_sha256"), about.get("caption_sha256"))
            if fresh and about.get("model") == text.get("model") == model:
                summary["kept"] += 1
                yield Event(source.id, "kept")
            else:
                todo.append(source)
        if not todo and read_about(folder.path / f"{EMPTY}.safetensors") is None:
            save_text(encode_texts(backbone.load_text_encoder(), [], length)[""], model, folder.path / f"{EMPTY}.safetensors")
        for start in range(0, len(todo), CHUNK):
            for event in _embed(backbone, folder.path, todo[start : start + CHUNK], length, config.batch_size, summary):
                if event.status == "rejected":
                    rejects.append({"id": event.id, "reason": event.note})
                summary["embedded" if event.status == "done" else "rejected"] += 1
                yield event
        write_jsonl(folder.path / "embed.rejects.jsonl", rejects)
        rejected = {reject["id"] for reject in rejects}
        write_json(folder.path / INDEX, [source.id for source in sources if source.id not in rejected])

    return Run("embed", len(sources) + len(rejects), held(folder, work), summary)


def _embed(backbone: Backbone, folder: Path, todo: list[Source], length: int, batch_size: int, summary: dict[str, Any]) -> Iterator[Event]:
    """Text first, then latents, so that only one of the encoders is in memory at a time."""
    import torch

    from triptych.embeddings import EMPTY, save_text
    from triptych.inference import encode_texts

    encoder = backbone.load_text_encoder()
    texts = encode_texts(encoder, [source.caption for source in todo], length)
    summary["captions_cut"] += sum(encoder.count_tokens(caption) > length for caption in {source.caption for source in todo})
    del encoder
    save_text(texts[""], backbone.encoder_fingerprint, folder / f"{EMPTY}.safetensors")
    autoencoder = replace(backbone, dtype=torch.float32).load_autoencoder()
    by_layout: dict[PanelLayout, list[Source]] = {}
    for source in todo:
        by_layout.setdefault(source.layout, []).append(source)
    for sources in by_layout.values():
        for start in range(0, len(sources), batch_size):
            images: dict[Source, Image.Image] = {}
            for source in sources[start : start + batch_size]:
                try:
                    images[source] = load_image(source.image)
                except TriptychError as error:
                    yield Event(source.id, "rejected", error.message)
            if images:
                yield from _save_records(autoencoder, backbone, images, texts, folder)


def _save_records(
    autoencoder: Autoencoder, backbone: Backbone, images: dict[Source, Image.Image], texts: dict[str, Text], folder: Path
) -> Iterator[Event]:
    from triptych.embeddings import EmbeddingRecord, save_record
    from triptych.inference import to_pixels

    mean, std = autoencoder.encode(to_pixels(list(images.values())))
    for row, source in enumerate(images):
        record = EmbeddingRecord(
            id=source.id,
            latent_mean_CHW=mean[row],
            latent_std_CHW=std[row],
            text=texts[source.caption],
            layout=source.layout,
            image_sha256=source.image_sha256,
            caption_sha256=source.caption_sha256,
            model=backbone.encoder_fingerprint,
        )
        save_record(record, folder / f"{record.id}.safetensors")
        yield Event(record.id)
