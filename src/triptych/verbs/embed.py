"""embed: the autoencoder's latents and the text embeddings of every triptych,
computed once and kept on disk.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import Field

from triptych import progress
from triptych.captioning.prompt_tokens import prompt_tokenizer
from triptych.config.stage import StageConfig
from triptych.data.captions import UNKNOWN_SHARE
from triptych.data.triptychs import Grid, Source, TriptychFolder, grid_of, reject
from triptych.errors import ConfigError, InputError, TriptychError
from triptych.events import Event, Run, held
from triptych.pictures.images import load_image
from triptych.pictures.panels import PanelLayout, split
from triptych.pocket.known_worlds import check_pictures
from triptych.store.files import write_json, write_jsonl
from triptych.store.folder import StageFolder
from triptych.tasks import DEFAULT

if TYPE_CHECKING:  # it imports torch, which `--help` can do without
    from triptych.backbones.contract import Autoencoder, Backbone, Text

log = logging.getLogger(__name__)

CHUNK = 256  # captions in memory at once; a T5 embedding of FLUX.1-dev has 4 MB


class EmbedConfig(StageConfig):
    model: str = ""
    """A hub id such as black-forest-labs/FLUX.1-dev, a diffusers folder, or `pocket`, which only knows
    rendered clothes.
    """
    max_sequence_length: int | None = Field(default=None, ge=1, le=512)
    """T5 tokens kept of a caption; by default what the model recommends. Longer captions are cut, and counted
    in the summary.
    """
    batch_size: int = Field(default=4, ge=1)
    """Triptychs that go through the autoencoder at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the text encoders; the autoencoder always works in float32, where its latents are exact.
    """
    columns: int | None = Field(default=None, ge=1)
    """Panels in a row, of all pictures that have no layout in metadata.jsonl. Without it, and without
    --roles, three in a row are guessed where the picture's shape allows it.
    """
    roles: list[str] | None = None
    """What the panels show in reading order, of those pictures; the last one is what is made. Default: front,
    back, worn.
    """
    anyway: bool = False
    """Show the model photographs even if it says that it has never seen any, as `pocket` does; with a
    warning.
    """


def _panels(sources: Sequence[Source]) -> Iterator[tuple[str, Image.Image]]:
    """The panels of all triptychs that can be opened, each with its file's name."""
    for source in sources:
        with contextlib.suppress(InputError):  # it is rejected when its turn comes
            yield from (
                (source.image.name, panel) for panel in split(load_image(source.image), source.layout)
            )


def embed(config: EmbedConfig) -> Run:
    """Write `<embeddings>/<backbone>/<id>.safetensors` for every captioned triptych; what is up to date is
    kept.

    Raises:
        ModelError: the model cannot be opened. ConfigError: --columns and --roles that make no grid.
            WorkError: no
        triptychs, or embeddings of another model in the folder.
    """
    from triptych.backbones.registry import load_backbone
    from triptych.data.embeddings import (
        EMPTY,
        INDEX,
        REJECTS,
        load_record,
        read_about,
        save_record,
        save_text,
        text_path,
    )
    from triptych.sampling.prompts import encode_texts

    backbone = load_backbone(config.model, config.device, config.dtype)
    usual = Grid(DEFAULT.roles, DEFAULT.columns)
    try:
        grid = grid_of(config.columns, config.roles, usual)
    except ValueError as error:
        raise ConfigError(
            f"--columns and --roles make no layout: {error}.",
            "Say for instance --columns 1 --roles front --roles back --roles worn.",
        ) from error
    sources, rejects = TriptychFolder(config.triptych_folder).sources(backbone.settings.stride, grid, usual)
    if knows := backbone.settings.knows:
        check_pictures(knows, _panels(sources), "model", config.model, config.anyway)
    length = config.max_sequence_length or backbone.settings.max_sequence_length
    model = backbone.encoder_fingerprint
    folder = StageFolder(
        config.embedding_folder / backbone.name, "embed", {"model": model, "max_sequence_length": length}
    )
    summary: dict[str, Any] = {
        "triptychs": len(sources),
        "embedded": 0,
        "kept": 0,
        "rejected": len(rejects),
        "captions_cut": 0,
        "layouts_guessed": sum(source.layout_by == "guess" for source in sources),
        "captions_unreadable": _unreadable(config.model, sources),
        "folder": str(folder.path),
    }

    if guessed := [source.image.name for source in sources if source.layout_by == "guess"]:
        log.warning(
            "Of %d of %d pictures (%s …) it is only guessed that they are three panels in a row; pairs and "
            "wide photos look alike. "
            "Say it with --columns 3, or in metadata.jsonl.",
            len(guessed),
            len(sources),
            guessed[0],
        )

    def work() -> Iterator[Event]:
        for row in rejects:
            yield Event(row["id"], "rejected", row["reason"])
        todo = []
        for source in sources:
            record = folder.path / f"{source.id}.safetensors"
            about, text = read_about(record) or {}, read_about(text_path(record, source.caption_sha256)) or {}
            if _is_fresh(source, about, text, backbone):
                if any(about.get(name) != value for name, value in _facts(source, about).items()):
                    # The latents are those of the whole canvas, whatever its panels are.
                    said = {
                        name: getattr(source, name) for name in ("layout", "layout_by", "item", "markers")
                    }
                    save_record(replace(load_record(record), **said), record)
                summary["kept"] += 1
                yield Event(source.id, "kept")
            else:
                todo.append(source)
        if not todo and read_about(folder.path / f"{EMPTY}.safetensors") is None:
            empty = encode_texts(backbone.load_text_encoder(), [], length)[""]
            save_text(empty, model, folder.path / f"{EMPTY}.safetensors", str(backbone.dtype))
        for start in range(0, len(todo), CHUNK):
            for event in _embed(
                backbone, folder.path, todo[start : start + CHUNK], length, config.batch_size, summary
            ):
                if event.status == "rejected":
                    source = next(source for source in todo if source.id == event.id)
                    rejects.append(reject(source.image, source.caption, event.note))
                summary["embedded" if event.status == "done" else "rejected"] += 1
                yield event
        write_jsonl(folder.path / REJECTS, rejects)
        rejected = {row["id"] for row in rejects}
        write_json(folder.path / INDEX, [source.id for source in sources if source.id not in rejected])

    return Run("embed", len(sources) + len(rejects), held(folder, work), summary)


