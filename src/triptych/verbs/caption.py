"""caption: a vision-language model checks the order of the panels, then describes them; your own `<id>.txt`
files go first.

    triptychs/<id>.txt        the caption, in the house format of `captions.py`
    triptychs/metadata.jsonl  `text` and `caption_by` are filled in
    triptychs/caption.jsonl   journal: every answer of the model, every caption written or replaced, every
    triptych that failed or came back <fail_path>/              triptychs that failed, each with
    <id>.reason.json

An answer is in the journal before it is used, so a run that was stopped never asks (and never pays) for it
again. Pictures fail for what they show; while nothing shows that the model or its server is well, none is
moved for a reason that may be theirs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from triptych import progress
from triptych.backbones.settings import model_settings
from triptych.captioning import captioners
from triptych.captioning.answers import Answers
from triptych.captioning.brought import newer_captions, own_captions, take_caption
from triptych.captioning.captioners import load_captioner, no_captioner
from triptych.captioning.failed import COME_BACK, Rejected, bring_back, find_failed, move_away, waiting
from triptych.captioning.jobs import (
    Job,
    last_captions,
    note_own,
    own_captions_seen,
    read_jobs,
    state_of,
    write_metadata,
)
from triptych.captioning.questions import AnswerError, Captioner
from triptych.captioning.replies import check_url
from triptych.captioning.write import check_order, linter, usable_caption
from triptych.config.stage import StageConfig
from triptych.data.brands import MANY
from triptych.data.captions import UNREADABLE, read_caption
from triptych.data.triptychs import TriptychFolder
from triptych.errors import ConfigError, InputError, ModelError, WorkError, sentence_of
from triptych.events import Event, Run, held
from triptych.pictures.images import load_image
from triptych.pocket.known_worlds import check_pictures
from triptych.store.files import sha256_file, write_text
from triptych.store.folder import StageFolder
from triptych.store.journal import Journal
from triptych.wording.commands import typed

log = logging.getLogger(__name__)

WARNINGS_SHOWN = 20
STREAK = 8
"""So many pictures in a row without one usable answer are not the pictures' fault."""

Described = tuple[str, Counter[str]]
"""A caption, and how often each brand in it was replaced."""


class CaptionConfig(StageConfig):
    vlm_model: str = ""
    """Who looks at the triptychs: a model on a server such as gpt-4.1-mini (its key is read from
    OPENAI_API_KEY), the folder of a transformers model, `local:NAME` for one of the hub, or `pocket`, which
    only knows rendered clothes.
    """
    base_url: str | None = None
    """Address of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama …), such as
    http://127.0.0.1:8000/v1; with it vlm_model is the name of a model on that server. Without it, or empty,
    OpenAI's own.
    """
    do_check: bool = True
    """Ask first whether the panels are garment, garment, person. Triptychs with a caption of your own are not
    checked.
    """
    fail_path: Path | None = None
    """Where triptychs go that failed the check or could not be described, if not to WORK/failed."""
    retry_failed: bool = False
    """Bring the pictures back that failed before, and ask about them anew."""
    captions: Path | None = None
    """Folder with captions of your own, named for the triptych (<id>.txt) or for its item (item1.txt); they
    are copied beside the triptychs, and no model is asked for those. New and changed files win over earlier
    captions and failed checks.
    """
    brands: list[str] = []
    """Names of brands and makers; every caption says Brand in angle brackets instead."""
    model: str = ""
    """The diffusion model to be trained; its text encoder limits how long a caption may be."""
    max_caption_tokens: int | None = Field(default=None, ge=8, le=512)
    """Longest caption in T5 tokens; by default what the model reads."""
    max_new_tokens: int = Field(default=600, ge=16)
    """Longest answer in tokens of the vision-language model; raise it for models that think aloud first."""
    retries: int = Field(default=2, ge=0, le=10)
    """How often a caption that cannot be used is asked for again, with the reason."""
    attempts: int = Field(default=5, ge=1, le=20)
    """How often a busy or failing server is tried before the run stops, or, if it fails at one picture only,
    that picture fails.
    """
    timeout: float = Field(default=120, gt=0)
    """Seconds a server may take for one answer."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Questions a server gets at the same time."""
    anyway: bool = False
    """Show the captioner photographs even if it says that it has never seen any, as `pocket` does; with a
    warning.
    """

    @property
    def fail_folder(self) -> Path:
        return self.fail_path or self.work / "failed"


