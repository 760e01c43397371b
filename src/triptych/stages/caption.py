"""caption: a vision-language model checks the order of the panels, then describes them; your own `<id>.txt` files go first.

    triptychs/<id>.txt        the caption, in the house format of `captions.py`
    triptychs/metadata.jsonl  `text` and `caption_by` are filled in
    triptychs/caption.jsonl   journal: every answer of the model, every caption written, every triptych rejected
    <fail_path>/              triptychs that failed, each with <id>.reason.json

An answer is in the journal before it is used, so a run that was stopped never asks (and never pays) for it again.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from triptych import progress
from triptych.answers import Answers, Journal
from triptych.backbones.settings import model_settings
from triptych.captioners import load_captioner, no_captioner
from triptych.captions import normalise
from triptych.config import StageConfig
from triptych.describe import linter, usable_caption
from triptych.errors import ConfigError, InputError, ModelError, TriptychError, WorkError
from triptych.images import load_image
from triptych.pairing import earlier_pictures
from triptych.questions import CHECK_PROMPT, AnswerError, Captioner, quote
from triptych.server_replies import check_url
from triptych.store import Event, Run, StageFolder, held, read_jsonl, read_text, sha256_file, write_json, write_jsonl, write_text
from triptych.text_files import CAPTION_BYTES

WARNINGS_SHOWN = 20


class CaptionConfig(StageConfig):
    vlm_model: str = ""
    """Who looks at the triptychs: a model on a server such as gpt-4.1-mini (its key is read from OPENAI_API_KEY), the folder
    of a transformers model, `local:NAME` for one of the hub, or `pocket`, which only knows rendered clothes."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama …), such as http://127.0.0.1:8000/v1; with it
    vlm_model is the name of a model on that server. Without it, OpenAI's own."""
    do_check: bool = True
    """Ask first whether the panels are garment, garment, person. Triptychs with a caption of your own are not checked."""
    fail_path: Path | None = None
    """Where triptychs go that failed the check or could not be described, if not to WORK/failed."""
    captions: Path | None = None
    """Folder with captions of your own, named for the triptych (<id>.txt) or for its item (item1.txt); they are copied
    beside the triptychs, and no model is asked for those."""
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
    """How often a busy or failing server is tried before the run stops."""
    timeout: float = Field(default=120, gt=0)
    """Seconds a server may take for one answer."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Questions a server gets at the same time."""

    @property
    def fail_folder(self) -> Path:
        return self.fail_path or self.work / "failed"


@dataclass(frozen=True)
class Job:
    """One triptych and its row in metadata.jsonl (empty for a picture that `concat` did not make)."""

    picture: Path
    row: dict[str, Any]

    @property
    def id(self) -> str:
        return self.picture.stem

    @property
    def text_file(self) -> Path:
        return self.picture.with_suffix(".txt")

    @property
    def roles(self) -> list[str]:
        return list((self.row.get("layout") or {}).get("roles") or ("front", "back", "worn"))