def _is_fresh(source: Source, about: dict[str, Any], text: dict[str, Any], backbone: Backbone) -> bool:
    """Whether a record and its text were made from this picture and caption,
    by this model in this precision.
    """
    hashes = (source.image_sha256, source.caption_sha256) == (
        about.get("image_sha256"),
        about.get("caption_sha256"),
    )
    made_by = all(
        (row.get("model"), row.get("dtype")) == (backbone.encoder_fingerprint, str(backbone.dtype))
        for row in (about, text)
    )
    return hashes and made_by


def _facts(source: Source, about: dict[str, Any]) -> dict[str, Any]:
    facts = {"layout": source.layout.to_dict(), "layout_by": source.layout_by, "item": source.item}
    return facts | ({"markers": [*source.markers]} if source.markers or "markers" in about else {})


def _unreadable(model: str, sources: Sequence[Source]) -> int:
    """How many captions the text encoder cannot read, in whose tokens many words are the same unknown one;
    they are named in a warning.
    """
    tokenizer = prompt_tokenizer(model)
    found = [one.id for one in sources if tokenizer and tokenizer.unknown_share(one.caption) > UNKNOWN_SHARE]
    if found:
        names = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
        log.warning(
            "The text encoder of %s does not know many words of %d captions: write them in English: %s.",
            model,
            len(found),
            names,
        )
    return len(found)


def _embed(
    backbone: Backbone,
    folder: Path,
    todo: list[Source],
    length: int,
    batch_size: int,
    summary: dict[str, Any],
) -> Iterator[Event]:
    """Text first, then latents, so that only one of the encoders is in memory at a time."""
    import torch

    from triptych.data.embeddings import EMPTY, save_text
    from triptych.sampling.prompts import encode_texts

    progress.doing("loading the text encoder")
    encoder = backbone.load_text_encoder()
    texts = encode_texts(encoder, [source.caption for source in todo], length)
    summary["captions_cut"] += sum(
        encoder.count_tokens(caption) > length for caption in {source.caption for source in todo}
    )
    del encoder
    save_text(texts[""], backbone.encoder_fingerprint, folder / f"{EMPTY}.safetensors", str(backbone.dtype))
    progress.doing("encoding pictures")
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
    autoencoder: Autoencoder,
    backbone: Backbone,
    images: dict[Source, Image.Image],
    texts: dict[str, Text],
    folder: Path,
) -> Iterator[Event]:
    from triptych.data.embeddings import EmbeddingRecord, save_record
    from triptych.sampling.canvas import to_pixels

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
            dtype=str(backbone.dtype),
            layout_by=source.layout_by,
            item=source.item,
            markers=source.markers,
        )
        save_record(record, folder / f"{record.id}.safetensors")
        yield Event(record.id)