def caption(config: CaptionConfig) -> Run:
    """Write `<id>.txt` for every triptych that has none; move those that fail the check to `fail_path`.

    Captions that are there already, yours or from an earlier run, need no captioner and are only replaced by
    newer ones of yours; the one exception is a caption of ours whose picture was made anew from other photos.
    The rest is asked for, check first.

    Raises:
        WorkError: no triptychs. ModelError: the captioner cannot be loaded or does not answer; while
            iterating: its server
        is down, or none of its answers is usable. ConfigError: an address or folder that cannot be meant.
        InputError: a folder of captions that is missing, or has none for any of these triptychs.
    """
    folder = StageFolder(
        config.triptych_folder, "caption", {}
    )  # captions of several models may lie side by side
    if config.fail_folder.resolve() == folder.path.resolve():
        raise ConfigError(
            "fail_path is the folder of the triptychs.", "Choose another folder, or leave fail_path out."
        )
    if config.fail_folder.exists() and not config.fail_folder.is_dir():
        raise ConfigError(
            f"fail_path {config.fail_folder} is no folder.", "Choose another folder, or leave fail_path out."
        )
    check_url(config.base_url)
    there_now = TriptychFolder(folder.path)
    known = there_now.journal_rows()
    here = read_jobs(there_now)
    failed, left = (
        find_failed(config.fail_folder, folder.path, known)
        if config.retry_failed or config.captions
        else ([], [])
    )
    own = own_captions(config.captions, folder.path, [*here, *(one.job for one in failed)])
    returning = [one for one in failed if config.retry_failed or one.job.id in own.texts]
    there = {job.id for job in here}
    jobs = sorted(
        [*here, *(one.job for one in returning if one.job.id not in there)], key=lambda job: job.picture
    )
    if not jobs:
        raise _no_triptychs(folder.path, config.fail_folder)
    limit = config.max_caption_tokens or model_settings(config.model).max_sequence_length
    problems = linter(config.model, limit, config.brands)
    ours = last_captions(known)
    told = {
        job.id: job.told_caption + "\n" for job in jobs if job.told_caption and not job.text_file.exists()
    }
    texts = told | newer_captions(own, jobs, known)
    left_out = there_now.left_out()
    summary: dict[str, Any] = {
        "triptychs": len(jobs),
        "captioned": 0,
        "kept": 0,
        "brought": 0,
        "rejected": 0,
        "reasons": {},
    }
    summary |= {
        "still_failed": 0,
        "returned": len(returning),
        "not_returned": left if config.retry_failed else [],
    }
    summary |= {"left_out": [f"{file.name}: {reason}" for file, reason in left_out]}
    summary |= {
        "captions_without_triptych": own.unmatched,
        "captions_with_warnings": 0,
        "captions_unreadable": 0,
        "warnings": [],
    }
    summary |= {"brands_replaced": {}, "folder": str(folder.path), "fail_path": str(config.fail_folder)}

    @functools.cache
    def captioner() -> Captioner:
        return load_captioner(
            config.vlm_model, config.base_url, timeout=config.timeout, attempts=config.attempts
        )

    if any(job.id not in texts and state_of(job, ours.get(job.id))[0] == "asked" for job in jobs):
        captioner().check()

    def work() -> Iterator[Event]:
        journal = there_now.journal()
        by: dict[str, str] = {}
        todo = []
        try:
            for one in returning:
                bring_back(one, journal)
            for file, reason in left_out:
                yield Event(file.name, "rejected", f"{reason}; it stays where it is")
            for job in (job for job in jobs if job.id in texts):
                take_caption(
                    job.text_file,
                    texts[job.id],
                    own.texts[job.id][0] if job.id in own.texts else texts[job.id],
                    journal,
                )
            ours, seen = last_captions(journal.rows), own_captions_seen(journal.rows)
            for job in jobs:
                state, writer = state_of(job, ours.get(job.id))
                if state == "asked":
                    todo.append(job)
                    continue
                by[job.id] = writer
                new, changed = note_own(job, seen.get(job.id), journal) if state == "brought" else (False, "")
                summary["brought" if new else "kept"] += 1
                yield Event(job.id, "kept", _warn(job, problems, summary, changed))
            yield from ask(todo, journal, by)
        finally:
            write_metadata(folder.path, jobs, by)
            summary["still_failed"] = max(0, waiting(config.fail_folder) - summary["rejected"])
            if summary["still_failed"]:
                summary["bring_back_with"] = COME_BACK
        if not summary["captioned"] + summary["kept"] + summary["brought"]:
            run.failed = summary["rejected"]

    def ask(todo: list[Job], journal: Journal, by: dict[str, str]) -> Iterator[Event]:
        """Check and caption; pictures that may have failed through the captioner stay until it has proved to
        be well.
        """
        if todo and captioner().knows:
            check_pictures(captioner().knows, _panels(todo), "captioner", config.vlm_model, config.anyway)
        answers, ours = Answers(journal), last_captions(journal.rows)
        waiting: list[tuple[Job, str, Rejected]] = []

        def describe(job: Job) -> tuple[str, Described]:
            return _describe(job, captioner(), answers, config, problems, limit)

        def fail(job: Job, sha256: str, reason: Rejected) -> Event:
            moved = move_away(job, sha256, reason, config.fail_folder, journal)
            summary["rejected"] += 1
            summary["bring_back_with"] = typed(COME_BACK)
            summary["reasons"][reason.step] = summary["reasons"].get(reason.step, 0) + 1
            return Event(job.id, "rejected", f"{reason}; moved to {moved}")

        for job, sha256, result in _in_order(describe, _spread(todo), captioner, config.concurrency):
            if state_of(job, ours.get(job.id))[0] != "asked":  # the user brought one meanwhile
                summary["brought"] += 1
                note_own(job, None, journal)
                yield Event(job.id, "kept", _warn(job, problems, summary))
            elif not isinstance(result, Rejected):
                for one in waiting:
                    yield fail(*one)
                waiting.clear()
                text, replaced = result
                # the journal knows the caption first: a file it does not know is the user's own
                row = {
                    "kind": "caption",
                    "id": job.id,
                    "image_sha256": sha256,
                    "text_sha256": _sha256(text + "\n"),
                }
                journal.append(row | {"captioner": captioner().identity})
                write_text(job.text_file, text + "\n")
                by[job.id] = captioner().identity
                summary["captioned"] += 1
                _count_brands(job, replaced, summary)
                yield Event(job.id)
            elif result.fault == "picture" or (result.fault == "policy" and summary["captioned"]):
                yield fail(job, sha256, result)
            else:
                waiting.append((job, sha256, result))
                if len(waiting) >= STREAK:
                    break
        well = (
            summary["captioned"] or any(row.get("captioner") == captioner().identity for row in ours.values())
            if waiting
            else True
        )
        if not well or len(waiting) >= STREAK:
            raise _captioner_at_fault(
                [reason for _, _, reason in waiting], config, bool(summary["captioned"])
            )
        for one in waiting:
            yield fail(*one)

    run = Run("caption", len(jobs) + len(left_out), held(folder, work), summary)
    return run