class Rejected(Exception):
    """A triptych that failed: `step` is check or caption, the message says why."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(reason)
        self.step = step


def caption(config: CaptionConfig) -> Run:
    """Write `<id>.txt` for every triptych that has none; move those that fail the check to `fail_path`.

    Captions that are there already, yours or from an earlier run, are never overwritten and need no captioner; the one
    exception is a caption of ours whose picture `concat` has made anew. The rest is asked for, check first.

    Raises:
        WorkError: no triptychs. ModelError: the captioner cannot be loaded; while iterating: its server is down.
        ConfigError: an address or folder that cannot be meant.
    """
    folder = StageFolder(config.triptych_folder, "caption", {})  # captions of several models may lie side by side
    if config.fail_folder.resolve() == folder.path.resolve():
        raise ConfigError("fail_path is the folder of the triptychs.", "Choose another folder, or leave fail_path out.")
    check_url(config.base_url)
    jobs = _jobs(folder.path)
    problems = linter(config.model, _limit(config), config.brands)

    @functools.cache
    def captioner() -> Captioner:
        return load_captioner(config.vlm_model, config.base_url, timeout=config.timeout, attempts=config.attempts)

    brought = _brought(config.captions, jobs)
    if not all(job.text_file.exists() or job.id in brought for job in jobs):
        captioner()
    summary: dict[str, Any] = {"triptychs": len(jobs), "captioned": 0, "kept": 0, "brought": 0, "rejected": 0, "reasons": {}}
    summary |= {"captions_with_warnings": 0, "warnings": [], "folder": str(folder.path), "fail_path": str(config.fail_folder)}

    def work() -> Iterator[Event]:
        journal = Journal(folder.path / "caption.jsonl")
        ours = {row["id"]: row for row in journal.rows if row.get("kind") == "caption"}
        by: dict[str, str] = {}
        todo = []
        try:
            for id, text in brought.items():
                write_text(folder.path / f"{id}.txt", text)
            for job in jobs:
                state, writer = _state(job, ours.get(job.id))
                if state == "asked":
                    todo.append(job)
                    continue
                by[job.id] = writer
                summary[state] += 1
                yield Event(job.id, "kept", _warn(job, problems, summary))
            answers = Answers(journal)

            def describe(job: Job) -> tuple[str, str]:
                return _describe(job, captioner(), answers, config, problems)

            for job, sha256, result in _in_order(describe, todo, captioner, config.concurrency):
                if _state(job, ours.get(job.id))[0] != "asked":  # the user brought one meanwhile
                    summary["brought"] += 1
                    yield Event(job.id, "kept", _warn(job, problems, summary))
                elif isinstance(result, Rejected):
                    moved = _move(job, sha256, result, config.fail_folder, journal)
                    summary["rejected"] += 1
                    summary["reasons"][result.step] = summary["reasons"].get(result.step, 0) + 1
                    yield Event(job.id, "rejected", f"{result}; moved to {moved}")
                else:
                    # the journal knows the caption first: a file it does not know is the user's own
                    row = {"kind": "caption", "id": job.id, "image_sha256": sha256, "text_sha256": _sha256(result + "\n")}
                    journal.append(row | {"captioner": captioner().identity})
                    write_text(job.text_file, result + "\n")
                    by[job.id] = captioner().identity
                    summary["captioned"] += 1
                    yield Event(job.id)
        finally:
            _write_metadata(folder.path, jobs, by)

    return Run("caption", len(jobs), held(folder, work), summary)


def check_captioner(config: CaptionConfig) -> None:
    """Refuse, before any triptych exists, a run that will have to ask about some and has nobody to ask.

    Raises:
        ModelError: no captioner, no folder with captions, and no caption there yet.
    """
    own = config.captions is not None or any(config.triptych_folder.glob("*.txt"))
    if not own and not config.vlm_model.strip():
        raise no_captioner()


def _brought(captions: Path | None, jobs: list[Job]) -> dict[str, str]:
    """By id the captions of the user's folder for triptychs that have none yet: `<id>.txt` before `<item>.txt`."""
    if captions is None:
        return {}
    if not captions.is_dir():
        raise InputError(f"The captions folder {captions} is missing.", "Give a folder with <id>.txt or <item>.txt files.")
    found: dict[str, str] = {}
    for job in jobs:
        files = [captions / f"{name}.txt" for name in (job.id, job.row.get("item")) if name and "/" not in name]
        file = next((file for file in files if file.is_file()), None)
        if file and not job.text_file.exists():
            found[job.id] = read_text(file, CAPTION_BYTES, "The caption")
    return found


def _jobs(folder: Path) -> list[Job]:
    pictures = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    if not pictures:
        raise WorkError(f"There are no triptychs in {folder}.", "Run `triptych concat` first, or put <id>.png files there.")
    metadata = folder / "metadata.jsonl"
    rows = {row.get("file_name"): row for row in (read_jsonl(metadata) if metadata.exists() else [])}
    return [Job(picture, rows.get(picture.name, {})) for picture in pictures]


def _limit(config: CaptionConfig) -> int:
    """The longest caption in T5 tokens."""
    return config.max_caption_tokens or model_settings(config.model).max_sequence_length


def _state(job: Job, ours: dict[str, Any] | None) -> tuple[str, str]:
    """(asked | kept | brought, who wrote the caption): what is to be done about a triptych. `ours`: its journal row."""
    if not job.text_file.exists():
        return "asked", ""
    if ours is None or sha256_file(job.text_file) != ours["text_sha256"]:
        return "brought", "user"
    if ours["image_sha256"] not in (sha256_file(job.picture), *earlier_pictures(job.picture)):
        return "asked", ""  # our caption describes a picture of other photos
    return "kept", str(ours["captioner"])


def _warn(job: Job, problems: Callable[[str, int], list[str]], summary: dict[str, Any]) -> str:
    """What is wrong with a caption that is there already; it is used all the same."""
    try:
        found = problems(read_text(job.text_file, CAPTION_BYTES, "The caption"), len(job.roles))
    except InputError as error:
        found = [str(error)]
    note = "; ".join(found)
    if note:
        summary["captions_with_warnings"] += 1
        summary["warnings"] += [f"{job.text_file.name}: {note}"] if len(summary["warnings"]) < WARNINGS_SHOWN else []
    return note


