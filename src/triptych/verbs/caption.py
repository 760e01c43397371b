"""caption: a vision-language model checks the order of the panels, then describes them; your own `<id>.txt`
files take precedence.

    triptychs/<id>.txt        the caption, in the house format of `captions.py`
    triptychs/metadata.jsonl  `text` and `caption_by` are filled in
        triptychs/caption.jsonl   journal: every answer of the model, every caption written or replaced, every
                                  triptych that failed or was moved back
        <fail_path>/              failed triptychs, each with <id>.reason.json

An answer is in the journal before it is used, so a stopped run never asks (and pays) for it again. Pictures
fail because of their content; until the model or its server is known to work, no picture is moved for a
reason that may be theirs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from triptych import progress
from triptych.backbones.settings import model_settings
from triptych.captioning import captioners, prices
from triptych.captioning.answers import Answers
from triptych.captioning.brought import take_caption
from triptych.captioning.captioners import check_upload, far_server, load_captioner, no_captioner
from triptych.captioning.doubt import Described, proven, spread
from triptych.captioning.failed import COME_BACK, Rejected, bring_back, move_away, waiting
from triptych.captioning.jobs import (
    Job,
    last_captions,
    note_own,
    own_captions_seen,
    state_of,
    write_metadata,
)
from triptych.captioning.questions import AnswerError, Captioner, questions_about
from triptych.captioning.remarks import Remarks
from triptych.captioning.replies import check_url
from triptych.captioning.stock import Stock, take_stock
from triptych.captioning.write import check_order, linter, usable_caption
from triptych.data.captions import with_markers
from triptych.data.triptychs import TriptychFolder
from triptych.errors import ConfigError, InputError, WorkError, sentence_of
from triptych.events import Event, Run, held
from triptych.execution import PerWorker, execute
from triptych.pictures.images import load_image
from triptych.pictures.panels import equal_boxes
from triptych.pocket.known_worlds import check_pictures
from triptych.store.files import sha256_file, write_text
from triptych.store.folder import StageFolder
from triptych.store.journal import Journal
from triptych.verbs.caption_config import CaptionConfig
from triptych.verbs.caption_estimate import estimate
from triptych.wording.commands import typed


def caption(config: CaptionConfig) -> Run:
    """Write `<id>.txt` for every triptych without one; move those that fail the check to `fail_path`.

    Existing captions, yours or from an earlier run, need no captioner; only newer captions of yours replace
    them. There is one exception: a caption of ours whose picture was remade from other photos. For all other
    triptychs the captioner is asked, first for the check.

    Raises:
        WorkError: no triptychs. ModelError: the captioner cannot be loaded or does not answer; during the
            run: its server is down, or none of its answers is usable. ConfigError: an invalid address or
            folder. InputError: the folder of captions is missing, or has no caption for any of these
            triptychs.
    """
    folder = TriptychFolder(config.triptych_folder)
    stage = StageFolder(folder.path, "caption", {})  # captions of several models may be in one folder
    _check(config)
    stock = take_stock(folder, config.fail_folder, config.captions, config.retry_failed)
    if not stock.jobs:
        raise _no_triptychs(folder, config.fail_folder)
    limit = config.max_caption_tokens or model_settings(config.model).max_sequence_length
    if config.estimate:
        return estimate(config, folder, stock)
    captioner = PerWorker(_captioner, config)
    if stock.asks:
        loaded = captioner()
        check_upload(config.vlm_model, config.base_url, config.allow_upload)
        loaded.check()
    summary = _summary(config, stock)

    def work() -> Iterator[Event]:
        book = Book(config, limit, folder.journal(), summary)
        try:
            for one in stock.returning:
                bring_back(one, book.journal)
            for file, reason in stock.left_out:
                yield Event(file.name, "rejected", f"{reason}; it stays where it is")
            for job in stock.jobs:
                if job.id in stock.texts:
                    take_caption(job.text_file, stock.texts[job.id], stock.source(job.id), book.journal)
            found = todo(stock.jobs, book.ours)
            yield from _standing(book, found)
            if found.ask:
                yield from _ask(book, found.ask, captioner)
        finally:
            write_metadata(folder.path, stock.jobs, book.by)
            summary["still_failed"] = max(0, waiting(config.fail_folder) - summary["rejected"])
            if summary["still_failed"]:
                summary["bring_back_with"] = COME_BACK
        if not summary["captioned"] + summary["kept"] + summary["brought"]:
            run.failed = summary["rejected"]

    run = Run("caption", len(stock.jobs) + len(stock.left_out), held(stage, work), summary)
    return run


def _check(config: CaptionConfig) -> None:
    if config.fail_folder.resolve() == config.triptych_folder.resolve():
        raise ConfigError(
            "fail_path is the folder of the triptychs.", "Choose another folder, or leave fail_path out."
        )
    if config.fail_folder.exists() and not config.fail_folder.is_dir():
        raise ConfigError(
            f"fail_path {config.fail_folder} is no folder.", "Choose another folder, or leave fail_path out."
        )
    check_url(config.base_url)


def _summary(config: CaptionConfig, stock: Stock) -> dict[str, Any]:
    return {
        "triptychs": len(stock.jobs),
        "captioned": 0,
        "kept": 0,
        "brought": 0,
        "rejected": 0,
        "reasons": {},
        "still_failed": 0,
        "returned": len(stock.returning),
        "not_returned": stock.not_returned if config.retry_failed else [],
        "left_out": [f"{file.name}: {reason}" for file, reason in stock.left_out],
        "captions_without_triptych": stock.own.unmatched,
        "captions_with_warnings": 0,
        "captions_unreadable": 0,
        "warnings": [],
        "brands_replaced": {},
        "folder": str(config.triptych_folder),
        "fail_path": str(config.fail_folder),
    }


def _ask(book: Book, jobs: list[Job], captioner: PerWorker[Captioner]) -> Iterator[Event]:
    """Check and caption. A server gets several questions at a time."""
    config = book.config
    if captioner().knows:
        check_pictures(captioner().knows, _panels(jobs), "captioner", config.vlm_model, config.anyway)
    tools = PerWorker(Asking, config, book.limit, captioner, book.journal)
    threads = config.concurrency if captioner().concurrent else 0
    described = execute(make, spread(jobs), tools, threads, on=config.on)
    for one in proven(described, book.is_settled, book.ours.values(), config.vlm_model):
        yield record(book, one)


# --- todo · make · record


class Todo(NamedTuple):
    """The triptychs to ask about; and those with a caption, each with its state and the author of the
    caption.
    """

    ask: list[Job]
    there: list[tuple[Job, str, str]]


def todo(jobs: list[Job], ours: dict[str, dict[str, Any]]) -> Todo:
    """Find the triptychs without a caption. ours: by id, the journal's rows about captions of ours."""
    found = Todo([], [])
    for job in jobs:
        state, writer = state_of(job, ours.get(job.id))
        if state == "asked":
            found.ask.append(job)
        else:
            found.there.append((job, state, writer))
    return found


