"""roles: asks a captioner which role a product photo has, where neither an override nor a name says it.

catalogue/roles.jsonl      every answer, with the photo and the captioner; `concat` goes by them
catalogue/roles_sheet.jpg  the photos and what was told about them, to look at

Only photos whose role matters are asked about: for try-on those of items in which front and back would be a
guess, for outfits those that nothing says the role of. Overrides and names of files and folders win.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from triptych.captioning.answers import Answers
from triptych.captioning.captioners import load_captioner, no_captioner
from triptych.captioning.questions import AnswerError, Captioner
from triptych.captioning.replies import check_url
from triptych.captioning.roles import question, read_role
from triptych.data.catalogue import OVERRIDES, PHOTOS, Photo, override_example, read_photos
from triptych.data.told_roles import TOLD, row_of, told_in
from triptych.data.views import unsaid
from triptych.errors import InputError, TriptychError
from triptych.events import Event, Run, held
from triptych.execution import PerWorker, execute
from triptych.pictures.images import load_image
from triptych.pictures.sheets import contact_sheet, plain
from triptych.pocket.known_worlds import check_pictures
from triptych.store.files import publish
from triptych.store.folder import StageFolder
from triptych.store.journal import Journal
from triptych.tasks import task_named
from triptych.tasks.base import Task
from triptych.verbs.roles_config import RolesConfig

LOOKED_AT = 768
"""Longer side in pixels of a photo as the captioner sees it."""
SHEET = "roles_sheet.jpg"
MOST_SHOWN = 120


def roles(config: RolesConfig) -> Run:
    """Ask for the role of every product photo that has none yet; answers from earlier runs stay.

    Raises:
        WorkError: no catalogue. ModelError: the captioner cannot be loaded or does not answer.
        ConfigError: an invalid address, or no such task.
    """
    task = task_named(config.task)
    check_url(config.base_url)
    photos = read_photos(config.catalogue_folder / PHOTOS)
    journal_path = config.catalogue_folder / TOLD
    journal = Journal(journal_path)
    told = told_in(journal.rows)
    wanted = unsaid(photos, task.photo_roles)
    asked = [photo for photo in wanted if told.get(photo.sha256) not in (*task.photo_roles.names, "other")]
    if asked and not config.vlm_model.strip():
        raise no_captioner()
    captioner = PerWorker(_captioner, config)
    if asked:
        captioner().check()
    summary: dict[str, Any] = {
        "photos": sum(photo.label == "garment" for photo in photos),
        "asked": 0,
        "kept": len(wanted) - len(asked),
        "unclear": 0,
        "told": {},
        "file": str(journal_path),
        "sheet": str(config.catalogue_folder / SHEET),
        "next": "",
    }

    def work() -> Iterator[Event]:
        if asked and captioner().knows:
            seen = [(photo.path, load_image(Path(photo.path), longest=LOOKED_AT)) for photo in asked[:20]]
            check_pictures(captioner().knows, seen, "captioner", config.vlm_model, config.anyway)
        tools = PerWorker(Asking, config, task, captioner, journal)
        threads = config.concurrency if asked and captioner().concurrent else 0
        try:
            for answer in execute(make, asked, tools, threads):
                yield _record(answer, journal, captioner().identity, summary)
        finally:
            now = told_in(journal.rows)
            _write_sheet(Path(summary["sheet"]), wanted, now)
        found = [now.get(photo.sha256, "nothing") for photo in wanted]
        summary["told"] = {word: found.count(word) for word in sorted(set(found))}
        overrides = config.catalogue_folder / OVERRIDES
        summary["next"] = (
            f"Look at {summary['sheet']}; to correct a role, write "
            f"{override_example(task.photo_roles.names)} into {overrides} and run "
            "`triptych clean` again. Then run `triptych concat`."
            if wanted
            else "Every product photo has a role already: run `triptych concat`."
        )
        run.failed = summary["unclear"] if not summary["asked"] else 0

    run = Run("roles", len(asked), held(StageFolder(config.catalogue_folder, "roles", {}), work), summary)
    return run


def _captioner(config: RolesConfig) -> Captioner:
    return load_captioner(config.vlm_model, config.base_url, timeout=config.timeout, attempts=config.attempts)


class Asking:
    """The tools of a worker: the captioner, its earlier answers, and the question."""

    def __init__(
        self, config: RolesConfig, task: Task, captioner: PerWorker[Captioner], journal: Journal
    ) -> None:
        self.captioner, self.answers = captioner(), Answers(journal)
        self.task, self.question, self.limit = task, question(task), config.max_new_tokens

    def close(self) -> None:
        self.captioner.close()


class Answer(NamedTuple):
    """The role of a photo; None and why, if the answer is of no use."""

    photo: Photo
    role: str | None
    why: str = ""


def make(photo: Photo, tools: Asking) -> Answer:
    """Ask about one photo."""
    picture = functools.partial(load_image, Path(photo.path), longest=LOOKED_AT)
    ask = tools.answers.dialogue(tools.captioner, photo.sha256, picture, photo.sha256, tools.limit)
    try:
        role = read_role(ask(tools.question), tools.task)
        if role is None and ask.forget():  # an earlier run's answer
            role = read_role(ask(tools.question), tools.task)
    except (AnswerError, InputError) as error:
        return Answer(photo, None, error.message)
    return Answer(photo, role, "" if role else "the answer names no role, or several")


def _record(answer: Answer, journal: Journal, captioner: str, summary: dict[str, Any]) -> Event:
    name = Path(answer.photo.path).name
    if answer.role is None:
        summary["unclear"] += 1
        return Event(name, "rejected", answer.why)
    summary["asked"] += 1
    journal.append(row_of(answer.photo, answer.role, captioner))
    return Event(name, note=answer.role, result=answer.role)


def _write_sheet(path: Path, photos: list[Photo], told: dict[str, str]) -> None:
    """The photos asked about, each with its item and its role."""
    cells: list[tuple[Image.Image | None, str]] = []
    for photo in photos[:MOST_SHOWN]:
        label = f"{plain(photo.item)}\n{told.get(photo.sha256, '?')}"
        try:
            cells.append((load_image(Path(photo.path), longest=320), label))
        except TriptychError:
            cells.append((None, label))
    if cells:
        with publish(path) as temporary:
            contact_sheet(cells, columns=6, thumb=160).save(temporary, quality=88)
