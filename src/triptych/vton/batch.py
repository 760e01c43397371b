"""Many try-ons from one CSV file, with models loaded once. Finished pictures are kept; failures are noted and
do not stop the batch.

First all lines are looked at, so that all mistakes are found and all masks are shown before the first picture
is made; then the pictures are made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from triptych.errors import InputError, ModelError, TriptychError
from triptych.events import Event, Run
from triptych.execution import PerWorker, execute
from triptych.pictures.images import OriginalPhoto
from triptych.store.files import write_text
from triptych.tasks import dressing
from triptych.vton.files import (
    SUFFIXES,
    Inputs,
    TryonConfig,
    alike,
    finished,
    read,
    sample,
    write,
)
from triptych.vton.lines import Line, read_lines, shortened
from triptych.vton.preview import Preview, preview_of, write_preview
from triptych.vton.prompt import PromptWriter
from triptych.vton.results import Result, Results, check_results, page_of

if TYPE_CHECKING:  # they import torch
    from triptych.sampling.opened import OpenedModel
    from triptych.sampling.picture import Picture

log = logging.getLogger(__name__)

EVENTS: dict[str, Literal["done", "kept", "rejected"]] = {
    "made": "done",
    "kept": "kept",
    "failed": "rejected",
}


def run_batch(config: TryonConfig, model: PerWorker[OpenedModel]) -> Run:
    """Make the pictures of the lines in `config.batch`; the folder `out` also gets results.csv and
    index.html.

    Lines with the same product are processed together. An existing picture with the same settings is kept.

    Raises:
        InputError: the file is unusable as a whole, or files that triptych did not write have the names of
            results.
        ModelError: the captioner cannot be loaded; or, during the batch, it fails for every line, or the
            model cannot be loaded.
    """
    assert config.batch
    out = config.out or config.work / "tryon"
    if not out.is_dir() and (out.exists() or out.suffix.lower() in SUFFIXES):
        raise InputError(
            f"{out} is {'a file' if out.exists() else 'the name of a picture'}.",
            "With --batch, give a folder with --out.",
        )
    if config.mask_out and (config.mask_out.is_file() or config.mask_out.suffix == ".json"):
        raise InputError(f"{config.mask_out} is a file.", "With --batch, give a folder with --mask-out.")
    check_results(out, config.batch)
    lines = read_lines(config.batch, config, out)
    here = model()
    _ = here.backbone  # an unusable device is reported now; no weights are read yet
    layout = here.layout(config.panel_width, config.panel_height)
    dressing(layout).trained(layout)
    writer = PerWorker(PromptWriter, config, out)
    writer()
    book = Book(out, lines)

    def work() -> Iterator[Event]:
        try:
            for looked in execute(look, todo(lines), PerWorker(LookTools, model, writer), on=config.on):
                yield from record_look(book, looked)
            writer.close()  # its captioner may hold memory that the model needs
            jobs = todo_pictures(book.lines, book.left, config.batch_size)
            prompts = [_config(book.lines[number]).prompt for number in book.left]
            for made in execute(make, jobs, PerWorker(PictureTools, model, prompts), on=config.on):
                for picture in made.pictures:
                    yield record(book, picture)
                if made.context_cache:
                    book.summary["context_cache"] = made.context_cache
            write_text(out / "index.html", page_of(book.lines, book.results.rows, out))
        finally:
            book.results.write()  # also if the batch is stopped

    book.run = Run(
        "tryon", sum(len(line.config.seeds) if line.config else 1 for line in lines), work(), book.summary
    )
    return book.run


# --- todo


def todo(lines: Sequence[Line]) -> list[tuple[int, Line]]:
    """The lines to look at, each with its number."""
    return list(enumerate(lines))


class Job(NamedTuple):
    """Pictures of a line to make. number: of the line."""

    number: int
    config: TryonConfig
    seeds: tuple[int, ...]


def todo_pictures(
    lines: Sequence[Line], left: Mapping[int, Sequence[int]], size: int
) -> list[tuple[Job, ...]]:
    """The pictures to make, in batches of up to `size` that can be sampled together, product by product.
    left: seeds by number of the line.
    """
    batches: list[list[tuple[int, int]]] = []
    for number in _by_likeness(lines, left):
        for seed in left[number]:
            last = batches[-1] if batches else []
            if last and len(last) < size and _alike(lines[last[0][0]]) == _alike(lines[number]):
                last.append((number, seed))
            else:
                batches.append([(number, seed)])
    return [_jobs(lines, batch) for batch in batches]


def _jobs(lines: Sequence[Line], batch: Sequence[tuple[int, int]]) -> tuple[Job, ...]:
    seeds: dict[int, list[int]] = {}
    for number, seed in batch:
        seeds.setdefault(number, []).append(seed)
    return tuple(Job(number, _config(lines[number]), tuple(own)) for number, own in seeds.items())


def _config(line: Line) -> TryonConfig:
    assert line.config is not None
    return line.config


def _alike(line: Line) -> Any:
    return alike(_config(line))


def _by_likeness(lines: Sequence[Line], numbers: Mapping[int, Any]) -> list[int]:
    """Line numbers grouped by product, and within a product by the settings that a batch shares; groups in
    the order of their first line.
    """
    products: dict[Any, int] = {}
    settings: dict[str, int] = {}

    def place(number: int) -> tuple[int, int, int]:
        line = lines[number]
        product = products.setdefault(line.product, number)
        return product, settings.setdefault(repr(_alike(line)), number), number

    return sorted(numbers, key=place)


# --- make


class LookTools:
    """The tools of a worker that looks at lines: a model, without its weights, and the captioner."""

    def __init__(self, model: PerWorker[OpenedModel], writer: PerWorker[PromptWriter]) -> None:
        self.model, self.writer = model(), writer()


@dataclass(frozen=True)
class Looked:
    """A line that was looked at: its config with the prompt, the seeds whose picture exists, and the picture
    of its mask. reason: the line's own mistake.
    """

    number: int
    line: Line
    kept: frozenset[int] = frozenset()
    preview: Preview | None = None
    reason: str = ""


def look(item: tuple[int, Line], tools: LookTools) -> Looked:
    """Look at a line before any picture is made. Its inputs are read now, and again when its turn comes.

    Raises:
        ModelError: the captioner fails, for this line and all others.
    """
    number, line = item
    config, preview = line.config, None
    if config is None:
        return Looked(number, line, reason=line.reason)
    try:
        if not config.prompt.strip():
            inputs = read(config, tools.model)  # before the captioner is asked, which may cost money
            preview = preview_of(inputs)
            limit = tools.model.settings.max_sequence_length
            config = tools.writer.fill(config, inputs.layout, limit)
        kept = finished(config, tools.model)
        if preview is None and kept != {*config.seeds}:
            preview = preview_of(read(config, tools.model))
    except ModelError:
        raise
    except Exception as error:
        return Looked(number, line, preview=preview, reason=_reason(error))
    return Looked(number, replace(line, config=config), frozenset(kept), preview)


class PictureTools:
    """The tools of a worker that makes pictures: a model with its weights, and with the prompts encoded."""

    def __init__(self, model: PerWorker[OpenedModel], prompts: Sequence[str]) -> None:
        self.model = model()
        self.model.encode(prompts)
        self.model.load()
        self.inputs: dict[int, Inputs] = {}

    def read(self, jobs: Sequence[Job]) -> list[Inputs]:
        """The inputs of a batch, by line. Those of the batch before are at hand, because it may have had the
        same ones.
        """
        inputs = {job.number: self.inputs.get(job.number) or read(job.config, self.model) for job in jobs}
        self.inputs = inputs
        return [inputs[job.number] for job in jobs]


@dataclass(frozen=True)
class MadePicture:
    """A picture of a line, with the photo whose transparency and metadata it keeps; or, in `reason`, why
    there is none. `reason` may also be a warning. mistake: sentence and hint of a failure that the user can
    mend; None for any other.
    """

    number: int
    config: TryonConfig
    seed: int
    reason: str = ""
    picture: Picture | None = None
    photo: OriginalPhoto | None = None
    mistake: tuple[str, str] | None = None


@dataclass(frozen=True)
class MadeBatch:
    """The pictures of a batch, and how often known panels were read from the cache so far."""

    pictures: list[MadePicture]
    context_cache: Any = None


def make(jobs: Sequence[Job], tools: PictureTools) -> MadeBatch:
    """Sample the pictures of a batch."""
    pictures = _sampled(jobs, tools)
    contexts = tools.model.contexts
    used = contexts.limit_bytes and contexts.misses
    return MadeBatch(pictures, contexts.summary() if used else None)


def _sampled(jobs: Sequence[Job], tools: PictureTools) -> list[MadePicture]:
    """The pictures of a batch. If it fails as a whole, they are tried one by one, so that only the faulty
    ones fail.
    """
    alone = [Job(job.number, job.config, (seed,)) for job in jobs for seed in job.seeds]
    inputs, reason, mistake = list[Inputs](), "", None
    made: list[list[Picture]] = []
    try:
        inputs = tools.read(jobs)
        made = sample([(own, job.seeds) for own, job in zip(inputs, jobs, strict=True)], tools.model)
    except Exception as error:
        reason = _reason(error) if len(alone) == 1 else "the batch"
        mistake = (error.message, error.hint) if isinstance(error, TriptychError) else None
    # Outside of `except`: the error holds all tensors of the batch, which may have been too many.
    if reason and len(alone) > 1:
        tools.model.give_back()
        return [picture for job in alone for picture in _sampled([job], tools)]
    if reason:
        ((number, config, (seed,)),) = alone
        return [MadePicture(number, config, seed, reason, mistake=mistake)]
    rows = []
    for job, own, pictures in zip(jobs, inputs, made, strict=True):
        words = [*own.warnings, tools.model.warnings.get(job.config.prompt, "")]
        warning = " ".join(filter(None, words))
        for seed, picture in zip(job.seeds, pictures, strict=True):
            rows.append(MadePicture(job.number, own.config, seed, warning, picture, own.photo))
    return rows


def _reason(error: Exception) -> str:
    if not isinstance(error, TriptychError | OSError):
        log.warning("A try-on failed: %s", error, exc_info=error)
    return shortened(f"{error}") or type(error).__name__


# --- record


class Book:
    """What the `record` functions fill: the lines with their prompts, the seeds left to make by line, the
    table of results and the counts.
    """

    run: Run

    def __init__(self, out: Path, lines: Sequence[Line]) -> None:
        self.out, self.lines, self.left = out, list(lines), dict[int, list[int]]()
        self.results = Results(out / "results.csv")
        self.summary: dict[str, Any] = {
            "made": 0,
            "kept": 0,
            "failed": 0,
            "results": str(out / "results.csv"),
            "index": str(out / "index.html"),
        }


def record_look(book: Book, looked: Looked) -> Iterator[Event]:
    """Write the picture of a line's mask; note its mistake, and pictures that are kept."""
    number, line, reason = looked.number, looked.line, looked.reason
    config = line.config
    if config is None:
        yield note(book, number, Result(line.id, None, "failed", reason=reason))
        return
    if looked.preview is not None:
        try:
            write_preview(config, looked.preview)
        except Exception as error:
            reason = reason or _reason(error)
    if reason:
        for seed in config.seeds:
            yield note(book, number, Result(line.id, seed, "failed", reason=reason))
        return
    book.lines[number] = line
    for seed in config.seeds:
        if seed in looked.kept:
            yield note(book, number, Result(line.id, seed, "kept", config.files(seed)[0].name))
    if left := [seed for seed in config.seeds if seed not in looked.kept]:
        book.left[number] = left


def record(book: Book, made: MadePicture) -> Event:
    """Write a picture, or note why there is none."""
    line, reason = book.lines[made.number], made.reason
    picture, photo = made.picture, made.photo
    if picture is not None and photo is not None:
        try:
            write(made.config, photo, made.seed, picture)
            name = made.config.files(made.seed)[0].name
            return note(book, made.number, Result(line.id, made.seed, "made", name, reason))
        except Exception as error:
            reason = _reason(error)
    return note(book, made.number, Result(line.id, made.seed, "failed", reason=reason))


def note(book: Book, number: int, result: Result) -> Event:
    """Note a line's result in the table and the counts."""
    book.results.add(number, result)
    book.summary[result.status] += 1
    book.run.failed = book.summary["failed"]
    path = book.out / result.picture if result.picture else None
    return Event(result.picture or result.id, EVENTS[result.status], result.reason, result=path)