class Asking:
    """The tools of a worker: the captioner, its earlier answers, and the linter of captions.

    An answer is paid for, so it goes into the journal as soon as it comes.
    """

    def __init__(
        self, config: CaptionConfig, limit: int, captioner: PerWorker[Captioner], journal: Journal
    ) -> None:
        """limit: the longest caption in tokens of the text encoder."""
        self.config, self.limit = config, limit
        self.captioner, self.answers = captioner(), Answers(journal)
        self.problems: Callable[..., list[str]] = linter(config.model, limit, config.brands)

    def close(self) -> None:
        self.captioner.close()


def make(job: Job, asking: Asking) -> Described:
    """Ask about one triptych.

    Raises:
        ModelError: the captioner fails for every picture.
    """
    progress.doing("looking at the panels")
    try:
        sha256, text, replaced = _describe(job, asking)
        return Described(job, sha256, asking.captioner.identity, text, replaced)
    except Rejected as reason:
        return Described(job, sha256_file(job.picture), asking.captioner.identity, rejected=reason)


def _describe(job: Job, asking: Asking) -> tuple[str, str, Counter[str]]:
    """(sha256 of the picture, its caption, how often each brand in it was replaced).

    Raises:
        Rejected: the order is wrong, or no usable caption came. ModelError: the captioner fails for every
            picture.
    """
    questions = questions_about(job.layout)
    problems = functools.partial(asking.problems, panels=len(questions.panels))
    config, sha256 = asking.config, sha256_file(job.picture)
    ask = asking.answers.dialogue(
        asking.captioner, job.id, lambda: load_image(job.picture), sha256, config.max_new_tokens
    )
    while True:
        step = "check"
        try:
            if config.do_check:
                check_order(ask, questions)
            step = "caption"
            text, replaced = usable_caption(
                ask, questions, problems, config.brands, asking.limit, config.retries
            )
            return sha256, with_markers(text, job.markers), replaced
        except InputError as error:
            raise Rejected(step, sentence_of(error)) from error
        except AnswerError as error:
            if not ask.forget():  # no useless answer is from an earlier run, so asking again is pointless
                raise Rejected(step, error.message, error.fault, error.hint) from error