def _describe(
    job: Job, captioner: Captioner, answers: Answers, config: CaptionConfig, problems: Callable[[str, int], list[str]]
) -> tuple[str, str]:
    """(sha256 of the picture, its caption).

    Raises:
        Rejected: the order is wrong, or no usable caption came. ModelError: the captioner is out of order.
    """
    if len(job.roles) != 3:
        raise Rejected("caption", f"the captioner knows three panels, this picture has {len(job.roles)}: bring {job.text_file.name}")
    sha256 = sha256_file(job.picture)
    ask = functools.partial(answers.ask, captioner, job.id, lambda: load_image(job.picture), sha256)
    try:
        if config.do_check:
            check_order(ask(CHECK_PROMPT, config.max_new_tokens), job.roles)
    except (AnswerError, InputError) as error:
        raise Rejected("check", error.message) from error
    try:
        ask_caption = functools.partial(ask, max_new_tokens=config.max_new_tokens)
        return sha256, usable_caption(
            ask_caption, lambda text: problems(text, len(job.roles)), config.brands, _limit(config), config.retries
        )
    except (AnswerError, InputError) as error:
        raise Rejected("caption", error.message) from error


def check_order(answer: str, roles: list[str]) -> None:
    """Nothing, if the answer says that the panels are what their roles ask for.

    Raises:
        InputError: another order, or an answer that is not exactly one word per panel.
    """
    expected = ["person" if role == "worn" else "garment" for role in roles]
    seen = [word.strip() for word in answer.strip().lower().removesuffix(".").split(",")]
    if len(seen) != len(expected) or not set(seen) <= {"garment", "person"}:
        raise InputError(f"the answer to the order check cannot be read: {quote(answer)}")
    if seen != expected:
        raise InputError(f"the panels show {', '.join(seen)} instead of {', '.join(expected)}")


def _in_order(
    describe: Callable[[Job], tuple[str, str]], jobs: list[Job], captioner: Callable[[], Captioner], concurrency: int
) -> Iterator[tuple[Job, str, str | Rejected]]:
    """(job, sha256 of its picture, caption or rejection), in the order of `jobs`; servers are asked several at a time.

    However this ends, answers under way are waited for, since they are paid for and go into the journal.

    Raises:
        ModelError: the first thing that went wrong with the captioner; nothing is asked after that.
    """
    trouble: list[ModelError] = []

    def one(job: Job) -> tuple[Job, str, str | Rejected]:
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
    window: deque[Future[tuple[Job, str, str | Rejected]]] = deque()
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


def _move(job: Job, sha256: str, reason: Rejected, fail_folder: Path, journal: Journal) -> Path:
    """Move a picture to `fail_folder` beside its reason; what lies there is never overwritten, a kill loses nothing."""
    fail_folder.mkdir(parents=True, exist_ok=True)
    for number in range(10_000):
        target = fail_folder / (f"{job.id}-{number}.png" if number else job.picture.name)
        try:
            _copy_new(job.picture, target)
        except FileExistsError:
            if sha256_file(target) != sha256:
                continue  # another picture of that name; the same one is a move that was cut short
        break
    about = {"id": job.id, "step": reason.step, "reason": str(reason), "image_sha256": sha256}
    about |= {key: job.row[key] for key in ("item", "front_sha256", "back_sha256", "worn_sha256") if key in job.row}
    write_json(target.with_name(f"{target.stem}.reason.json"), about)
    journal.append({"kind": "rejected", "moved_to": str(target)} | about)
    job.text_file.unlink(missing_ok=True)  # only ever a caption of ours for an earlier picture
    job.picture.unlink()
    return target


def _copy_new(source: Path, target: Path) -> None:
    """A second name for a file, or a copy on another disk; FileExistsError when the name is taken."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        with open(source, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())


def _write_metadata(folder: Path, jobs: list[Job], by: dict[str, str]) -> None:
    """metadata.jsonl with one row for every picture in the folder, `text` from the caption beside it."""
    rows = []
    for job in jobs:
        if not job.picture.exists():
            continue
        row: dict[str, Any] = {"file_name": job.picture.name, "id": job.id} | {k: v for k, v in job.row.items() if k != "text"}
        if job.text_file.exists():
            row["text"] = normalise(job.text_file.read_text(encoding="utf-8", errors="replace"))
            row["caption_by"] = by.get(job.id, row.get("caption_by", "user"))
        rows.append(row)
    metadata = folder / "metadata.jsonl"
    try:
        unchanged = metadata.exists() and read_jsonl(metadata) == rows
    except TriptychError:
        unchanged = False
    if not unchanged:
        write_jsonl(metadata, rows)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