def _panels(jobs: list[Job]) -> Iterator[tuple[str, Image.Image]]:
    """The panels of all triptychs that can be opened, each with its file's name."""
    for job in jobs:
        with contextlib.suppress(InputError):  # it is rejected when its turn comes
            canvas, columns = load_image(job.picture), max(1, len(job.roles))
            for number in range(columns):
                box = (
                    number * canvas.width // columns,
                    0,
                    (number + 1) * canvas.width // columns,
                    canvas.height,
                )
                yield job.picture.name, canvas.crop(box)


def check_captioner(config: CaptionConfig) -> None:
    """Refuse, before any triptych exists, a run that will have to ask about some and has nobody to ask.

    A server is asked one free question. With captions of your own and no captioner named, none is needed.

    Raises:
        ModelError, ConfigError: no captioner, no folder with captions, and no caption there yet; or see
            `captioners.check_captioner`.
    """
    own = config.captions is not None or TriptychFolder(config.triptych_folder).has_captions()
    if not own and not config.vlm_model.strip():
        raise no_captioner()
    if config.vlm_model.strip():
        captioners.check_captioner(config.vlm_model, config.base_url, timeout=config.timeout)


def _no_triptychs(folder: Path, fail_folder: Path) -> WorkError:
    if number := waiting(fail_folder):
        hint = f"{number} failed before and lie in {fail_folder}: `{COME_BACK}` brings them back."
        return WorkError(f"There are no triptychs in {folder}.", hint)
    return TriptychFolder(folder).nothing_here("Run `triptych concat` first, or put <id>.png files there.")


def _warn(
    job: Job, problems: Callable[[str, int], list[str]], summary: dict[str, Any], changed: str = ""
) -> str:
    """What is wrong with a caption that is there already; it is used all the same."""
    try:
        found = problems(read_caption(job.text_file), len(job.roles))
    except InputError as error:
        found = [str(error)]
    note = "; ".join([changed] * bool(changed) + found)
    if note:
        summary["captions_with_warnings"] += 1
        summary["captions_unreadable"] += UNREADABLE in found
        _add_warning(summary, f"{job.text_file.name}: {note}")
    return note