@dataclass
class Book:
    """The targets of `record`: the journal, the counts, and by id the author of each triptych's caption."""

    config: CaptionConfig
    limit: int
    journal: Journal
    summary: dict[str, Any]
    by: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def remarks(self) -> Remarks:
        return Remarks(self.summary, linter(self.config.model, self.limit, self.config.brands))

    @functools.cached_property
    def ours(self) -> dict[str, dict[str, Any]]:
        """By id, the rows about captions of ours from earlier runs."""
        return last_captions(self.journal.rows)

    def is_settled(self, job: Job) -> bool:
        """Whether the user has brought a caption since the captioner was asked."""
        return state_of(job, self.ours.get(job.id))[0] != "asked"


def record(book: Book, described: Described) -> Event:
    """Write the caption of a triptych, or move its picture away; a caption of the user's own wins."""
    job, summary = described.job, book.summary
    if book.is_settled(job):
        summary["brought"] += 1
        note_own(job, None, book.journal)
        return Event(job.id, "kept", book.remarks.of(job), result=job.text_file)
    if described.rejected is not None:
        reason = described.rejected
        moved = move_away(job, described.image_sha256, reason, book.config.fail_folder, book.journal)
        summary["rejected"] += 1
        summary["bring_back_with"] = typed(COME_BACK)
        summary["reasons"][reason.step] = summary["reasons"].get(reason.step, 0) + 1
        return Event(job.id, "rejected", f"{reason}; moved to {moved}", result=moved)
    text = described.text + "\n"
    # The journal gets the caption first: a file that it does not know is the user's own.
    row = {"kind": "caption", "id": job.id, "image_sha256": described.image_sha256}
    row["text_sha256"] = hashlib.sha256(text.encode("utf-8")).hexdigest()
    book.journal.append(row | {"captioner": described.captioner})
    write_text(job.text_file, text)
    book.by[job.id] = described.captioner
    summary["captioned"] += 1
    book.remarks.count_brands(job, described.replaced)
    return Event(job.id, result=job.text_file)


def _standing(book: Book, found: Todo) -> Iterator[Event]:
    """The events of triptychs that already have a caption."""
    seen = own_captions_seen(book.journal.rows)
    for job, state, writer in found.there:
        book.by[job.id] = writer
        new, changed = note_own(job, seen.get(job.id), book.journal) if state == "brought" else (False, "")
        book.summary["brought" if new else "kept"] += 1
        yield Event(job.id, "kept", book.remarks.of(job, changed), result=job.text_file)


# --- Captioners and pictures


def _captioner(config: CaptionConfig) -> Captioner:
    price = prices.read_price(config.vlm_model, config.prices)
    if config.max_cost is not None and price is None and far_server(config.vlm_model, config.base_url):
        raise ConfigError(
            f"--max-cost is given, and no price of {config.vlm_model} is known.",
            "Give a price file with --prices (docs/captions.md has its form), or --max-calls.",
        )
    captioner = load_captioner(
        config.vlm_model, config.base_url, timeout=config.timeout, attempts=config.attempts
    )
    if config.max_calls is None and config.max_cost is None:
        return captioner
    return prices.Capped(captioner, price, config.max_calls, config.max_cost)


def _panels(jobs: list[Job]) -> Iterator[tuple[str, Image.Image]]:
    """The panels of all readable triptychs, each with its file's name."""
    for job in jobs:
        with contextlib.suppress(InputError):  # its own turn rejects it
            canvas = load_image(job.picture)
            yield from ((job.picture.name, canvas.crop(box)) for box in equal_boxes(canvas.size, job.layout))


def check_captioner(config: CaptionConfig) -> None:
    """Refuse, before any triptych exists, a run that will need a captioner and has none.

    A server gets one free question. A run with captions of your own and no captioner passes.

    Raises:
        ModelError, ConfigError: no captioner, no folder with captions, and no caption there yet; or see
            `captioners.check_captioner`.
    """
    own = config.captions is not None or TriptychFolder(config.triptych_folder).has_captions()
    if not own and not config.vlm_model.strip():
        raise no_captioner()
    if config.vlm_model.strip():
        if config.captions is None:
            check_upload(config.vlm_model, config.base_url, config.allow_upload)
        captioners.check_captioner(config.vlm_model, config.base_url, timeout=config.timeout)


def _no_triptychs(folder: TriptychFolder, fail_folder: Path) -> WorkError:
    if number := waiting(fail_folder):
        hint = f"{number} failed before and lie in {fail_folder}: `{COME_BACK}` brings them back."
        return WorkError(f"There are no triptychs in {folder.path}.", hint)
    return folder.nothing_here("Run `triptych concat` first, or put <id>.png files there.")
