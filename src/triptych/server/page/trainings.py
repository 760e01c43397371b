"""Trainings in the work folder: each a process of its own and a folder of its own. No gradio.

WORK/<name>/train.yaml    the settings of a training that the page has begun, for `triptych train --config`
WORK/<name>/train.log     what its process said

What runs is told by the lock of the folder: a page that was closed, or a server that was started again, finds
it, and so are trainings found that the command line has begun.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from triptych.config.stage import load_config, section, validated
from triptych.data.embeddings import read_about
from triptych.errors import InputError, TriptychError, WorkError
from triptych.lora.adapter import FILE_NAME
from triptych.planning.report import in_gib
from triptych.pocket import POCKETS
from triptych.server.config import AppConfig
from triptych.server.page.places import folder_named
from triptych.store.files import read_json, read_jsonl, write_text
from triptych.store.folder import is_held
from triptych.training.asked import SAVE, SAVED, STOP, ask
from triptych.training.checkpoints import steps_saved
from triptych.training.config import TrainConfig
from triptych.verbs import STAGES
from triptych.verbs.plan_config import PlanConfig
from triptych.wording.amounts import duration
from triptych.wording.hub import HUB_NAME

SETTINGS, LOG = "train.yaml", "train.log"
MANIFEST, ROWS, SAMPLES = "train.manifest.json", "train.jsonl", "samples"
State = Literal["new", "starting", "running", "stopped", "done", "failed"]
_LAST = 20_000
"""Bytes at the end of a log that are looked through for an error."""


@dataclass(frozen=True)
class Status:
    """How a training is.

    step, of: the steps that are done, and the number they will be, if known. seconds: per step. stopping,
    saving: whether it was asked to, and has not answered yet. error, hint: why it failed.
    """

    state: State
    step: int = 0
    of: int | None = None
    seconds: float | None = None
    stopping: bool = False
    saving: bool = False
    error: str = ""
    hint: str = ""

    @property
    def goes(self) -> bool:
        return self.state in ("starting", "running")


class Trainings:
    """The trainings of a work folder."""

    def __init__(self, app: AppConfig) -> None:
        self.app, self.work = app, app.work
        self._own: dict[str, subprocess.Popen[bytes]] = {}
        self._ran: set[str] = set()  # of those, the ones that have been seen running
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[object, list[dict[str, Any]]]] = {}

    def names(self) -> list[str]:
        """The trainings that are there, the one that changed last first."""
        found: dict[str, float] = {}
        for file in (SETTINGS, MANIFEST, ROWS):
            for path in self.work.glob(f"*/{file}"):
                with contextlib.suppress(OSError, InputError):
                    name = folder_named(self.work, path.parent.name, "a training").name
                    found[name] = max(found.get(name, 0.0), path.stat().st_mtime)
        return sorted(found, key=lambda name: -found[name])

    def folder(self, name: str) -> Path:
        """The folder of a training.

        Raises:
            InputError: the name is no plain word, or leads out of the work folder.
        """
        return folder_named(self.work, name, "a training")

    # --- settings

    def config(self, name: str, given: Mapping[str, Any]) -> TrainConfig:
        """The config of a training: what was given (None and empty text: not given), and the page's folders.

        Raises:
            InputError: an impossible name, or a model outside the work folder. ConfigError: an impossible
                value. ModelError: no model.
        """
        values = {key: value for key, value in given.items() if value is not None and value != ""}
        values |= self._places(self.folder(name))
        if "model" in values:
            values["model"] = self._model(str(values["model"]).strip())
        config = validated(TrainConfig, values, "train")
        config.check_early()
        return config

    def _places(self, folder: Path) -> dict[str, Any]:
        whole = {"work": self.work, "lora_folder": folder}
        whole |= {"embeddings": self.app.embedding_folder, "triptychs": self.app.triptych_folder}
        return {name: Path(os.path.abspath(path)) for name, path in whole.items()} | {
            "device": self.app.device
        }

    def _model(self, model: str) -> str:
        """A model that may be trained from the page: that of the page, an embedded one, one of the hub, or a
        folder in the work folder.
        """
        if model == self.model_named(self.app.model):
            return self.app.model
        if model in POCKETS or (HUB_NAME.fullmatch(model) and not Path(model).exists()):
            return model
        home = os.path.realpath(self.work)
        path = os.path.realpath(self.work / model)
        if "\0" in model or not path.startswith(home + os.sep) or not os.path.isdir(path):
            raise InputError(
                f"There is no model '{model[:80]}' here.",
                "Give a hub id, the model that the page was started with, or a folder in the work folder.",
            )
        return path

    def model_named(self, model: str) -> str:
        """A model as the browser sees it: of a folder its name, or its place in the work folder."""
        if not model or not Path(model).exists():
            return model
        path, home = Path(os.path.realpath(model)), Path(os.path.realpath(self.work))
        return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of a training by name: as given on the page, else those that its folder remembers.

        Raises:
            InputError: no such name. ConfigError: `train.yaml` was damaged.
        """
        folder = self.folder(name)
        if (folder / SETTINGS).exists():
            data = load_config([folder / SETTINGS], STAGES)
            given = dict(section(data, "train", TrainConfig))
            return given | {"model": self.model_named(str(given.get("model", "")))}
        if not (folder / MANIFEST).exists():
            return {}
        identity = read_json(folder / MANIFEST).get("identity", {})
        known = {key: value for key, value in identity.items() if key in TrainConfig.model_fields}
        return {key: value for key, value in known.items() if key not in ("model", "init_lora")}

    # --- before it starts

    def check(self, config: TrainConfig) -> None:
        """Refuse what `train` would refuse.

        Raises:
            TriptychError: see `train`.
        """
        from triptych.verbs.train import train  # not at the top: it imports torch

        if self.status(config.train_folder.name).goes:
            raise WorkError(
                f"A training is running in '{config.train_folder.name}'.",
                "Stop it first, or give this one another name.",
            )
        train(config)

    def memory(self, config: TrainConfig) -> tuple[bool, str]:
        """(whether it fits on this machine's card, what it takes as a sentence), by `plan`.

        Raises:
            TriptychError: see `plan`.
        """
        run = _plan(config)
        for event in run:
            if event.id == "train":
                break
        run.close()
        planned, card = run.summary["train"], run.summary["card"]
        need, room = in_gib(planned["total_bytes"]), run.summary["memory_gib"]
        takes = f"train takes {need:g} GiB of {room:g} GiB on {card}, {duration(planned['seconds'])} in all"
        if planned["fits"]:
            return True, f"It fits: {takes}, by estimate."
        change = planned["change_words"]
        return False, f"It does not fit: {takes}." + (f" It would fit with {change}." if change else "")

    def plan(self, config: TrainConfig) -> tuple[str, str]:
        """(`plan`'s verdict, its whole text).

        Raises:
            TriptychError: see `plan`.
        """
        run = _plan(config)
        run.finish()
        return str(run.summary["verdict"]), run.text

    # --- start, stop, save

    def start(self, config: TrainConfig) -> None:
        """Begin a training, or go on with the one in its folder, as a process of its own.

        Raises:
            WorkError: one is running there.
        """
        folder = config.train_folder
        with self._lock:
            if self.status(folder.name).goes:
                raise WorkError(f"A training is running in '{folder.name}'.", "Stop it first.")
            folder.mkdir(parents=True, exist_ok=True)
            given = config.model_dump(mode="json", include=config.model_fields_set)
            shared = {key: given.pop(key) for key in ("work", "embeddings", "triptychs", "lora_folder")}
            text = yaml.safe_dump(shared | {"train": given}, sort_keys=False, allow_unicode=True)
            write_text(folder / SETTINGS, text)
            self._begin(folder)

    def go_on(self, name: str) -> None:
        """Go on with a training as it was begun.

        Raises:
            WorkError: one is running there, or the page has not begun it.
        """
        folder = self.folder(name)
        if not (folder / SETTINGS).exists():
            raise WorkError(
                f"The page does not know with which settings '{name}' was begun.",
                "Run the command again that has begun it.",
            )
        with self._lock:
            if self.status(name).goes:
                raise WorkError(f"A training is running in '{name}'.", "Stop it first.")
            self._begin(folder)

    def _begin(self, folder: Path) -> None:
        words = [sys.executable, "-m", "triptych", "train", "--config", str(folder / SETTINGS)]
        self._ran.discard(folder.name)
        with open(folder / LOG, "wb") as log:
            self._own[folder.name] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the server does not end it
            )

    def stop(self, name: str) -> None:
        """Stop a training as Ctrl-C does: the step at hand is finished and saved.

        Raises:
            WorkError: none is running there.
        """
        state, folder = self.status(name).state, self.folder(name)
        if state == "running":
            ask(folder, STOP)
        elif state == "starting":  # before it looks for files
            self._own[name].terminate()
        else:
            raise WorkError(f"No training is running in '{name}'.", "There is nothing to stop.")

    def save(self, name: str) -> None:
        """Have the LoRA of the step at hand saved, to be kept.

        Raises:
            WorkError: no training is running there.
        """
        if self.status(name).state != "running":
            hint = "Every checkpoint has the LoRA of its step."
            raise WorkError(f"No training is running in '{name}'.", hint)
        ask(self.folder(name), SAVE)

    # --- how it goes

    def status(self, name: str) -> Status:
        """How a training is.

        Raises:
            InputError: no such name. WorkError: its log is damaged.
        """
        folder, own = self.folder(name), self._own.get(name)
        alive = own is not None and own.poll() is None
        rows = self.rows(name)
        of, about = self._length(folder), read_about(folder / FILE_NAME) or {}
        step = int(rows[-1]["step"]) if rows else 0
        state: State = "new"
        error = hint = ""
        if is_held(folder, "train"):
            state = "running"
            self._ran.add(name)
        elif alive:  # before it has the folder, or after it has let it go
            state = "running" if name in self._ran else "starting"
        elif about and of in (None, about.get("steps"), about.get("recipe", {}).get("max_train_steps")):
            state, step = "done", int(about.get("steps", step))
        else:
            error, hint = _error(folder)
            begun = bool(rows or steps_saved(folder / "checkpoints"))
            state = "failed" if error else "stopped" if begun or (folder / SETTINGS).exists() else "new"
        return Status(
            state,
            step,
            of,
            rows[-1].get("seconds_per_step") if rows else None,
            state == "running" and (folder / STOP).exists(),
            state == "running" and (folder / SAVE).exists(),
            error,
            hint,
        )

    def _length(self, folder: Path) -> int | None:
        with contextlib.suppress(TriptychError):
            steps = self.settings(folder.name).get("max_train_steps")
            if steps is not None:
                return int(steps)
        return TrainConfig.model_fields["max_train_steps"].default if (folder / SETTINGS).exists() else None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The log of a training, a row for each step.

        Raises:
            InputError: no such name. WorkError: the log is damaged.
        """
        path = self.folder(name) / ROWS
        try:
            about = path.stat()
        except OSError:
            return []
        mark = about.st_mtime_ns, about.st_size
        if self._rows.get(name, (None, []))[0] != mark:
            self._rows[name] = mark, [row for row in read_jsonl(path) if isinstance(row.get("step"), int)]
        return self._rows[name][1]

    def pictures(self, name: str) -> list[int]:
        """The steps with validation pictures, in order."""
        found = (path.stem.removeprefix("step-") for path in (self.folder(name) / SAMPLES).glob("step-*.png"))
        return sorted(int(step) for step in found if step.isdecimal())

    def picture(self, name: str, step: int) -> Path:
        """The file of the validation pictures of a step."""
        return self.folder(name) / SAMPLES / f"step-{step:06d}.png"

    def loras(self, name: str) -> list[str]:
        """The LoRAs of a training, by their names from the work folder."""
        folder = self.folder(name)
        places = [
            folder,
            *sorted((folder / SAVED).glob("step-*")),
            *sorted((folder / "checkpoints").glob("step-*")),
        ]
        return [path.relative_to(self.work).as_posix() for path in places if (path / FILE_NAME).exists()]


def _plan(config: TrainConfig) -> Any:
    from triptych.verbs.plan import plan  # not at the top: it imports torch

    given = config.model_dump(
        include=config.model_fields_set - {"work", "lora_folder", "embeddings", "triptychs"}
    )
    data = {"triptychs": config.triptych_folder, "train": given}
    return plan(PlanConfig(model=config.model, work=config.work), data)


def _error(folder: Path) -> tuple[str, str]:
    """The error and the hint that the last process has ended with; empty if it has not."""
    log, rows = folder / LOG, folder / ROWS
    with contextlib.suppress(OSError):
        if rows.exists() and rows.stat().st_mtime > log.stat().st_mtime:
            return "", ""  # it went on elsewhere
        data = log.read_bytes()[-_LAST:].decode("utf-8", "replace")
        said = {"error": "", "hint": ""}
        for line in data.splitlines():
            kind, _, words = line.partition(": ")
            if kind in said:
                said[kind] = words
        return said["error"], said["hint"]
    return "", ""