def _add_warning(summary: dict[str, Any], warning: str) -> None:
    summary["warnings"] += [warning] if len(summary["warnings"]) < WARNINGS_SHOWN else []


def _count_brands(job: Job, replaced: Counter[str], summary: dict[str, Any]) -> None:
    for name, number in replaced.items():
        summary["brands_replaced"][name] = summary["brands_replaced"].get(name, 0) + number
        if number > MANY:
            warning = (
                f"{job.text_file.name}: the brand {name} was replaced {number} times; is it also a "
                "common word?"
            )
            _add_warning(summary, warning)


def _describe(
    job: Job,
    captioner: Captioner,
    answers: Answers,
    config: CaptionConfig,
    problems: Callable[..., list[str]],
    limit: int,
) -> tuple[str, Described]:
    """(sha256 of the picture, its caption).

    Raises:
        Rejected: the order is wrong, or no usable caption came. ModelError: the captioner is out of order.
    """
    if len(job.roles) != 3:
        raise Rejected(
            "caption",
            f"the captioner knows three panels, this picture has {len(job.roles)}: "
            f"bring {job.text_file.name}",
        )
    sha256 = sha256_file(job.picture)
    ask = answers.dialogue(captioner, job.id, lambda: load_image(job.picture), sha256, config.max_new_tokens)
    while True:
        step = "check"
        try:
            if config.do_check:
                check_order(ask, job.roles)
            step = "caption"
            return sha256, usable_caption(
                ask, functools.partial(problems, panels=3), config.brands, limit, config.retries
            )
        except InputError as error:
            raise Rejected(step, sentence_of(error)) from error
        except AnswerError as error:
            if not ask.forget():  # nothing of an earlier run was of use: it may have been mended since
                raise Rejected(step, error.message, error.fault, error.hint) from error


def _captioner_at_fault(reasons: Sequence[Rejected], config: CaptionConfig, worked: bool) -> ModelError:
    """The end of a run whose captioner is of no use."""
    reason = Counter(str(reason) for reason in reasons).most_common(1)[0][0]
    first = next(one for one in reasons if str(one) == reason)
    which = (
        f"the last {len(reasons)} pictures"
        if worked
        else f"any of the {len(reasons)} pictures it was asked about"
    )
    if len(reasons) == 1 and not worked:
        which = "the one picture it was asked about"
    hints = {
        "policy": "Use another --vlm-model, or bring captions of your own with --captions.",
        "server": "Check vlm_model and base_url, and that this model can see pictures.",
        "model": "Use a --vlm-model that sees pictures and follows instructions, or bring captions of your "
        "own with --captions.",
    }
    return ModelError(
        f"The captioner {config.vlm_model} gave no usable answer about {which}, so none of them was moved: "
        f"{reason}.",
        first.hint or hints.get(first.fault, hints["model"]),
    )


def _spread(jobs: list[Job]) -> list[Job]:
    """The jobs, so that the first few are from all over the set: alike pictures, which lie together, may fail
    alike.
    """
    if len(jobs) <= STREAK:
        return jobs
    first, rest = jobs[: STREAK // 2], jobs[STREAK // 2 :]
    chosen = [rest[(2 * number + 1) * len(rest) // STREAK] for number in range(STREAK // 2)]
    return [*first, *chosen, *(job for job in rest if job not in chosen)]


def _in_order(
    describe: Callable[[Job], tuple[str, Described]],
    jobs: list[Job],
    captioner: Callable[[], Captioner],
    concurrency: int,
) -> Iterator[tuple[Job, str, Described | Rejected]]:
    """(job, sha256 of its picture, caption or rejection), in the order of `jobs`; servers are asked several
    at a time.

    However this ends, answers under way are waited for, since they are paid for and go into the journal.

    Raises:
        ModelError: the first thing that went wrong with the captioner; nothing is asked after that.
    """
    trouble: list[ModelError] = []

    def one(job: Job) -> tuple[Job, str, Described | Rejected]:
        try:
            return job, *describe(job)
        except Rejected as reason:
            return job, sha256_file(job.picture), reason
        except ModelError as error:
            trouble.append(error)
            captioner().close()  # the other threads stop as well
            raise trouble[0] from None

    if not jobs:
        return
    if not captioner().concurrent:
        for job in jobs:
            progress.doing("looking at the panels")
            yield one(job)
        return
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="caption")
    window: deque[Future[tuple[Job, str, Described | Rejected]]] = deque()
    try:
        for job in jobs:
            window.append(pool.submit(one, job))
            if len(window) >= 2 * concurrency:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        captioner().close()
        pool.shutdown(wait=True, cancel_futures=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
