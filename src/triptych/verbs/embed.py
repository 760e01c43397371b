"""embed: computes latents and text embeddings of every triptych once, and keeps them on disk.

It encodes first all captions, then all pictures, so that only one of the encoders is in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from triptych import progress
from triptych.captioning.prompt_tokens import warn_of_unknown_words
from triptych.data.triptychs import Grid, Source, TriptychFolder, grid_of, reject
from triptych.errors import ConfigError, InputError, TriptychError
from triptych.events import Event, Run, held
from triptych.execution import PerWorker, execute
from triptych.pictures.images import load_image
from triptych.pictures.panels import PanelLayout, split
from triptych.pocket.known_worlds import check_pictures
from triptych.store.files import write_json, write_jsonl
from triptych.store.folder import StageFolder
from triptych.tasks import DEFAULT
from triptych.verbs.embed_config import EmbedConfig

if TYPE_CHECKING:  # they import torch, which `--help` can do without
    from torch import Tensor

    from triptych.backbones.contract import Backbone, Text
    from triptych.data.shards import Packer, Shards

log = logging.getLogger(__name__)

CAPTIONS = 64
"""Most captions in memory at once; a T5 embedding of FLUX.1-dev has 4 MB."""
CHUNK = 256
"""Within this many triptychs, those of one layout are grouped into batches."""


def embed(config: EmbedConfig) -> Run:
    """Write `<embeddings>/<backbone>/<id>.safetensors` for every captioned triptych; records that are up to
    date are kept.

    Raises:
        ModelError: the model cannot be opened. ConfigError: --columns and --roles that make no grid.
            WorkError: no triptychs, or embeddings of another model in the folder.
    """
    from triptych.data.embeddings import INDEX, REJECTS
    from triptych.data.shards import Packer, Shards

    backbone = PerWorker(_backbone, config)
    encoders = backbone()
    usual = Grid(DEFAULT.roles, DEFAULT.columns)
    grid, stride = _grid(config, usual), encoders.settings.stride
    sources, rejects = TriptychFolder(config.triptych_folder).sources(stride, grid, usual)
    if knows := encoders.settings.knows:
        check_pictures(knows, _panels(sources), "model", config.model, config.anyway)
    length = config.max_sequence_length or encoders.settings.max_sequence_length
    made_by = MadeBy(encoders.encoder_fingerprint, str(encoders.dtype))
    folder = StageFolder(
        config.embedding_folder / encoders.name,
        "embed",
        {"model": made_by.model, "max_sequence_length": length},
    )
    summary: dict[str, Any] = {
        "triptychs": len(sources),
        "embedded": 0,
        "kept": 0,
        "rejected": len(rejects),
        "captions_cut": 0,
        "layouts_guessed": sum(source.layout_by == "guess" for source in sources),
        "captions_unreadable": warn_of_unknown_words(config.model, {one.id: one.caption for one in sources}),
        "folder": str(folder.path),
    }
    _warn_of_guesses(sources)

    def work() -> Iterator[Event]:
        for row in list(rejects):
            yield Event(row["id"], "rejected", row["reason"])
        apart = encoders.family.references
        packer = Packer(folder.path, int(config.shard_gib * 2**30)) if config.shard_gib else None
        shards = Shards(folder.path)
        book = Book(folder.path, made_by, rejects, summary, shards, packer)
        found = todo(sources, shards, made_by, config.batch_size, apart)
        for source, changed in found.kept:
            yield keep(book, source, changed)
        for encoded in execute(make_texts, found.texts, PerWorker(TextTools, backbone, length), on=config.on):
            record_texts(book, encoded)
        for several in execute(make_latents, found.pictures, PerWorker(PictureTools, backbone), on=config.on):
            for latents in several:
                yield record_latents(book, latents)
        if packer is not None:
            packer.close()
        write_jsonl(folder.path / REJECTS, rejects)
        rejected = {row["id"] for row in rejects}
        write_json(folder.path / INDEX, [source.id for source in sources if source.id not in rejected])

    return Run("embed", len(sources) + len(rejects), held(folder, work), summary)


# --- todo


class MadeBy(NamedTuple):
    """The model whose encoders compute the embeddings (by fingerprint), and their precision."""

    model: str
    dtype: str


@dataclass(frozen=True)
class Captions:
    """Captions to encode, and others with existing embeddings, of which only the length is checked."""

    encode: tuple[str, ...] = ()
    there: tuple[str, ...] = ()


class Todo(NamedTuple):
    """The batches to encode, and the triptychs whose records are kept, each with a flag: its panels or its
    item are described differently now.
    """

    texts: list[Captions]
    pictures: list[tuple[Source, ...]]
    kept: list[tuple[Source, bool]]


def todo(
    sources: Sequence[Source], shards: Shards, made_by: MadeBy, batch_size: int, apart: bool = False
) -> Todo:
    """Compare the triptychs with their records. The empty prompt is encoded with the first captions, or alone
    if only it is missing. apart: the panels are encoded one by one, so that latents depend on their grid.
    """
    from triptych.data.embeddings import EMPTY, read_about, text_path

    folder = shards.folder
    stale, kept, there = list[Source](), list[tuple[Source, bool]](), set[str]()
    for number, source in enumerate(sources):
        progress.doing("looking at what is embedded", number, len(sources))
        record = folder / f"{source.id}.safetensors"
        about = read_about(record, shards) or {}
        text = read_about(text_path(record, source.caption_sha256), shards) or {}
        if _is_by(text, made_by):
            there.add(source.caption)
        hashes = (source.image_sha256, source.caption_sha256)
        same = hashes == (about.get("image_sha256"), about.get("caption_sha256"))
        same = same and (not apart or _grid_of(about.get("layout")) == _grid_of(source.layout.to_dict()))
        if same and _is_by(about, made_by) and _is_by(text, made_by):
            kept.append(
                (source, any(about.get(name) != value for name, value in _facts(source, about).items()))
            )
        else:
            stale.append(source)
    captions = list(dict.fromkeys(source.caption for source in stale))
    texts = [
        Captions(
            tuple(one for one in captions[start : start + CAPTIONS] if one not in there),
            tuple(one for one in captions[start : start + CAPTIONS] if one in there),
        )
        for start in range(0, len(captions), CAPTIONS)
    ]
    if not texts and read_about(folder / f"{EMPTY}.safetensors", shards) is None:
        texts = [Captions()]
    return Todo(texts, _batches(stale, batch_size), kept)


def _is_by(about: dict[str, Any], made_by: MadeBy) -> bool:
    return (about.get("model"), about.get("dtype")) == made_by


def _grid_of(layout: Any) -> tuple[Any, ...]:
    """Size, number and columns of the panels in a stored layout."""
    return (layout["width"], layout["height"], len(layout["roles"]), layout["columns"]) if layout else ()


def _facts(source: Source, about: dict[str, Any]) -> dict[str, Any]:
    facts = {"layout": source.layout.to_dict(), "layout_by": source.layout_by, "item": source.item}
    return facts | ({"markers": [*source.markers]} if source.markers or "markers" in about else {})


def _batches(sources: Sequence[Source], size: int) -> list[tuple[Source, ...]]:
    """Batches of pictures with equal layouts."""
    batches = []
    for start in range(0, len(sources), CHUNK):
        by_layout: dict[PanelLayout, list[Source]] = {}
        for source in sources[start : start + CHUNK]:
            by_layout.setdefault(source.layout, []).append(source)
        for alike in by_layout.values():
            batches += [tuple(alike[first : first + size]) for first in range(0, len(alike), size)]
    return batches


# --- make


def _backbone(config: EmbedConfig) -> Backbone:
    from triptych.backbones.registry import load_backbone

    return load_backbone(config.model, config.device, config.dtype)


class TextTools:
    """The tools of a worker that encodes captions: the text encoder."""

    def __init__(self, backbone: PerWorker[Backbone], length: int) -> None:
        progress.doing("loading the text encoder")
        self.encoder, self.length = backbone().load_text_encoder(), length


class PictureTools:
    """The tools of a worker that encodes pictures: the autoencoder."""

    def __init__(self, backbone: PerWorker[Backbone]) -> None:
        import torch

        from triptych.compute.devices import give_back

        give_back(backbone().device)  # what the text encoder has taken
        progress.doing("encoding pictures")
        self.autoencoder = replace(backbone(), dtype=torch.float32).load_autoencoder()
        self.family = backbone().family


@dataclass(frozen=True)
class Encoded:
    """Text embeddings by caption, including the empty one, and the number of captions that are too long."""

    texts: dict[str, Text]
    cut: int


def make_texts(captions: Captions, tools: TextTools) -> Encoded:
    """Encode captions."""
    from triptych.sampling.prompts import encode_texts

    texts = encode_texts(tools.encoder, captions.encode, tools.length)
    lengths = [tools.encoder.count_tokens(one) for one in (*captions.encode, *captions.there)]
    return Encoded(texts, sum(length > tools.length for length in lengths))


@dataclass(frozen=True)
class Latents:
    """Mean and standard deviation of a triptych's latents, both (C, H, W); or the reason why its picture
    cannot be read.
    """

    source: Source
    mean_CHW: Tensor | None = None
    std_CHW: Tensor | None = None
    reason: str = ""


def make_latents(sources: Sequence[Source], tools: PictureTools) -> list[Latents]:
    """Encode the pictures of a batch, all of one layout; unreadable ones come first in the result."""
    from triptych.sampling.canvas import encode_canvases

    images: dict[Source, Image.Image] = {}
    made: list[Latents] = []
    for source in sources:
        try:
            images[source] = load_image(source.image)
        except TriptychError as error:
            made.append(Latents(source, reason=error.message))
    if images:
        mean_BCHW, std_BCHW = encode_canvases(
            tools.autoencoder, tools.family, list(images.values()), sources[0].layout
        )
        # Clones, because a row of a batch would take the whole batch with it to another process.
        made += [
            Latents(source, mean_BCHW[row].cpu().clone(), std_BCHW[row].cpu().clone())
            for row, source in enumerate(images)
        ]
    return made


# --- record


@dataclass(frozen=True)
class Book:
    """The targets of the `record` functions: the folder of embeddings, the rejects and the counts. shards: as
    they were at the beginning. packer: if what is written is to be packed.
    """

    folder: Path
    made_by: MadeBy
    rejects: list[dict[str, Any]]
    summary: dict[str, Any]
    shards: Shards
    packer: Packer | None = None

    def path(self, source: Source) -> Path:
        return self.folder / f"{source.id}.safetensors"

    def written(self, path: Path) -> None:
        if self.packer is not None:
            self.packer.add(path)


def keep(book: Book, source: Source, changed: bool) -> Event:
    """Keep a record, and update it if the triptych's description has changed."""
    from triptych.data.embeddings import load_record, save_latents

    path = book.path(source)
    if changed:  # `todo` has made sure that the latents do not depend on what has changed
        said = {name: getattr(source, name) for name in ("layout", "layout_by", "item", "markers")}
        save_latents(replace(load_record(path, book.shards), **said), path)
        book.written(path)
    book.summary["kept"] += 1
    return Event(source.id, "kept", result=path)


def record_texts(book: Book, encoded: Encoded) -> None:
    """Save text embeddings, each in the file of its caption."""
    from triptych.data.embeddings import EMPTY, save_text, text_path

    for caption, text in encoded.texts.items():
        path = book.folder / f"{EMPTY}.safetensors"
        if caption:
            path = text_path(path, hashlib.sha256(caption.encode()).hexdigest())
        save_text(text, book.made_by.model, path, book.made_by.dtype)
        book.written(path)
    book.summary["captions_cut"] += encoded.cut


def record_latents(book: Book, latents: Latents) -> Event:
    """Save the record of a triptych, or note why there is none."""
    from triptych.data.embeddings import EmbeddingRecord, save_latents

    source = latents.source
    if latents.mean_CHW is None or latents.std_CHW is None:
        book.rejects.append(reject(source.image, source.caption, latents.reason))
        book.summary["rejected"] += 1
        return Event(source.id, "rejected", latents.reason)
    record = EmbeddingRecord(
        id=source.id,
        latent_mean_CHW=latents.mean_CHW,
        latent_std_CHW=latents.std_CHW,
        text={},
        layout=source.layout,
        image_sha256=source.image_sha256,
        caption_sha256=source.caption_sha256,
        model=book.made_by.model,
        dtype=book.made_by.dtype,
        layout_by=source.layout_by,
        item=source.item,
        markers=source.markers,
    )
    save_latents(record, book.path(source))
    book.written(book.path(source))
    book.summary["embedded"] += 1
    return Event(source.id, result=book.path(source))


# --- Checks at the call


def _grid(config: EmbedConfig, usual: Grid) -> Grid | None:
    try:
        return grid_of(config.columns, config.roles, usual)
    except ValueError as error:
        raise ConfigError(
            f"--columns and --roles make no layout: {error}.",
            "Say for instance --columns 1 --roles front --roles back --roles worn.",
        ) from error


def _panels(sources: Sequence[Source]) -> Iterator[tuple[str, Image.Image]]:
    """The panels of all readable triptychs, each with its file's name."""
    for source in sources:
        with contextlib.suppress(InputError):  # its own turn rejects it
            yield from (
                (source.image.name, panel) for panel in split(load_image(source.image), source.layout)
            )


def _warn_of_guesses(sources: Sequence[Source]) -> None:
    if guessed := [source.image.name for source in sources if source.layout_by == "guess"]:
        log.warning(
            "Of %d of %d pictures (%s …) it is only guessed that they are three panels in a row; pairs and "
            "wide photos look alike. Say it with --columns 3, or in metadata.jsonl.",
            len(guessed),
            len(sources),
            guessed[0],
        )
